"""From nothing to a fine-tuned classifier on this machine: what `make demo` runs.

Synthesises a small labelled corpus, converts it to shards, pretrains a tiny ASiT on three folds without labels, then
fine-tunes on few labelled clips, once from the pretrained teacher and once from scratch, and prints what was learnt:
the accuracy on the two folds that were not used for training. Every step is a printed command that you could type
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

from rich.console import Console
from rich.table import Table

from gamut.commands import command, parser_of
from gamut.errors import RunError
from gamut.shards import Index
from gamut.track.run import SUMMARY
from launchers.corpus import CLASSES, synthesise

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
    parser.add_argument("--clips", type=int, default=360)
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
    where = [f"data={shards}", f"run.folder={folder}"]
    run(console, "python", "pretrain/run.py", "demo", *where, "run.name=pretrain")
    init = f"init={folder / 'pretrain'}"
    run(console, "python", "finetune/run.py", "demo", *where, "run.name=pretrained", init)
    run(console, "python", "finetune/run.py", "demo", *where, "run.name=scratch")
    index = Index.open(shards)
    results = {name: json.loads((folder / name / SUMMARY).read_text()) for name in ("scratch", "pretrained")}
    table = Table(title="Results", show_header=False)
    table.add_row("classes", ", ".join(index.labels))
    for name, title in (("scratch", "accuracy from scratch"), ("pretrained", "accuracy pretrained")):
        table.add_row(title, f"[bold]{results[name]['mean']:.1%}[/] of {results[name]['clips']} unseen clips")
    table.add_row("runs", f"{folder}/pretrain, pretrained, scratch")
    table.add_row("figures", f"{folder}/pretrain/figures, {folder}/pretrained/figures")
    table.add_row("all runs, in a browser", f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db")
    table.add_row("time", f"{(time.monotonic() - began) / 60:.1f} minutes")
    console.print(table)
    if results["pretrained"]["mean"] <= results["scratch"]["mean"]:
        console.print("A few minutes of pretraining may not help. docs/evidence.md describes 45 minutes that did.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
