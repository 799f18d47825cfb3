"""python -m gamut.report: a run as one page that needs nothing but itself, and as Markdown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gamut.commands import command, parser_of
from gamut.errors import RecipeError

ABOUT = """A run as one page that needs nothing but itself, and the same as Markdown: what it came to and what it
was, curves of all its attempts, probes, pictures, confusion, classes, calibration, the worst errors to listen to, and
what it cost. Whatever a run does not have, or not any more, is left out. Several runs stand side by side: the
difference of each to the first with a paired bootstrap interval, and what differs in their recipes.
"""
EXAMPLE = """examples:
  python -m gamut.report runs/esc10
  python -m gamut.report runs/scratch runs/pretrained --out both
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.out is not None and arguments.out.suffix in (".html", ".md") and not arguments.out.is_dir():
        raise RecipeError(
            f"--out {arguments.out} is called like a file: name a folder, which gets both of the report's."
        )

    from gamut.report.write import report  # here: what it needs takes its time, and --help does without

    for file in report(arguments.run, arguments.out):
        print(file)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("report", ABOUT, EXAMPLE)
    parser.add_argument("run", metavar="RUN", type=Path, nargs="+", help="a run's folder, or one of its rounds")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="where to write; without it into the run's folder, or for several into `report`",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
