"""A picture of a clip as the student sees it: masks that ignore the patch grid, and aligned ones (ASiT, Figure 4).

Share, shape and fill of the masks are the recipe's, so every variant can be looked at before it is trained.

Examples:
    python pretrain/masks.py asit_tiny data=shards/esc10
    python pretrain/masks.py asit_tiny data=shards/esc10 asit.mask_fill=noise asit.mask_target=0.5 --out noise.png
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.commands import command, parser_of
from gamut.errors import ShardError
from gamut.recipe import cli, schema

if TYPE_CHECKING:
    import torch

    from gamut.shards import Index
    from pretrain.masking import Hidden


@command
def main(argv: list[str] | None = None) -> int:
    """Plot the clip that the command line names, or the recipe's first."""
    parser = parser_of("masks", __doc__)
    parser.add_argument("recipe", help="a pretraining recipe, or a path to a YAML file")
    parser.add_argument("override", nargs="*", metavar="key=value", help="overrides a key of the recipe")
    parser.add_argument("--clip", metavar="KEY", help="the clip; the first of the recipe's without it")
    parser.add_argument("--epoch", type=int, default=0, help="the epoch whose masks are shown; 0 without it")
    parser.add_argument("--out", type=Path, default=Path("masks.png"), help="the picture; masks.png without it")
    typed = parser.parse_intermixed_args(argv)

    from gamut.audio.logmel import unpatch  # here: --help need not wait for torch
    from gamut.recipe.load import load_recipe
    from gamut.shards.joined import open_sets
    from gamut.track import figures

    recipe = load_recipe("pretrain", typed.recipe, typed.override)
    index = open_sets(cli.require_sets(recipe), recipe.remote)
    clean, variants = masked(recipe, index, typed.clip, typed.epoch)
    rows = {}
    for name, hidden in variants.items():
        masks = hidden.masks
        share, touched, whole = (x.float().mean().item() for x in (masks.pixels, masks.touched, masks.patches.all(1)))
        said = f"{share:.1%} of the pixels, {touched:.1%} of the tokens touched, {whole:.1%} hidden wholly"
        print(f"{name}: {said}")
        rows[f"{name}: {said}"] = (unpatch(hidden.patches).numpy(), masks.pixels.numpy())
    figure = figures.masks(unpatch(clean).numpy(), rows)
    try:
        figure.savefig(typed.out, format="png", dpi=110)
    except OSError as error:
        raise ShardError(f"{typed.out} cannot be written: {error.strerror or error}. Give another --out.") from error
    print(typed.out)
    return 0


def masked(recipe: schema.Recipe, index: Index, key: str | None, epoch: int) -> tuple[torch.Tensor, dict[str, Hidden]]:
    """(clean patches [N, 256] of the clip's view, {unaligned, aligned} -> the same masked), normalised.

    Raises ShardError where there is no clip of that key, as `gamut.shards.show.find`.
    """
    import numpy as np

    from gamut.audio.logmel import normalise, patches
    from gamut.data.assemble import assemble
    from gamut.data.front import spectrogram
    from gamut.models.layout import layout
    from gamut.plan import plan_evaluation
    from gamut.recipe.policy import evaluation_policy
    from gamut.shards.select import select
    from gamut.shards.show import find
    from pretrain.masking import hide, mask_keys

    mean, std = index.normalisation(recipe.front)
    clips = select(index, recipe.subset)
    row = int(clips.row[0]) if key is None else find(index, key)
    other = int(clips.row[1 % len(clips)])  # what a fill from another clip takes
    two = index.table().select(np.array([row, other if other != row else int(clips.row[0])]))
    plan = plan_evaluation(two, replace(evaluation_policy(recipe), packs=1, clips=2, tokens=None))
    batch = replace(assemble(index, plan, [0]), epoch=epoch)
    clean = patches(normalise(spectrogram(batch, recipe.front.mode, recipe.views.pad_with), mean, std))
    where = layout(batch.frames, batch.sizes, class_token=False)
    keys = mask_keys(recipe.seed, epoch, *batch.segment_key())
    count = int((where.owner == 0).sum())
    variants = {}
    for name, aligned in (("unaligned", False), ("aligned", True)):
        options = replace(recipe.asit, mask_aligned=aligned)
        hidden = hide(clean, where, batch.frames, batch.sizes, keys, 1, batch.pack_clips, options)
        variants[name] = hidden.first(count)
    return clean[:count], variants


if __name__ == "__main__":
    sys.exit(main())
