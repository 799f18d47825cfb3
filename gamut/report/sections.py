"""The sections of a report that the run itself fills: what it came to and was, its curves and pictures, its cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

from gamut.progress import duration
from gamut.report.document import (
    Block,
    Chart,
    Charts,
    Facts,
    Heading,
    Line,
    Picture,
    Pictures,
    Table,
    Text,
)
from gamut.report.recipes import changed_from_shipped, show
from gamut.report.told import Told
from gamut.runs.words import footnote, marked, number, of_bytes

PICTURES = 6 << 20  # bytes of a run's stored figures in all
FIRST = ("loss/", "train/", "validation/", "test/")  # curves that are shown at once
FOLDED = {
    "Teacher and student": ("teacher/", "student/", "mask/"),
    "Optimisation": ("lr", "weight_decay", "gradient_norm", "skipped_steps", "leaps"),
}
PROBES = {"knn": "k-NN, share that is right", "linear": "linear probe, share that is right"}
PNG = b"\x89PNG"
DRAWN = ("masks", "reconstruction")  # these figures come first, clip by clip
SPEED = ("clips_per_second", "wait_share", "memory_gb", "seconds_per_step")
STATES = {"killed": "ended without a word, as if killed", "stopped": "stopped, to be gone on with"}


def facts(run: Told) -> list[Block]:
    """What it came to, in a few numbers, and what to beware of."""
    stands = run.standing
    found = []
    if stands.metric and not math.isnan(stands.score):
        more = "as last logged" if not run.scored else ""
        if stands.interval:
            low, high = (number(stands.metric, end) for end in stands.interval)
            more = f"95 % interval {low} to {high}"
        elif len(run.scored) > 1:
            more = f"mean of {len(run.scored)} rounds, ± {number(stands.metric, stands.deviation)}"
        found.append((stands.metric, marked(number(stands.metric, stands.score), stands.seen), more))
    found.append(("state", stands.state, STATES.get(stands.state, "")))
    each = " in each round" if len(run.parts) > 1 else ""
    epochs = f"of {stands.epochs}{each}; " if stands.epochs else ""
    found.append(("epochs", str(stands.epoch), f"{epochs}{stands.step:,} steps"))
    again = restarts(run)
    found.append(("time", duration(lasted(run)), f"{again} restart{'s' * (again != 1)}"))
    if speed := median(run, "clips_per_second"):
        found.append(("speed", f"{speed:,.4g} clips/s", f"waited {median(run, 'wait_share'):.1%} of the time for data"))
    blocks: list[Block] = [Facts(found)]
    blocks += [Text(f"Damaged: {problem}.", warning=True) for problem in run.problems]
    if stands.seen:
        blocks.append(Text(f"{footnote(stands.seen)}.", True))
    return blocks


def curves(runs: Sequence[Told]) -> list[Block]:
    """Of every metric that changed: those of the loss and the scores at once, the others folded."""
    names = sorted({name for run in runs for part in run.parts for name in part.history.points})
    names = [name for name in names if name not in ("epoch", "probe/clips")]
    charts = {name: chart for name in names if (chart := _chart(runs, name, [name]))}
    if not charts:
        return []
    first = [name for name in charts if name == "loss" or name.startswith(FIRST)]
    blocks: list[Block] = [Heading("Curves"), *([Charts([charts[name] for name in first])] if first else [])]
    told = {*first, *(name for name in names if name.startswith("probe/"))}
    for title, prefixes in {**FOLDED, "Speed": SPEED}.items():
        own = [name for name in charts if name not in told and name.startswith(prefixes)]
        told |= {*own}
        blocks += [Charts([charts[name] for name in own], folded=title)] if own else []
    rest = [name for name in charts if name not in told]
    blocks += [Charts([charts[name] for name in rest], folded="The rest")] if rest else []
    probes = []
    for how, title in PROBES.items():
        own = [name for name in names if name.startswith(f"probe/{how}/")]
        probes += [chart] if (chart := _chart(runs, title, own)) else []
    return blocks + ([Heading("Probes"), Charts(probes)] if probes else [])


def _chart(runs: Sequence[Told], title: str, names: Sequence[str]) -> Chart | None:
    """A line a round, or a run; None where none of them changes."""
    lines, marks = [], []
    for run in runs:
        for part in run.parts:
            for name in names:
                steps, values = part.history.series(name)
                if len(values) > 1 and len({*values}) > 1:
                    words = [run.name] * (len(runs) > 1) + [part.path.name] * (len(run.parts) > 1)
                    words += [name.rpartition("/")[2]] * (len(names) > 1)
                    lines.append(Line(", ".join(words), steps, values))
            if len(runs) == 1:
                marks += [first for attempt, first, _ in part.attempts()[1:] if not math.isnan(first)]
    return Chart(title, lines, sorted({*marks})) if lines else None


def pictures(run: Told) -> list[Block]:
    """The last of each stored figure, but for the confusion, which a report draws itself."""
    found, left, room = [], 0, PICTURES
    for part in run.parts:
        names = sorted(part.history.figures, key=_place)
        for name in names:
            files = part.history.figures[name]
            if name == "confusion" or not files:
                continue
            step = max(files)
            try:
                png = (part.path / files[step]).read_bytes()
            except OSError:
                png = b""
            if png.startswith(PNG) and len(png) <= room:
                room -= len(png)
                found.append(Picture(f"{name}, step {step:,}", png, part.path / files[step]))
            else:
                left += 1
    missed = [Text(f"{left} figures are left out: they are not there any more, or too large.")] if left else []
    masked = any(one.title.startswith(DRAWN) for one in found)
    title = Heading("Masks and reconstructions" if masked else "Pictures")
    return [title, *([Pictures(found)] if found else []), *missed] if found or left else []


def _place(name: str) -> tuple[bool, str, str]:
    """In the order of figures: `masks-0` beside `reconstruction-0`."""
    drawn = name.startswith(DRAWN)
    return not drawn, name.rpartition("-")[2] if drawn else "", name


def cost(runs: Sequence[Told]) -> list[Block]:
    rows = []
    for run in runs:
        heard = 0.0
        for part in run.parts:
            steps, speeds = part.history.series("clips_per_second")
            pace = dict(zip(*part.history.series("seconds_per_step")))
            before = 0
            for step, speed in zip(steps, speeds):
                heard += speed * pace.get(step, 0.0) * (step - before)
                before = step
        hours = lasted(run) / 3600
        ranks = max((int(a.facts.get("ranks", 1)) for p in run.parts for a in p.history.attempts.values()), default=1)
        memory = max((v for p in run.parts for v in p.history.series("memory_gb")[1]), default=0.0)
        rows.append(
            [
                run.name,
                duration(3600 * hours),
                f"{hours * ranks:,.3g}",
                f"{heard:,.0f}",
                f"{median(run, 'clips_per_second'):,.4g}",
                f"{median(run, 'wait_share'):.1%}",
                str(restarts(run)),
                f"{memory:.3g} GB" if memory else "",
                of_bytes(run.standing.size),
            ]
        )
    head = ["run", "time", "hours x ranks", "clips heard", "clips/s", "waits", "restarts", "memory", "folder"]
    blocks: list[Block] = [Heading("Cost"), Table(head, rows)]
    if len(runs) == 1:
        blocks += [_attempts(runs[0])]
    return blocks


def _attempts(run: Told) -> Table:
    rows = []
    for part in run.parts:
        for attempt, first, seconds in part.attempts():
            began = time.strftime("%Y-%m-%d %H:%M", time.gmtime(attempt.started))
            facts = attempt.facts
            machine = f"{facts.get('host', '?')}, {facts.get('device', '?')}, {_ranks(facts)}"
            name = [part.path.name] if len(run.parts) > 1 else []
            end = attempt.status or ("goes on" if run.standing.state == "running" else "killed")
            step = "" if math.isnan(first) else f"{first:,.0f}"
            rows.append(
                [
                    *name,
                    str(attempt.number),
                    began,
                    end,
                    machine,
                    str(facts.get("git", "?"))[:10],
                    step,
                    duration(seconds),
                ]
            )
    head = ["round"] * (len(run.parts) > 1) + [
        "attempt",
        "began (UTC)",
        "ended",
        "machine",
        "git",
        "first step",
        "lasted",
    ]
    return Table(head, rows, folded="Attempts" if len(rows) > 6 else "", words=len(head) - 2)


def what_it_was(run: Told) -> list[Block]:
    """Recipe, data, code and machine."""
    recipe = dict(run.standing.recipe)
    last = [part.history.last_attempt for part in run.parts if part.history.last_attempt]
    facts = last[-1].facts if last else {}
    rows = [["folder", str(run.path)], ["stage", run.standing.stage]]
    sets = [str(recipe[key]) for key in recipe if key == "data" or (key.startswith("mixture.") and recipe[key])]
    rows += [["data", ", ".join(filter(None, sets)) or "?"], ["index", run.standing.index or "not recorded"]]
    rows += [[key, str(recipe[key])] for key in ("init", "features", "encoder") if recipe.get(key)]
    rows += [["code", str(facts.get("git", "not recorded"))], ["Python", str(facts.get("python", "?"))]]
    rows += [["machine", f"{facts.get('host', '?')}, {_ranks(facts)}, {facts.get('device', '?')}"]]
    blocks: list[Block] = [Heading("What it was"), Table(["", ""], rows, words=2)]
    if not recipe:
        return blocks
    base, changed = changed_from_shipped(recipe)
    if base:
        blocks.append(Heading(f"Recipe: {base}" + (", but for" if changed else ""), 3))
        if changed:
            shown = [[key, show(then), show(now)] for key, (then, now) in changed.items()]
            blocks.append(Table(["key", base, "this run"], shown, words=3))
    every = [[key, show(value)] for key, value in recipe.items()]
    return [*blocks, Table(["key", "value"], every, folded="The whole recipe", words=2)]


def _ranks(facts: dict[str, Any]) -> str:
    ranks = facts.get("ranks", "?")
    return f"{ranks} rank{'s' * (ranks != 1)}"


def lasted(run: Told) -> float:
    """Seconds of all attempts of all rounds."""
    return sum(seconds for part in run.parts for _, _, seconds in part.attempts())


def restarts(run: Told) -> int:
    return sum(max(0, len(part.history.attempts) - 1) for part in run.parts)


def median(run: Told, name: str) -> float:
    values = [value for part in run.parts for value in part.history.series(name)[1] if math.isfinite(value)]
    return statistics.median(values) if values else 0.0
