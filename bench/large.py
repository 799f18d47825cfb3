"""Twenty million items: how soon libraries give the first, go on from a state, and how well they shuffle; ours beside.

    python bench/large.py                                    all of it: an hour on a busy two-core machine, 26 GB
    python bench/large.py --clips 200000                     minutes
    python bench/large.py --folder DIR --only gamut,litdata  sets and what was measured stay in DIR for another run

Each library (bench/library.py) is used as its documentation says, with its defaults, in processes of its own: one
builds the set, one opens it and draws 20,001 samples, one takes a state in the middle of an epoch, and one goes on
from it. `python bench/peers.py` makes their environments. Before each opening the files of the set are dropped from the
page cache. With --folder, a run that was killed goes on with what it lacks, and the table has all that is there.

An item is its own number: what is compared is indexing and shuffling. Shards have 1,000 items. Ours is an index without
tars, as of bench/planning.py; its first sample is a row of the first plan, made in the background, saved and mapped.

`build`: seconds to write the set; ~ scaled from the first 200,000 items where the rest is written by the bench, in the
same form, since the library takes long. Not compared: webdataset's tars and our index are made in bulk.
`first`: from the library's import to the first sample, by the clock; `CPU`: of all threads and processes.
`peak`: resident memory at most, of helpers too, until 20,001 samples are drawn; `imports`: before the set is opened.
`resume`: from the import to the first sample after the state; `after` so many draws. "replays": it draws them again.
`rank`: Spearman's correlation of neighbours' numbers, 0 of a perfect shuffle; `distance`: of them, by all items, 1/3.
`shards`: how many of them the 20,001 samples come from.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # started by its path, from wherever
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.library import A_SHARD, DRAWN, LIBRARIES
from bench.peers import HERE

WORKS = ("build", "first", "save", "resume")
HEADINGS = ("library", "items", "build s", "first s", "CPU s", "peak MB", "imports", "resume s", "after", "rank",
    "distance", "shards", "disk GB")  # fmt: skip
PEERS = HERE / ".peers"
EVERY = 0.05  # seconds between two looks at the memory of a process and its helpers


class LeftOut(Exception):
    """Why a library is not in the table."""


def python_of(name: str) -> str:
    """The interpreter of a library: its environment's, or this one where the library is installed beside ours."""
    own = PEERS / name / "bin" / "python"
    if own.exists():
        return str(own)
    if name != "gamut":
        try:
            importlib.metadata.version(LIBRARIES[name].package)
        except importlib.metadata.PackageNotFoundError:
            raise LeftOut(f"not installed: python bench/peers.py {name}") from None
    return sys.executable


def forget(folder: Path) -> None:
    """Drop the files of a set from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)  # what is not written yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    found = [process]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def memory(processes: list[int]) -> float:
    """MB that processes hold, what they share counted once."""
    kept = [Path(f"/proc/{one}/smaps_rollup").read_text() for one in processes]
    return sum(int(found[1]) for text in kept if (found := re.search(r"^Pss:\s+(\d+) kB", text, re.M))) * 1024 / 1e6


def together(process: subprocess.Popen[str]) -> float:
    """MB that a process held with its helpers at most, until it ends; 0 where it had none."""
    most = 0.0
    while process.poll() is None:
        time.sleep(EVERY)
        try:
            processes = family(process.pid)
            if len(processes) > 1:
                most = max(most, memory(processes))
        except OSError:  # one of them has ended
            continue
    return most


def work(name: str, what: str, folder: Path, items: int) -> dict[str, Any]:
    """Have a library do one of WORKS in a process of its own. Raises LeftOut with its error."""
    of = folder / (LIBRARIES[name].beside or name)
    if what != "build":
        forget(of)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [python_of(name), str(HERE / "library.py"), name, what, str(of), str(items)]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen(command, stdout=answer, stderr=said, text=True, env=os.environ | threads)
        most = together(process)
        if process.returncode:
            said.seek(0)
            errors = re.findall(r"^\S*(?:Error|Exception)\b.*", said.read(), re.MULTILINE)
            raise LeftOut(f"{what}: {errors[-1][:150]}" if errors else f"{what}: status {process.returncode}")
        answer.seek(0)
        return json.loads(answer.read()) | {"together": most}


def measure(name: str, folder: Path, items: int) -> dict[str, dict[str, Any]]:
    """What all WORKS of a library say; what is known of an earlier run is not measured again."""
    found = {}
    for what in WORKS:
        if LIBRARIES[name].resumes == "no" and what in ("save", "resume"):
            continue
        if what == "build" and LIBRARIES[name].beside:
            measured(LIBRARIES[name].beside, "build", folder, items)
        found[what] = measured(name, what, folder, items)
    return found


def measured(name: str, what: str, folder: Path, items: int) -> dict[str, Any]:
    path = folder / f"{name}-{what}.json"
    if not path.exists():
        told = work(name, what, folder, items)
        path.write_text(json.dumps(told))
    return json.loads(path.read_text())


def row(name: str, found: dict[str, dict[str, Any]], items: int) -> list[str]:
    """The cells of a library."""
    built, first = found["build"], found["first"]
    build = f"~{built['estimate']:,.0f}" if built["estimate"] else f"{built['seconds']:,.0f}"
    resume, after = "no", ""
    if "resume" in found:
        resume, after = f"{found['resume']['seconds']:.2f}", f"{found['save']['depth']:,}"
        if LIBRARIES[name].resumes == "replays":
            resume = f"replays: {resume}"
        if found["resume"]["same"] is False:
            resume += ", another sample"
    peak = max(first["memory"], first["together"])
    return [
        f"{LIBRARIES[name].package} {first['version']}", f"{items:,}",
        f"tars + {build}" if LIBRARIES[name].beside else build, f"{first['seconds']:.2f}", f"{first['processor']:.2f}",
        f"{peak:,.0f}", f"{first['imports']:,.0f}", resume, after, f"{first['correlation']:.3f}",
        f"{first['distance']:.3f}", f"{first['shards']:,}", f"{built['bytes'] / 1e9:.2f}",
    ]  # fmt: skip


def table(names: list[str], folder: Path, items: int) -> Table:
    """Measure, and show what came of it."""
    drawn = Table(title=f"{items:,} items, cold page cache")
    for heading in HEADINGS:
        drawn.add_column(heading, justify="left" if heading == "library" else "right", no_wrap=heading != "library")
    reasons = []
    for name in names:
        print(name, file=sys.stderr, flush=True)
        try:
            drawn.add_row(*row(name, measure(name, folder, items), items))
        except LeftOut as error:
            drawn.add_row(LIBRARIES[name].package, *[""] * (len(HEADINGS) - 1))
            reasons.append(f"{LIBRARIES[name].package}: left out, {error}")
    perfect = round(-(-items // A_SHARD) * -math.expm1(-min(items, DRAWN) / (items / A_SHARD)))
    notes = [f"A perfect shuffle: rank 0, distance 0.333, {perfect:,} shards."]
    for library in (LIBRARIES[name] for name in names):
        notes.append(f"{library.package}: {library.shuffling}{'; ' * bool(library.noted)}{library.noted}")
    drawn.caption = "\n".join([*reasons, *notes])
    drawn.caption_justify = "left"
    return drawn


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000_000, help="items a set (default 20,000,000)")
    parser.add_argument("--only", default=",".join(LIBRARIES), help=f"some of {', '.join(LIBRARIES)}")
    parser.add_argument("--folder", type=Path, help="where sets and results stay (default: a temporary one)")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := [name for name in names if name not in LIBRARIES]:
        raise SystemExit(f"There is no library {unknown[0]!r}; there are {', '.join(LIBRARIES)}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / str(options.clips)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = table(names, folder, options.clips)
    Console(width=max(Console().width, 170)).print(drawn)


if __name__ == "__main__":
    main()
