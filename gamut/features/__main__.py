"""`python -m gamut.features`: extract, verify and describe caches of frozen encoders' features."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gamut.commands import command, parser_of
from gamut.errors import FeatureError
from gamut.features.folder import ABOUT, CACHE
from gamut.numbers import RATE
from gamut.progress import duration
from gamut.recipe.find import list_recipes
from gamut.recipe.schema import Recipe

if TYPE_CHECKING:
    from gamut.features.cache import FeatureCache
    from gamut.features.extract import Job

STAGE = "features"
SHOWN = 5  # clips that are left out, named at the end
EXAMPLES = """examples:
    python -m gamut.features extract whisper_tiny_esc50 init=models/whisper-tiny data=shards/esc50
    python -m gamut.features extract whisper_large_as20k init=models/large-v1.pt extract.dtype=int8 --dry-run
    python -m gamut.features extract asit_esc50 init=runs/asit_b data=shards/esc50
    python -m gamut.features verify features/whisper_tiny_esc50
    python -m gamut.features info features/whisper_tiny_esc50"""


@command
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["extract"]:  # by itself: argparse takes options among `key=value` words only without subcommands
        parser = extraction_parser()
        if not argv[1:]:
            parser.print_help(sys.stderr)
            return 2
        return _extract(parser.parse_intermixed_args(argv[1:]))
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "features",
        "Encode a shard set once with a frozen encoder, and keep every block's output for training heads.",
        EXAMPLES,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("extract", help="encode what is not in the cache yet; run it again to go on")
    one = commands.add_parser("verify", help="read every record against its checksum; exit 1 if any is damaged")
    one.add_argument("folder", type=Path, help="a cache, or a folder of caches with one in it")
    one.set_defaults(run=_verify)
    one = commands.add_parser("info", help="what caches hold, and what they were made of")
    one.add_argument("folder", type=Path, help="a cache, or a folder of caches")
    one.add_argument("--json", action="store_true", help="everything, as JSON lines")
    one.set_defaults(run=_info)
    return parser


def extraction_parser() -> argparse.ArgumentParser:
    """Of `extract`."""
    recipes = ", ".join(list_recipes(STAGE))
    parser = parser_of(
        "features extract",
        "Encode what is not in the cache yet. Run it again to go on; run it several times at once, on one "
        "machine or on many that share the folder, and they share the work.",
        f"recipes: {recipes}\n\n{EXAMPLES}",
        allow_abbrev=False,
    )
    add_extraction(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say how large it is and how long it takes; write nothing"
    )
    return parser


def add_extraction(parser: argparse.ArgumentParser) -> None:
    """The words that say what to extract."""
    parser.add_argument("recipe", help="the name of a recipe in configs/features, or a path to a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as init=models/whisper-tiny")
    parser.add_argument(
        "--mend", action="store_true", help="extract damaged shards again, and those with clips that were unusable"
    )


def _extract(arguments: argparse.Namespace) -> int:
    from gamut.recipe.load import load_recipe

    recipe = load_recipe(STAGE, arguments.recipe, arguments.overrides)

    from gamut.features.extract import prepare, require_room, run

    set_threads(recipe)
    job = prepare(recipe)
    print(describe(job))
    if arguments.dry_run:
        return 0
    if arguments.mend:
        mend(job.folder)
    made = job.begin()
    missing = 0 if made.finished else len(made.missing())
    require_room(made, missing)
    print(f"{missing} of {job.about.shards} shards are to be made" if missing else "all features exist already")
    print_extracted(run(job, made))
    return 0


def describe(job: Job) -> str:
    """What will be made, how large it is, and how long it takes on this device, by one clip tried."""
    about = job.about
    size = about.clips * about.record_bytes
    model, front = (", ".join(f"{name} {value}" for name, value in of.items()) for of in (about.model, about.front))
    cut = int((job.clips.samples > job.recipe.extract.seconds * RATE).sum())
    short = int((job.clips.samples < job.recipe.extract.seconds * RATE).sum())
    lines = [
        f"encoder: {model}",
        f"front end: {front}; {cut:,} clips are cut there, {short:,} are shorter and filled up",
        f"kept: {about.layers} layers x {about.steps} steps (of {about.pooling['steps']} each) x {about.dim}, "
        f"{about.dtype}: {about.record_bytes / 1e6:.3f} MB a clip",
        f"in all: {about.clips:,} clips, {size / 1e9:.2f} GB in {about.shards} shards; about "
        f"{duration(about.clips * job.seconds)} of encoding on one {'GPU' if job.device.type == 'cuda' else 'CPU'}",
        f"cache: {job.folder}",
    ]
    return "\n".join(lines)


def print_extracted(cache: FeatureCache) -> None:
    """The summary at the end."""
    info = cache.info
    print(
        f"features of {info.clips - info.holes:,} clips are in {info.folder}; storing them as {info.dtype} has cost "
        f"{max(info.error):.1e} of their size (rms, worst layer)"
    )
    if cache.holes:
        counted = ", ".join(f"{n:,} {why}" for why, n in Counter(hole.reason for hole in cache.holes).most_common())
        print(f"left out {info.holes:,} unusable clips: {counted}")
        for hole in cache.holes[:SHOWN]:
            print(f"  {hole.reason:11} {hole.key}")
        print(f"  all of them: {info.folder / 'cache.json'}")
    print(f"train a head on it: features={info.folder}")


def mend(folder: Path) -> None:
    """Take damaged shards and those with holes out of a finished cache, so that they are made anew."""
    from gamut.features.cache import FeatureCache, verify
    from gamut.features.store import Store

    if not (folder / ABOUT).exists():
        return
    try:
        cache = FeatureCache(folder)
    except FeatureError:
        (folder / CACHE).unlink(missing_ok=True)  # not finished, or its index is damaged: that is made from the shards
        return
    rows = {hole.row for hole in cache.holes}
    bad = {damage.shard for damage in verify(cache)}
    bad |= {int(place) // cache.about.per_shard for place, row in enumerate(cache.rows.tolist()) if row in rows}
    keys = [cache.key(place) for place in range(len(cache))]
    if bad:
        Store(cache.folder, cache.about, cache.clip_id, cache.rows, keys).unseal(sorted(bad))
        print(f"{len(bad)} shards are damaged or lack clips, and are extracted again")


def set_threads(recipe: Recipe) -> None:
    import torch

    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)


def _verify(arguments: argparse.Namespace) -> int:
    from gamut.features.cache import FeatureCache, verify

    cache = FeatureCache(arguments.folder)
    damages = verify(cache)
    for damage in damages:
        print(damage.what)
    if damages:
        print(
            f"{len(damages)} damages in {cache.folder}. Extract again with --mend, which repairs those shards.",
            file=sys.stderr,
        )
        return 1
    holes = f", {cache.info.holes} clips have none" if cache.info.holes else ""
    print(f"features of {cache.info.clips - cache.info.holes:,} clips are as they were written{holes}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from gamut.features.cache import FeatureCache

    folders = [arguments.folder]
    if not (arguments.folder / ABOUT).is_file():
        folders = sorted({path.parent for path in arguments.folder.rglob(ABOUT)}) or folders
    for folder in folders:
        try:
            cache = FeatureCache(folder)
        except FeatureError as error:
            if len(folders) == 1:
                raise
            print(error)
            continue
        info = cache.info
        if arguments.json:
            print(json.dumps({**vars(info), "folder": str(info.folder)}))
            continue
        size = (info.clips - info.holes) * info.record_bytes
        print(f"{info.folder}: {info.name}")
        print(f"  {info.clips:,} clips of index {info.index}, {size / 1e9:.3f} GB")
        print(
            f"  {info.layers} layers x {info.steps} steps x {info.dim} {info.dtype}: {info.record_bytes:,} bytes a clip"
        )
        for part in ("model", "front", "pooling"):
            print(f"  {part}: {', '.join(f'{name} {value}' for name, value in getattr(info, part).items())}")
        print(f"  error of storing: {max(info.error):.2e} of the features (rms, worst layer)")
        if info.holes:
            reasons = Counter(hole.reason for hole in cache.holes).most_common()
            counted = ", ".join(f"{count} {reason}" for reason, count in reasons)
            print(f"  {info.holes} clips have no features: {counted}; they are listed in {info.folder / CACHE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
