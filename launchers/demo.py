"""From nothing to a fine-tuned classifier on this machine: what `make demo` runs.

Synthesises a small labelled corpus and converts it to shards; pretrains a tiny ASiT on three of its five folds without
labels; probes what it knows beside the untrained network and the log-mel; then fine-tunes on four labelled clips a
class, from the pretrained teacher and from scratch, three seeds each, and prints what was learnt: the accuracy on the
two folds that nothing was trained on, and the difference with its interval. Every step is a printed command that you
could type yourself; run again, it resumes where it stopped.

Example:
    python launchers/demo.py --folder runs/demo
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from gamut.commands import command, parser_of
from gamut.errors import RunError
from gamut.shards import Index
from launchers.corpus import CLASSES, synthesise

ROOT = Path(__file__).resolve().parents[1]


def run(console: Console, *words: str) -> None:
    """Print a command and run it; its output goes to the terminal."""
    console.rule(f"[bold]$ {shlex.join(words)}", align="left")
    done = subprocess.run([sys.executable if word == "python" else word for word in words], cwd=ROOT, check=False)
    if done.returncode:
        raise RunError(f"`{shlex.join(words)}` ended with status {done.returncode}; its output above says why.")


def _results(folder: Path, labels: Sequence[str], minutes: float) -> Table:
    """What the probes and the comparison below `folder` have come to."""
    first, *_, last = (entry["scores"] for entry in json.loads((folder / "pretrain/probe/scores.json").read_text()))
    compared = json.loads((folder / "compare/comparison.json").read_text())
    table = Table(title="Results on folds 4 and 5, which nothing was trained on", show_header=False)
    table.add_row("classes", ", ".join(labels))
    for title, scores, kind in (
        ("log-mel, its mean and deviation", first, "logmel"),
        ("untrained network", first, "rows"),
        ("pretrained network", last, "rows"),
    ):
        table.add_row(f"linear probe: {title}", f"{scores[f'probe/linear/{kind}']:.1%}")
    for arm, title in (("scratch", "from scratch"), ("pretrained", "pretrained")):
        seeds = compared["arms"][arm]["accuracy"]
        shown = " ".join(f"{score:.1%}" for score in seeds)
        table.add_row(f"fine-tuned on few labels: {title}", f"[bold]{sum(seeds) / len(seeds):.1%}[/] ({shown})")
    gain = compared["difference"]
    mean, low, high = (100 * gain[name] for name in ("mean", "low", "high"))
    table.add_row("gain, 95 % interval", f"[bold]{mean:+.1f}[/] points ({low:+.1f}, {high:+.1f})")
    table.add_row("figures", f"{folder}/pretrain/figures, {folder}/pretrain/probe, {folder}/compare")
    table.add_row("all runs, in a browser", f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db")
    table.add_row("time", f"{minutes:.1f} minutes")
    return table


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("demo", __doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--clips", type=int, default=720)
    options = parser.parse_args(argv)
    console = Console()
    began = time.monotonic()
    folder = options.folder.resolve()
    corpus, shards = folder / "corpus", folder / "shards"
    listed = corpus / "meta" / "esc50.csv"
    if listed.exists():
        there = len(listed.read_text().splitlines()) - 1
        if there != options.clips:
            raise RunError(
                f"{corpus} holds {there} clips, not {options.clips}: give another --folder, or remove {folder}."
            )
    else:
        console.print(f"Synthesising {options.clips} clips of {len(CLASSES)} kinds into {corpus} ...")
        synthesise(corpus, options.clips)
    run(
        console, "python", "-m", "gamut.shards", "convert", "esc50", str(corpus), str(shards), "--clips-per-shard", "60"
    )
    data = f"data={shards}"
    pretrained, compared = folder / "pretrain", folder / "compare"
    run(console, "python", "pretrain/run.py", "demo_sparse", data, f"run.folder={folder}", "run.name=pretrain")
    probed = ["probe.train={fold: [1, 2, 3]}", "probe.test={fold: [4, 5]}"]
    run(console, "python", "-m", "gamut.probe", str(pretrained), *probed)
    arms = ["--arm", f"pretrained={pretrained}", "--arm", "scratch=", "--train", "1,2,3", "--test", "4,5"]
    jobs = ["--seeds", "3", "--jobs", "2", "--out", str(compared)]
    few = ["subset={per_class: 4}", "epochs=60"]
    run(console, "python", "finetune/compare.py", "demo", *arms, *jobs, data, *few)
    console.print(_results(folder, Index.open(shards).labels, (time.monotonic() - began) / 60))
    return 0


if __name__ == "__main__":
    sys.exit(main())
