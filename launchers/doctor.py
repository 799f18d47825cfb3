"""Check everything that a run needs on this machine: each is fine, a warning, or broken, with the remedy.

Examples:
    python launchers/doctor.py
    python launchers/doctor.py --cluster jean-zay --data /scratch/shards --runs /scratch/runs
    srun --partition gpu --gpus 2 python launchers/doctor.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.commands import command, parser_of

if TYPE_CHECKING:
    from rich.console import Console

    from launchers.health import Check


@command
def main(argv: list[str] | None = None) -> int:
    """Print the report; 1 where something is broken, else 0."""
    options = _parser().parse_args(argv)

    from rich.console import Console

    from launchers.cluster import load_cluster
    from launchers.health import machine, places, ranks, slurm

    cluster = load_cluster(options.cluster, {})
    looks: list[tuple[str, Callable[[], list[Check]]]] = [
        ("the machine", machine.look),
        ("folders and MLflow", lambda: places.look(options.data, options.runs, options.mlflow)),
        ("two ranks", ranks.look),
        ("SLURM", lambda: slurm.look(cluster, options.cluster)),
    ]
    console, checks = Console(), []
    for what, look in looks:
        with console.status(f"checking {what}"):
            found = look()
        checks += found
        _print(console, found)
    return _sum_up(console, checks)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("doctor", __doc__)
    parser.add_argument("--cluster", metavar="NAME", help="compare SLURM with configs/clusters/NAME.yaml")
    parser.add_argument(
        "--data", type=Path, default=Path("shards"), metavar="DIR", help="folder of shards (%(default)s)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (%(default)s)")
    parser.add_argument(
        "--mlflow", default="auto", metavar="URI", help="as track.mlflow in a recipe: auto, off or a URI"
    )
    return parser


def _print(console: Console, checks: list[Check]) -> None:
    from rich.markup import escape

    from launchers.health import BROKEN, FINE, WARNING

    colours = {FINE: "green", WARNING: "yellow", BROKEN: "red"}
    for check in checks:
        state = f"[{colours[check.state]}]{check.state:<8}[/]"
        console.print(f"{state}{check.name:<26}{escape(check.found)}", soft_wrap=True, highlight=False)
        if check.state != FINE:
            console.print(f"{'':8}{'':<26}-> {escape(check.remedy)}", soft_wrap=True, highlight=False)


def _sum_up(console: Console, checks: list[Check]) -> int:
    from launchers.health import BROKEN, FINE, WARNING

    count = {state: sum(check.state == state for check in checks) for state in (FINE, WARNING, BROKEN)}
    console.print(f"\n{count[FINE]} fine, {count[WARNING]} warnings, {count[BROKEN]} broken", highlight=False)
    return int(count[BROKEN] > 0)


if __name__ == "__main__":
    sys.exit(main())
