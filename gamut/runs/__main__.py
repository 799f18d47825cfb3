"""`python -m gamut.runs`: what lies in a folder of runs, which is best, what may go, what is damaged."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gamut.commands import command, parser_of

FOLDER = Path("runs")
EXAMPLES = """examples:
    python -m gamut.runs list                                 every run in runs/: state, step, score, size, age
    python -m gamut.runs show runs/esc50                      attempts, checkpoints, scores, the weights it stands for
    python -m gamut.runs compare runs/esc50 runs/esc50_wide   recipes as a diff, scores side by side
    python -m gamut.runs best --by mAP
    python -m gamut.runs prune                                says what it would free, then asks
    python -m gamut.runs verify runs features                 hashes of checkpoints and caches; exit 1 for damage"""


@command
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return options.run(options)


def parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "runs",
        "Runs, checkpoints, feature caches and exported weights in any folder: list, show, compare, prune, verify.",
        EXAMPLES,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("list", help="every run under a folder, and the checkpoints and caches outside of runs")
    one.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="runs/ unless it is given")
    one.add_argument("--json", action="store_true", help="runs as JSON lines")
    one.set_defaults(run=_list)
    one = commands.add_parser("show", help="all about one run, round, checkpoint or cache")
    one.add_argument("place", type=Path)
    one.set_defaults(run=_show)
    one = commands.add_parser("compare", help="two runs: recipes as a diff, scores side by side")
    one.add_argument("one", type=Path)
    one.add_argument("other", type=Path)
    one.set_defaults(run=_compare)
    one = commands.add_parser("best", help="the best run by each main score, and its weights")
    one.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="runs/ unless it is given")
    one.add_argument("--by", metavar="SCORE", help="a score as `show` names it: mAP, F1, loss, probe/linear/cls")
    one.add_argument("--lowest", action="store_true", help="the lowest is best (so it is of a loss anyway)")
    one.set_defaults(run=_best)
    one = commands.add_parser(
        "prune",
        help="remove old checkpoints and leftovers; the newest good checkpoint and those kept for good stay",
    )
    one.add_argument("folders", type=Path, nargs="*", help="of runs or caches; runs/ unless one is given")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one.set_defaults(run=_prune)
    one = commands.add_parser(
        "verify", help="checkpoints, caches and exported weights by their hashes; exit 1 if damaged"
    )
    one.add_argument("folders", type=Path, nargs="*", help="runs/ unless one is given")
    one.set_defaults(run=_verify)
    return parser


def _list(options: argparse.Namespace) -> int:
    from gamut.runs.show import as_json, listed, print_list

    found, runs = listed(options.folder)
    if options.json:
        for one in runs:
            print(json.dumps(as_json(one)))
    else:
        print_list(options.folder, found, runs)
    return 0


def _show(options: argparse.Namespace) -> int:
    from gamut.runs.show import print_place

    print_place(options.place)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from gamut.runs.compare import print_comparison

    print_comparison(options.one, options.other)
    return 0


def _best(options: argparse.Namespace) -> int:
    from gamut.runs.compare import print_best

    print_best(options.folder, options.by, options.lowest)
    return 0


def _prune(options: argparse.Namespace) -> int:
    from gamut.runs.prune import carry_out, plan_of, print_plans
    from gamut.runs.words import of_bytes

    plans = [plan for folder in options.folders or [FOLDER] for plan in plan_of(folder)]
    size = print_plans(plans)
    if not any(plan.spare for plan in plans):
        print("There is nothing to remove.")
        return 0
    if not options.yes and not _agreed(f"Remove these {of_bytes(size)}? [y/N] "):
        print("Nothing was removed.")
        return 0
    freed, left = carry_out(plans)
    print(f"freed {of_bytes(freed)}")
    for line in left:
        print(line, file=sys.stderr)
    return 1 if left else 0


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _verify(options: argparse.Namespace) -> int:
    from gamut.runs.verify import print_verified

    return 1 if print_verified(options.folders or [FOLDER]) else 0


if __name__ == "__main__":
    sys.exit(main())
