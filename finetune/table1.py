"""Whisper-AT's tables: what heads on frozen encoders score, and what they cost.

Every head is trained on every cache of features by finetune/run.py, none of them twice; parameters and multiply-adds of
the head are counted, for 527 classes unless the data say otherwise, with the speed-up over AST. With --grid each head's
learning rate is chosen first, on a part of the training folds.

OUT gets table1.md, table1.json, cost.png (score over cost) and, of several encoders, sizes.png (score over the
encoder). Without --features the costs alone are printed, of the paper's encoders.

Examples:
    python finetune/table1.py whisper_at_tltr512_esc50 --features large=features/whisper_large data=shards/esc50
    python finetune/table1.py whisper_at --heads dimensions --features large=features/whisper_large data=shards/audioset
    python finetune/table1.py whisper_at --heads tl_tr --features tiny=features/tiny --features base=features/base ...
    python finetune/table1.py --encoders tiny,base,small,medium,large --heads all
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

from rich.console import Console

from finetune.jobs import Job, choose_rates, run_all
from finetune.rounds import folds_of
from finetune.table1_report import Row, report
from gamut.commands import command, parser_of
from gamut.errors import RecipeError
from gamut.models.cost import ENCODERS, tagger_cost
from gamut.recipe import schema

HEADS = {  # Table 1, and Table 2's dimensions, of which the last is the encoder's own
    "all": ("last_mlp", "wa_mlp", "wa_tr", "tl_tr", "tl_tr_512"),
    "dimensions": ("tl_tr_128", "tl_tr_256", "tl_tr_512", "tl_tr_768", "tl_tr"),
}
HEAD = re.compile(r"(last_mlp|wa_mlp|wa_tr|tl_tr)(?:_(\d+))?")
CLASSES = 527  # AudioSet's, for which the paper counts


def heads(text: str) -> dict[str, schema.Head]:
    """`tl_tr,tl_tr_512` or a group's name -> heads by name. Raises RecipeError for one that does not exist."""
    found: dict[str, schema.Head] = {}
    for name in [one for part in text.split(",") if part for one in HEADS.get(part, (part,))]:
        match = HEAD.fullmatch(name)
        if match is None:
            raise RecipeError(
                f"There is no head {name!r}: use last_mlp, wa_mlp, wa_tr or tl_tr, followed by a dimension where "
                "the features are mapped to one (tl_tr_512), or all, or dimensions."
            )
        found[name] = schema.Head(match[1], int(match[2]) if match[2] else None)
    if not found:
        raise RecipeError("--heads names none.")
    return found


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("table1", __doc__)
    parser.add_argument("recipe", nargs="?", default="", help="of a head's training; without --features none")
    parser.add_argument("--features", action="append", default=[], metavar="NAME=CACHE", help="of an encoder")
    parser.add_argument("--encoders", default="large", help=f"for costs alone: {', '.join(ENCODERS)}")
    parser.add_argument("--heads", default="all", help="all (Table 1), dimensions (Table 2), or names: wa_tr,tl_tr_512")
    parser.add_argument("--grid", default="", metavar="1e-4,5e-4", help="learning rates; one or none: no choosing")
    parser.add_argument(
        "--choose-train", type=folds_of, default=None, metavar="1,2", help="folds to choose the rate on"
    )
    parser.add_argument("--choose-test", type=folds_of, default=None, metavar="3", help="folds to choose the rate by")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/table1"))
    parser.add_argument("overrides", nargs="*", help="a.b=c, passed on to every run")
    options = parser.parse_intermixed_args(argv)
    if "=" in options.recipe:
        options.overrides, options.recipe = [options.recipe, *options.overrides], ""
    wanted, rates = heads(options.heads), [rate for rate in options.grid.split(",") if rate]
    if not options.features:
        rows = costs(options.encoders, wanted)
    elif not options.recipe:
        raise RecipeError("Heads on --features need a recipe: finetune/run.py lists them; whisper_at is one.")
    elif len(rates) > 1 and not (options.choose_train and options.choose_test):
        raise RecipeError("--grid of several rates needs --choose-train and --choose-test: folds to choose by.")
    else:
        rows = scores(options, wanted, rates, Console())
    report(rows, options.out)
    return 0


def costs(encoders: str, wanted: dict[str, schema.Head]) -> list[Row]:
    """What each head costs on the paper's encoders."""
    rows = []
    for name in [one for one in encoders.split(",") if one]:
        if name not in ENCODERS:
            raise RecipeError(f"There is no encoder {name!r} to count; there are {', '.join(ENCODERS)}.")
        layers, dim = ENCODERS[name]
        rows += [Row(name, layers, dim, head, tagger_cost(one, layers, dim)) for head, one in wanted.items()]
    return rows


def scores(
    options: argparse.Namespace, wanted: dict[str, schema.Head], rates: list[str], console: Console
) -> list[Row]:
    """Train and score every head on every cache, first with each rate on the folds to choose by."""
    caches: dict[str, Path] = {}
    for one in options.features:
        name, equals, folder = one.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name in caches:
            raise RecipeError(f"--features takes NAME=CACHE, each name once, of letters, digits and ._-; not {one!r}.")
        caches[name] = Path(folder)

    from gamut.features import FeatureCache  # here: torch takes its time

    infos = {name: FeatureCache(folder).info for name, folder in caches.items()}
    pairs = [(encoder, head) for encoder in caches for head in wanted]

    def job(encoder: str, head: str, rate: str, *more: str) -> Job:
        name = f"{encoder}-{head}-{rate or 'recipe'}{'-choose' if more else ''}"
        one = wanted[head]
        words = [options.recipe, *options.overrides, f"run.folder={options.out}", f"run.name={name}"]
        words += [f"features={caches[encoder]}", f"head.kind={one.kind}", f"head.dim={one.dim or 'null'}"]
        words += [f"optim.lr={rate}"] if rate else []
        return Job(name, (*words, *more), options.out / name)

    where = (f"folds.train={options.choose_train}", f"folds.test={[options.choose_test]}", "folds.validation=null")
    if len(rates) > 1:
        console.print(f"Choosing learning rates: train on {options.choose_train}, look at {options.choose_test}.")

    def trial(pair: tuple[str, str], rate: str) -> Job:
        return job(*pair, rate, *where, "finetune.seeds=1")

    chosen = choose_rates(pairs, rates, trial, options.jobs, console)
    results = run_all([job(*pair, chosen[pair]) for pair in pairs], options.jobs, console)
    rows = []
    for (encoder, head), result in zip(pairs, results):
        info = infos[encoder]
        cost = tagger_cost(wanted[head], info.layers, info.dim, len(result["labels"]), info.steps)
        by_round = tuple(one["score"] for one in result["rounds"])
        rows.append(Row(encoder, info.layers, info.dim, head, cost, by_round, result["metric"], chosen[encoder, head]))
    return rows


if __name__ == "__main__":
    sys.exit(main())
