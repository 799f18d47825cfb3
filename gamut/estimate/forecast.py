"""From calls and rates to time: two clocks, the host's, which issues the calls, and the device's, which does them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gamut.estimate.calls import BESIDE, Call
from gamut.estimate.evaluation import evaluation
from gamut.estimate.fit import fit
from gamut.estimate.rates import Rates
from gamut.estimate.step import Account, account
from gamut.estimate.work import work_of
from gamut.numbers import RATE
from gamut.recipe.schema import AUTO, Recipe

KINDS = ("matmul", "memory", "launches", "waits", "communication", "loader")
LATENCY = 30e-6  # seconds of a collective before its first byte, a doubling of ranks
DECODED = 8180.0  # seconds of FLAC that a core decodes in one (bench/RESULTS.md: 818 clips of 10 s)
COPIED = 10.7e9  # bytes/s of cached features that a core reads and verifies (5,125 records of 2.1 MB)
COMPILED = 4e-6  # seconds of the host for a call of compiled code, an assumption


@dataclass(frozen=True)
class Forecast:
    """What a run would be like on so many GPUs of one kind."""

    account: Account
    rates: Rates
    nodes: int
    seconds: dict[str, float]  # of a step by kind
    memory: dict[str, float]  # bytes of a GPU by kind
    lines: list[tuple[str, str, float, int]]  # (phase, line, device seconds, calls), dearest first
    scored: float | None = None  # clips a second and GPU in an evaluation; in pretraining, in that of probes

    @property
    def step(self) -> float:
        """Seconds of a global step."""
        return sum(self.seconds.values())

    @property
    def ranks(self) -> int:
        return self.account.work.ranks

    @property
    def clips(self) -> float:
        """Clips a second and GPU, idle ones included."""
        return self.account.work.clips_a_step / self.ranks / self.step

    @property
    def tokens(self) -> float:
        return self.account.work.tokens_a_step / self.ranks / self.step

    @property
    def flops(self) -> float:
        """Of matrix products and attention in a step, of all ranks."""
        return self.account.flops_a_step

    @property
    def mfu(self) -> float:
        return self.flops / self.ranks / self.step / self.rates.peak

    @property
    def gigabytes(self) -> float:
        return sum(self.memory.values()) / 1e9

    @property
    def hours(self) -> float:
        work = self.account.work
        return work.sounds.draws * self.account.recipe.epochs / (self.clips * self.ranks) / 3600

    @property
    def bytes_a_clip(self) -> float:
        return self.account.read / max(self.account.work.clips, 1)

    @property
    def bytes_a_node(self) -> float:
        """Bytes a second that a node reads."""
        return self.bytes_a_clip * self.clips * self.ranks / self.nodes

    @property
    def cores_a_node(self) -> float:
        return self.clips * self.ranks / self.nodes * core_seconds(self.account)


def core_seconds(account: Account) -> float:
    """Seconds of one core to read and decode a clip, and its mixup partner."""
    work = account.work
    if account.recipe.features:
        return account.read / max(work.clips, 1) / COPIED
    sound = float(work.epoch.length.max(1).sum() / max(work.epoch.draws, 1)) / RATE
    partners = 0.0 if work.epoch.partner is None else float((work.epoch.partner >= 0).mean())
    return sound * (1 + partners) / DECODED


def estimate(recipe: Recipe, rates: Rates, nodes: int, gpus: int, clips: int | None = None) -> Forecast:
    """The forecast of a recipe on so many GPUs a node. clips: of the set, if it is not on this machine but known.

    Where `loader.packs_per_forward` is auto it is of as many packs as fit. Raises RecipeError, PlanError or
    CheckpointError where the recipe's step cannot be made.
    """
    ranks = nodes * gpus
    if recipe.loader.packs_per_forward == AUTO and rates.kind == "cuda":
        made = fit(recipe, ranks, rates.memory, clips)[1]
    else:
        made = account(recipe, work_of(recipe, ranks, clips), rates.kind)
    return replace(forecast(made, rates, nodes), scored=scored(made, rates))


def scored(account: Account, rates: Rates) -> float:
    """Clips a second and GPU of an evaluation whose forwards are as full as the step's."""
    device = sum(run(evaluation(account.recipe, account.work, rates.kind), rates, 1.0).values())
    loads = core_seconds(account) * account.work.clips / max(account.recipe.loader.workers, 1)
    return account.work.clips / max(device, loads)


def forecast(account: Account, rates: Rates, nodes: int) -> Forecast:
    work = account.work
    forwards = work.forwards
    share = work.scale / forwards  # of the micro-batch that is followed, in a mean one
    prepare, micro = account.phase("prepare"), account.phase("micro")
    count, update = account.phase("count"), run(account.phase("update"), rates, 1.0)
    if account.beside:
        # The next step is prepared in a stream of its own, once the host has issued the last backward: what of it waits
        # for launches is hidden as long as the device has work, and the copies from the host, which are not the work of
        # its cores, as long as they take less than that backward. Its counts are there before anyone asks for them.
        crosses = [call.kind == "copy" and not call.wait for call in prepare]
        issued = [replace(call, launches=0) if copy else call for call, copy in zip(prepare, crosses, strict=True)]
        copies = forwards * sum(seconds_of(call, rates, share) for call, copy in zip(prepare, crosses) if copy)
        backward = sum(seconds_of(call, rates, share) for call in micro if call.backward)
        unwaited = [replace(call, wait=False) for call in count]
        parts = [(run([*micro * forwards, *issued * forwards], rates, share), 1), (run(unwaited, rates, 1.0), 1)]
        update["memory"] += max(0.0, copies - backward)
    else:
        parts = [(run(part, rates, share), forwards) for part in (prepare, micro)] + [(run(count, rates, 1.0), 1)]
    seconds = {kind: update[kind] + sum(part[kind] * times for part, times in parts) for kind in KINDS}
    backward = sum(seconds_of(call, rates, share) for call in micro if call.backward)
    seconds["communication"] = sent(account, rates, nodes, backward)
    loads = core_seconds(account) * work.clips_a_step / max(work.busy, 1) / max(account.recipe.loader.workers, 1)
    seconds["loader"] = max(0.0, loads - sum(seconds.values()))
    return Forecast(account, rates, nodes, seconds, account.held, lines(account, rates, share))


def seconds_of(call: Call, rates: Rates, share: float = 1.0) -> float:
    """Of the device, for one call, with a share of its work."""
    if call.kind in ("communication",) or not call.launches:
        return 0.0
    if call.kind == "copy":
        return call.bytes * share / 25e9  # PCIe
    rate = rates.calls.get(call.name.removeprefix("_foreach_").replace("copy_ s", "clone s"), rates.bytes)
    moved = call.bytes * share / rate
    if call.kind == "attention":
        work = call.flops * share / (rates.attention if call.half or rates.kind == "cpu" else rates.single)
    else:
        work = call.flops * share / (rates.half if call.half else rates.single) / reached(call.flops * share, rates)
    if rates.kind == "cpu":
        return (work or moved) + rates.launch
    return max(work, moved, rates.launch * call.launches)


def reached(flops: float, rates: Rates) -> float:
    """The share of the rate of large products that one of so many operations reaches: by their logarithm, between the
    small one that was measured and a hundred times as many."""
    if rates.small is None or not flops:
        return 1.0
    size, share = rates.small
    return share + (1.0 - share) * min(1.0, max(0.0, math.log(flops / size) / math.log(100.0)))


def host_of(call: Call, rates: Rates) -> float:
    """Seconds of the host for one call."""
    return min(rates.backward, COMPILED) if call.compiled else rates.backward if call.backward else rates.call


def run(calls: Iterable[Call], rates: Rates, share: float) -> dict[str, float]:
    """Seconds by kind: what the device does, and what it waits for: launches (the host is late), or waits (the host
    had waited for it, and begins anew)."""
    spent = dict.fromkeys(KINDS, 0.0)
    host = device = 0.0
    anew = False
    for call in calls:
        if call.kind == "communication":
            continue
        host += host_of(call, rates)
        if call.launches:
            seconds = seconds_of(call, rates, share)
            if host > device:
                spent["waits" if anew else "launches"] += host - device
                device = host
            if rates.kind == "cpu":  # one clock
                host += seconds
            spent["matmul" if call.kind in ("matmul", "attention") else "memory"] += seconds
            device += seconds
            anew = False
        if call.wait:
            host = max(host, device) + rates.wait
            anew = True
    if host > device:
        spent["waits" if anew else "launches"] += host - device
    return spent


def sent(account: Account, rates: Rates, nodes: int, backward: float) -> float:
    """Seconds of collectives a step that the step waits for.

    backward: seconds of the last micro-batch's, beside which buckets of gradients are sent: the first once its part is
    done, and the last when all is.
    """
    ranks = account.work.ranks
    if ranks == 1:
        return 0.0
    rate = rates.link if nodes == 1 else min(rates.link, rates.network)
    delay = LATENCY * math.log2(ranks)
    total = 3 * delay  # counts, metrics, centres
    beside = []
    for call in account.calls:
        if call.kind == "communication":
            times = account.work.forwards if call.phase == "micro" else 1
            both = 2 if call.name in ("all-reduce", BESIDE) else 1
            seconds = times * (both * (ranks - 1) / ranks * call.bytes / rate + delay)
            if call.name == BESIDE:
                beside.append(seconds)
            else:
                total += seconds
    if beside:
        total += max(beside[-1], sum(beside) - backward * (1 - 1 / len(beside)))
    return total


def lines(account: Account, rates: Rates, share: float) -> list[tuple[str, str, float, int]]:
    """(phase, line, seconds of the device or, where that is more, of the host; calls) a step, dearest first."""
    spent: dict[tuple[str, str], float] = defaultdict(float)
    count: Counter[tuple[str, str]] = Counter()
    for call in account.calls:
        if call.kind == "communication":
            continue
        inner = call.phase in ("prepare", "micro")
        times = account.work.forwards if inner else 1
        where = (f"{call.phase} {'backward' if call.backward else 'forward'}" if inner else call.phase, call.line)
        host = host_of(call, rates)
        spent[where] += times * max(seconds_of(call, rates, share if inner else 1.0), host)
        count[where] += times
    return [(*where, seconds, count[where]) for where, seconds in sorted(spent.items(), key=lambda one: -one[1])]
