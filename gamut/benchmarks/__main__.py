"""python -m gamut.benchmarks: a shard set as a task of HEAR or X-ARES, and a model's score in a task of HEAR."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gamut.commands import command, parser_of

EXAMPLES = """examples:
  python -m gamut.benchmarks hear shards/esc10 tasks
  python -m gamut.benchmarks score tasks/esc10 runs/asit_b
  python -m gamut.benchmarks xares shards/esc10 tasks

With HEAR's and X-ARES' own programs: docs/using.md
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of("benchmarks", f"A{(__doc__ or '').partition(': a')[2]}", EXAMPLES)
    what = parser.add_subparsers(dest="what", required=True, metavar="hear | xares | score")
    for layout, about in (("hear", "a task in HEAR's layout"), ("xares", "a task in X-ARES' layout")):
        one = what.add_parser(layout, help=about, description=f"Write the labelled clips of a shard set as {about}.")
        one.add_argument("shards", type=Path, metavar="SHARDS", help="an indexed shard set with labels")
        one.add_argument("folder", type=Path, metavar="DST", help="the folder of tasks that it goes to")
        one.add_argument("--name", help="of the task (default: the name of the set's folder)")
        one.add_argument("--column", default="", help="which one tells folds or splits (default: fold, else split)")
        if layout == "hear":
            one.add_argument(
                "--events",
                action="store_true",
                help="a task of events, for sets whose labels have onset and offset (default: of whole clips)",
            )
    one = what.add_parser(
        "score",
        help="a model's score in a task of HEAR",
        description="k-NN and logistic regression on scene embeddings.",
    )
    one.add_argument("task", type=Path, metavar="TASK", help="the folder of a task of HEAR")
    one.add_argument("model", metavar="MODEL", help="a run, a checkpoint, an exported folder, public weights")
    one.add_argument("--json", action="store_true", help="print {name: share} instead")
    options = parser.parse_args(argv)
    if options.what == "score":
        return _score(options.task, options.model, options.json)

    from gamut.benchmarks.clips import read_labelled
    from gamut.benchmarks.layouts import write_hear, write_xares

    clips = read_labelled(options.shards, options.column, timed=getattr(options, "events", False))
    write = write_hear if options.what == "hear" else write_xares
    place = write(clips, options.folder, options.name or options.shards.resolve().name)
    counts = ", ".join(f"{split}: {len(rows)}" for split, rows in clips.splits.items())
    lack = "times of all labels" if clips.timed else "a label"
    without = f"; {clips.unlabelled} without {lack} left out" if clips.unlabelled else ""
    print(
        f"{len(clips.index.labels)} classes, clips of {'folds ' if clips.folds else ''}{counts}{without}",
        file=sys.stderr,
    )
    print(place)
    return 0


def _score(folder: Path, place: str, as_json: bool) -> int:
    from gamut.benchmarks.hear import load_model
    from gamut.benchmarks.score import read_task, score

    task = read_task(folder)
    model = load_model(place)
    found = score(task, model)
    if as_json:
        print(json.dumps(found))
        return 0
    how = f"in {len(task.splits)} folds" if task.folds else "after training on train and valid"
    print(f"{task.name}: {found['clips']:.0f} clips scored {how}, by {model.model.weights}", file=sys.stderr)
    print(f"k-NN {found['knn']:.1%}, linear {found['linear']:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
