"""The dry run: what a run would do, before a GPU is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from gamut.data.remote import cache_needed, require_cache
from gamut.numbers import HOP, RATE, WINDOW
from gamut.plan import Catalogue, Clips, Epoch, Policy, first_plan
from gamut.plan.epoch import Forecast
from gamut.plan.partners import partner_frames, partner_tokens
from gamut.recipe.policy import training_policy
from gamut.recipe.resolved import read_yaml
from gamut.recipe.schema import AUTO, Recipe, Views
from gamut.shards import Index
from gamut.train.schedule import Schedule

LOOKED_AT = 100_000  # clips of a large set, evenly spread


def preview(
    recipe: Recipe,
    clips: Clips | Catalogue,
    world: int,
    console: Console | None = None,
    *,
    index: Index,
    nodes: int = 1,
    rows: Sequence[tuple[str, str]] = (),
    full: bool = False,
) -> Epoch:
    """Print what the recipe's first epoch comes to on `world` ranks, with `rows` of what a run would take first, and
    with `full` every key of the resolved recipe that its stage reads; returns that epoch's plan, or the first block of
    it, which then stands for all.

    Raises ShardError, after the table, where the cache of a node is too small for a remote set.
    """
    console = console or Console()
    policy = training_policy(recipe)
    epoch = first_plan(clips, recipe.seed, policy)
    auto = recipe.loader.packs_per_forward == AUTO
    per_forward = -(-epoch.packs // world) if auto else recipe.loader.per_forward
    facts = epoch.summary(world, per_forward)
    coming = epoch.forecast()
    schedule = Schedule.of(recipe.optim, recipe.epochs, epoch.draws, coming.steps)
    accumulation = -(-epoch.packs // (world * per_forward))
    table = Table(title=f"{recipe.run.name} on {world} rank{'s' * (world > 1)}: the plan", show_header=False)
    table.add_row("steps", _steps(coming, recipe.epochs))
    for row in rows:
        table.add_row(*row)
    table.add_row("clips an epoch", f"{epoch.draws:,}")
    if epoch.blocks > 1:
        table.add_row("planned in blocks", f"{epoch.blocks:,}; what follows is of the first")
    table.add_row("clips a step", f"{facts['draws_step_mean']:,.1f} in {epoch.packs} packs")
    table.add_row("tokens a step", f"{facts['tokens_step_mean']:,.0f} mean, {facts['tokens_step_max']:,} most")
    more = "; on GPUs as many as fit (auto), on CPU 1" * auto
    table.add_row("micro-batches", f"{accumulation} a rank and step, of {per_forward} packs in one forward{more}")
    table.add_row("padding of packs", f"{facts['padding']:.2%}")
    table.add_row("waste, empty packs included", f"{facts['waste']:.2%}")
    table.add_row(
        "zeros in the waveforms", f"{facts['silence']:.2%} ({facts['shorter']:,} clips shorter than their view)"
    )
    table.add_row("padded to 16 frames", f"{facts['padded_short']:,}")
    table.add_row("cut at the longest length", f"{facts['cut']:,}")
    if epoch.partner is not None:
        heard = f", {taught_besides(epoch, policy):,} tokens more for the teacher" if policy.mixtures else ""
        table.add_row("mixed with another clip", f"{facts['mixed']:,}{heard}")
    needed = 0
    if index.tars.is_remote:
        needed = cache_needed(index, clips, policy, nodes if recipe.plan.locality == "node" else 1)
        table.add_row("cache a node", f"{needed / 1e9:,.3f} GB needed, {recipe.remote.cache_gb:g} GB allowed")
    rises = schedule.warmup * recipe.epochs
    table.add_row("peak learning rate", f"{schedule.peak:.3g}")
    table.add_row("warm-up", f"{rises * coming.steps:,.0f} steps, {rises:.3g} epochs")
    console.print(table)
    if full:
        console.print(read_yaml(recipe), highlight=False, markup=False)
    for note in [*schedule.notes, short_clips_warning(recipe.views, clips)]:
        if note:
            console.print(f"warning: {note}", highlight=False, markup=False)
    if index.tars.is_remote:
        require_cache(index, needed)
    return epoch


def _steps(coming: Forecast, epochs: int) -> str:
    if coming.exact:
        return f"{coming.steps:,} an epoch, {coming.steps * epochs:,} in {epochs} epochs"
    about = f"about {coming.steps:,} an epoch ({coming.low:,} to {coming.high:,})"
    return f"{about}, {coming.steps * epochs:,} in {epochs} epochs"


def taught_besides(epoch: Epoch, policy: Policy) -> int:
    """What the teacher encodes of partners in mixtures, of all draws."""
    assert epoch.partner_length is not None
    pool = 1 if epoch.pool is None else epoch.pool
    return int(partner_tokens(partner_frames(epoch.partner_length, epoch.hop, pool), policy).sum())


def short_clips_warning(views: Views, clips: Clips | Catalogue) -> str:
    """A warning where more than 10 % of the clips are shorter than the crop, so that their views coincide; or ''. Of a
    catalogue some 100,000 clips are looked at."""
    frames = views.frames
    if frames is None or not views.random or not views.pad:
        return ""
    needed = (frames - 1) * HOP + WINDOW
    if isinstance(clips, Catalogue):
        _, samples = clips.lengths(np.arange(0, len(clips), max(1, len(clips) // LOOKED_AT)))
    else:
        samples = clips.samples
    share = float(np.mean(np.asarray(samples) < needed))
    if share <= 0.10:
        return ""
    return (
        f"{share:.0%} of the clips are shorter than the crop of {frames} frames ({needed / RATE:.2f} s): their crops "
        "are all the same, padded with zeros. A smaller views.frames gives them views of their own."
    )
