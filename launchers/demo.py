"""From unlabelled sounds to a classifier that few labels suffice for, on this machine: what `make demo` runs.

Synthesises a small corpus and converts it to shards. The small model that comes with Gamut, which real sounds have
taught without labels, is pretrained further on three folds of it, without their labels. Then a classifier is trained on
few labelled clips, once on top of that and once with a network from scratch, three times each with other clips, and a
table tells how many clips of the other two folds each gets right. Every step is a printed command that you could type
yourself; run again, it resumes where it stopped.

Example:
    python launchers/demo.py --folder runs/demo
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

from rich.console import Console
from rich.table import Table

from gamut.commands import command, parser_of
from gamut.errors import RunError
from gamut.shards import Index
from launchers.corpus import synthesise
from launchers.scenes import SCENES

ROOT = Path(__file__).resolve().parents[1]


def run(console: Console, *words: str) -> None:
    """Print a command and run it; its output goes to the terminal."""
    console.rule(f"[bold]$ {shlex.join(words)}", align="left")
    done = subprocess.run([sys.executable if word == "python" else word for word in words], cwd=ROOT, check=False)
    if done.returncode:
        raise RunError(f"`{shlex.join(words)}` ended with status {done.returncode}; its output above says why.")


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("demo", __doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--clips", type=int, default=800)
    parser.add_argument("--labels", type=int, default=8, help="labelled clips a class")
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
        console.print(f"Synthesising {options.clips} clips of {len(SCENES)} kinds into {corpus} ...")
        synthesise(corpus, options.clips, kinds=tuple(SCENES))
    run(
        console, "python", "-m", "gamut.shards", "convert", "esc50", str(corpus), str(shards), "--clips-per-shard", "80"
    )
    pretrained, compared = folder / "pretrain", folder / "compare"
    where = [f"data={shards}", f"run.folder={folder}"]
    run(console, "python", "pretrain/run.py", "demo/sparse", *where, "run.name=pretrain")
    frozen = f"pretrained={shlex.quote(str(pretrained))} finetune.freeze=true optim.lr=1e-2"
    words = ["--arm", frozen, "--arm", "scratch= model.init_std=0.1"]
    words += ["--labels", str(options.labels), "--train", "1,2,3", "--test", "4,5", "--seeds", "3", "--jobs", "2"]
    run(console, "python", "finetune/compare.py", "demo/few", *words, "--out", str(compared), f"data={shards}")
    report = json.loads((compared / "comparison.json").read_text())
    index = Index.open(shards)
    unlabelled = len(index.where({"fold": [1, 2, 3]}))
    table = Table(title="Results on folds 4 and 5, of which nothing was heard in training", show_header=False)
    table.add_row("classes", ", ".join(index.labels))
    table.add_row("pretrained on", f"{unlabelled} clips without labels, from a model that heard ESC-10")
    table.add_row("labelled clips", f"{options.labels} a class, drawn three times")
    for arm, title in (("scratch", "from scratch"), ("pretrained", "pretrained, kept as it is")):
        of = report["arms"][arm]["accuracy"]
        each = " ".join(f"{100 * score:.1f}%" for score in of)
        table.add_row(f"accuracy {title}", f"[bold]{100 * sum(of) / len(of):.1f}%[/] ({each})")
    between = report["difference"]
    mean, low, high = (f"{100 * between[name]:+.1f}" for name in ("mean", "low", "high"))
    table.add_row("difference", f"{mean} points, 95 % interval {low} to {high}")
    table.add_row("time", f"{(time.monotonic() - began) / 60:.1f} minutes")
    console.print(table)
    if between["low"] <= 0:
        console.print("The interval holds zero: so few clips do not tell. docs/evidence.md has longer comparisons.")
    for title, what in (  # below the table, which would cut them: they are to be copied
        ("the sounds", f"{corpus}/audio, made here: no recordings"),
        ("figures", f"{pretrained}/figures, {compared}/comparison.png"),
        ("all runs, in a browser", f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db"),
        ("with sounds of your own", "docs/tutorials/own_sounds.md, in this environment: source .venv/bin/activate"),
    ):
        console.print(f"{title}: {what}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
