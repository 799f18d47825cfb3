"""python -m gamut.export: a trained model as a folder that other programs open."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gamut.commands import command, parser_of

FORMATS = {
    "safetensors": "weights that say all about themselves, for Gamut: tag, init, features",
}
EXAMPLE = """examples:
  python -m gamut.export runs/esc50/test-1-seed-0 --to safetensors exported/esc50
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)

    from gamut.export.write import export  # here: torch takes its time, and --help does without

    for line in export(arguments.run, arguments.to, arguments.folder):
        print(line, file=sys.stderr)
    print(arguments.folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:12} {what}" for name, what in FORMATS.items())
    about = f"{__doc__.partition(': ')[2].capitalize()}\n\nformats:\n{formats}"
    parser = parser_of("export", about, EXAMPLE)
    parser.add_argument(
        "run", metavar="RUN", help="a run, one of its rounds, a checkpoint, or an exported folder (of safetensors)"
    )
    parser.add_argument("folder", metavar="DST", type=Path, help="the folder to make")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True, help="the format")
    return parser


if __name__ == "__main__":
    sys.exit(main())
