"""The account in words and tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from gamut.estimate.forecast import KINDS, Forecast
from gamut.estimate.rates import ASSUMED, CONTEXT, GIGA, TERA
from gamut.models.cost import ENCODERS

LEFT_OUT = (
    "This is an estimate: every call of the step is counted, on tensors without values, and timed by rates. Left out "
    "are checkpoints, evaluations and probes in the hours, the first steps (compilation, benchmarks of kernels, caches "
    "that fill), fragments between pieces of memory, a slow node or disk, and overlap of anything with anything: only "
    "the loader's processes and the copies of the next step work beside the step, and gradients are sent beside the "
    "backward (ZeRO-1 in bf16)."
)
SCORED = 20_000  # clips, AudioSet's evaluation
MEANT = {
    "matmul": "matrix products and attention",
    "memory": "bound by memory",
    "launches": "waiting for launches",
    "waits": "after waits of the host",
    "communication": "communication",
    "loader": "waiting for the loader",
}
ORDER = ("weights", "gradients", "optimiser", "teacher", "activations", "logits", "prepared")


def main_lines(forecast: Forecast) -> list[str]:
    """The three lines of a dry run."""
    rates, ranks = forecast.rates, forecast.ranks
    used = forecast.gigabytes + CONTEXT / GIGA * (rates.kind == "cuda")
    full = "" if used <= rates.memory / GIGA else ": more than it has"
    return [
        f"memory a GPU: {used:,.1f} GB of {rates.memory / GIGA:,.0f}{full}",
        f"clips/s a GPU: {forecast.clips:,.0f} on {ranks} {rates.name} ({forecast.mfu:.1%} of the peak), "
        f"{_packs(forecast)}",
        f"hours: {forecast.hours:,.2f} for {forecast.account.recipe.epochs} epochs{_scores(forecast)}",
    ]


def _scores(one: Forecast) -> str:
    """`; 20,000 clips are scored in 3.1 s`."""
    if one.scored is None:
        return ""
    what = "encoded for probes" if one.account.recipe.stage == "pretrain" else "scored"
    return f"; {SCORED:,} clips are {what} in {SCORED / one.scored / one.ranks:,.1f} s"


def table(forecasts: Sequence[Forecast], names: Sequence[str], price: float | None) -> Table:
    """One column a forecast."""
    shown = Table(title="estimate", show_header=len(forecasts) > 1)
    shown.add_column("")
    for name in names:
        shown.add_column(name, justify="right")

    def row(label: str, cells: Sequence[str]) -> None:
        shown.add_row(label, *cells)

    def section(label: str) -> None:
        shown.add_section()
        shown.add_row(f"[bold]{label}[/bold]", *[""] * len(forecasts))

    row("device", [f"{one.ranks} x {one.rates.name}, {one.nodes} nodes" for one in forecasts])
    row("parameters", [f"{one.account.parameters / 1e6:,.1f} M" for one in forecasts])
    row("clips, tokens a step", [_step(one) for one in forecasts])
    row("micro-batch", [_micro(one) for one in forecasts])
    row("idle ranks' share", [f"{one.account.work.idle:.1%}" for one in forecasts])
    section("memory a GPU, GB")
    kinds = [kind for kind in ORDER if any(one.memory.get(kind) for one in forecasts)]
    kinds += sorted({kind for one in forecasts for kind in one.memory} - set(ORDER))
    for kind in kinds:
        row(kind, [f"{one.memory.get(kind, 0.0) / GIGA:,.2f}" for one in forecasts])
    row("peak", [f"{one.gigabytes:,.2f}" for one in forecasts])
    row("and CUDA's own", [f"{CONTEXT / GIGA * (one.rates.kind == 'cuda'):,.1f}" for one in forecasts])
    section("a step, ms")
    for kind in KINDS:
        row(MEANT[kind], [f"{1e3 * one.seconds[kind]:,.1f}" for one in forecasts])
    row("step", [f"{1e3 * one.step:,.1f}" for one in forecasts])
    row("calls of a micro-step", [f"{_calls(one):,}" for one in forecasts])
    row("waits of the host a step", [f"{_waits(one):,}" for one in forecasts])
    row("MB from host to device", [f"{_copied(one) / 1e6:,.1f}" for one in forecasts])
    section("the run")
    row("clips/s a GPU", [f"{one.clips:,.0f}" for one in forecasts])
    row("tokens/s a GPU", [f"{one.tokens:,.0f}" for one in forecasts])
    row("MFU (of the peak in bf16)", [f"{one.mfu:.1%}" for one in forecasts])
    row("TFLOP a clip", [f"{one.flops / one.account.work.clips_a_step / TERA:,.3f}" for one in forecasts])
    row("hours", [f"{one.hours:,.2f}" for one in forecasts])
    row("GPU hours", [f"{one.hours * one.ranks:,.1f}" for one in forecasts])
    if price is not None:
        row(f"cost at {price:g} a GPU and hour", [f"{one.hours * one.ranks * price:,.0f}" for one in forecasts])
    row("clips/s a GPU in evaluation", ["" if one.scored is None else f"{one.scored:,.0f}" for one in forecasts])
    section("the data of a node")
    row("MB/s read", [f"{one.bytes_a_node / 1e6:,.0f}" for one in forecasts])
    row("cores that decode", [f"{one.cores_a_node:,.1f}" for one in forecasts])
    row("GB of the set, or of its cache", [f"{_set(one):,.0f}" for one in forecasts])
    return shown


def _step(one: Forecast) -> str:
    work = one.account.work
    return f"{work.clips_a_step:,.0f}, {work.tokens_a_step:,.0f}"


def _micro(one: Forecast) -> str:
    work = one.account.work
    return f"{work.forwards} a step of {len(work.micro)} packs, {work.clips} clips, {work.tokens:,} tokens"


def _packs(one: Forecast) -> str:
    """`4 packs a forward (loader.packs_per_forward), 1 forward a step`."""
    packs, forwards = one.account.recipe.loader.per_forward, one.account.work.forwards
    return (
        f"{packs} pack{'s' * (packs > 1)} a forward (loader.packs_per_forward), "
        f"{forwards} forward{'s' * (forwards > 1)} a step"
    )


def _calls(one: Forecast) -> int:
    return sum(call.launches > 0 and call.line != "backward" for call in one.account.phase("prepare", "micro"))


def _waits(one: Forecast) -> int:
    account = one.account
    inner = sum(call.wait for call in account.phase("prepare", "micro"))
    return inner * account.work.forwards + sum(call.wait for call in account.phase("count", "update"))


def _copied(one: Forecast) -> float:
    return sum(one.account.copied.values()) * one.account.work.forwards


def _set(one: Forecast) -> float:
    work = one.account.work
    if work.records is not None:
        return work.sounds.draws * work.records.record_bytes / GIGA
    return float(work.sounds.draws * work.sounds.size.mean() / GIGA)


def dearest(one: Forecast, most: int = 20) -> Table:
    """The lines of the source that take the longest in a step."""
    shown = Table(title=f"the {most} dearest lines of a step")
    for column in ("ms", "share", "calls", "in", "line"):
        shown.add_column(column, justify="left" if column in ("in", "line") else "right")
    total = sum(seconds for _, _, seconds, _ in one.lines)
    for phase, line, seconds, calls in one.lines[:most]:
        shown.add_row(f"{1e3 * seconds:,.2f}", f"{seconds / total:.1%}", f"{calls:,}", phase, line)
    return shown


def notes(one: Forecast) -> list[str]:
    """What must be said beside the numbers."""
    account = one.account
    said = [f"clips: {account.work.sounds.said}"]
    if one.rates.kind == "cuda" and not one.rates.calls:
        said.append(f"rates: {one.rates.source}; assumed: {ASSUMED}")
    else:
        said.append(f"rates: {one.rates.source}")
    if account.guessed:
        said.append(f"guessed: sizes that only values tell, at {', '.join(account.guessed)}")
    if account.work.records is not None and account.work.records.encoder in ENCODERS:
        said.append(cache_or_encode(one))
    if account.recipe.compute.compile:
        said.append("compute.compile: not run; between two products of a block its calls are taken for one kernel")
    if account.recipe.compute.activations == "offload":
        said.append("compute.activations=offload is counted as recompute: the same, without the copies to the host")
    return [*said, LEFT_OUT]


def cache_or_encode(one: Forecast) -> str:
    """Whether encoding clips anew, every epoch, is cheaper than reading their features."""
    records = one.account.work.records
    assert records is not None
    layers, dim = ENCODERS[records.encoder]
    steps = 500  # of 10 s
    flops = layers * (24.0 * dim * dim * steps + 4.0 * steps * steps * dim)
    rate = one.rates.half / flops * records.record_bytes
    return (
        f"cache: {records.record_bytes / 1e6:.2f} MB a clip; below {rate / GIGA:.2f} GB/s of storage a GPU it is "
        "cheaper to encode the clips again than to read them"
    )
