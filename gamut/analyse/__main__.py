"""What frozen encoders know about sounds, layer by layer, and how much sounds degrade speech recognition.

    python -m gamut.analyse layers shards/esc50 features/whisper_large_esc50 features/hubert_esc50
    python -m gamut.analyse noise shards/librispeech shards/esc50 models/whisper-large --layers analysis/layers.json

`layers`: a linear probe on every layer of each cache of features, a fold at a time: layers.md, layers.png (score by
layer) and best_layers.png (the best layer of each class). `noise`: speech mixed with sounds of every class at several
signal-to-noise ratios, and the word error rate of each model: noise.md, noise.png, and with --layers the F1 of each
class against the errors that it adds, f1_against_wer.png.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gamut.commands import command, parser_of
from gamut.errors import RunError, ShardError
from gamut.progress import Progress
from gamut.shards import Index
from gamut.track.tables import markdown, write

if TYPE_CHECKING:
    from gamut.analyse.noise import Transcriber


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("analyse", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    layers = commands.add_parser("layers", help="a linear probe on every layer")
    layers.add_argument("data", type=Path, help="the shard set that was encoded")
    layers.add_argument("caches", type=Path, nargs="+", metavar="CACHE")
    layers.add_argument(
        "--names", default="", help="names of the encoders, separated by commas (default: those of the folders)"
    )
    layers.add_argument("--folds", default="fold", help="a column of the index: cross-validation over its values")
    layers.add_argument("--out", type=Path, default=Path("analysis"))
    noise = commands.add_parser("noise", help="word error rates of speech among sounds")
    noise.add_argument("speech", type=Path, help="a shard set with transcripts, or of single words")
    noise.add_argument("sounds", type=Path, help="a shard set of sounds with classes")
    noise.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="Whisper, or HuBERT or wav2vec2 with CTC")
    noise.add_argument(
        "--names", default="", help="names of the models, separated by commas (default: those of the folders)"
    )
    noise.add_argument("--snr", default="-20,-15,-10,-5,0,5,10,15,20", help="dB, separated by commas: --snr=-10,0,10")
    noise.add_argument(
        "--increase",
        default="-10,20",
        help="two ratios: the second figure shows the WER at the first less that at the second",
    )
    noise.add_argument("--utterances", type=int, default=40)
    noise.add_argument("--per-class", type=int, default=40, help="sounds of each class")
    noise.add_argument(
        "--layers", type=Path, default=None, help="a layers.json, for the F1 of each class by its first encoder"
    )
    noise.add_argument("--tokens", type=Path, default=None, help="a folder with the tokenizer, for a .pt model")
    noise.add_argument("--language", default="en", help="language of multilingual Whispers")
    noise.add_argument(
        "--texts",
        choices=("whisper", "published"),
        default="whisper",
        help="how texts are made alike: by Whisper's normaliser, or as Whisper-AT: upper case, no punctuation",
    )
    noise.add_argument(
        "--decoding",
        choices=("whisper", "greedy"),
        default="whisper",
        help="of a Whisper: again at higher temperatures where a text repeats itself, as its authors do; or once",
    )
    noise.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    noise.add_argument("--batch", type=int, default=8, help="sounds at a time")
    noise.add_argument("--out", type=Path, default=Path("analysis"))
    options = parser.parse_args(argv)
    return (probe if options.command == "layers" else recognise)(options)


def named(paths: list[Path], names: str) -> list[str]:
    """A name for each path: those given, else the folder names, or the whole paths where those are not unique."""
    given = [name for name in names.split(",") if name]
    if given and len(given) != len(paths):
        raise RunError(
            f"--names has {len(given)} names for {len(paths)} folders: give one for each, separated by commas."
        )
    own = [path.resolve().name for path in paths]
    given = given or (own if len(set(own)) == len(own) else [str(path) for path in paths])
    if len(set(given)) < len(given):
        raise RunError("The names must differ: give --names, separated by commas.")
    return given


def probe(options: argparse.Namespace) -> int:
    from gamut.analyse import pictures
    from gamut.analyse.layers import mean_vectors, probe_layers
    from gamut.features import FeatureCache
    from gamut.probe.labelled import labelled
    from gamut.recipe import schema
    from gamut.recipe.cli import require_data
    from gamut.shards.index import no_column
    from gamut.shards.joined import open_sets

    index = open_sets([require_data(schema.Recipe(data=str(options.data), dataset=""))])
    if len(index.label) and options.folds not in index.columns:
        raise ShardError(f"{no_column(index, options.folds)} Columns of another name are given with --folds COLUMN.")
    everything = schema.Probe(data=str(options.data), folds=options.folds, clips=sys.maxsize)
    clips, why = labelled(schema.Recipe(probe=everything))
    if clips is None:
        raise RunError(f"There is nothing to probe: {why}.")
    names, found = named(options.caches, options.names), []
    caches = [FeatureCache(folder) for folder in options.caches]
    for cache in caches:
        cache.check_index(clips.index.fingerprint)
    for name, cache in zip(names, caches):
        vectors = mean_vectors(cache, np.asarray(clips.clips.row))

        def told(layer: int, score: float, name: str = name) -> None:
            print(f"{name}  layer {layer + 1}: {score:.1%}", flush=True)

        found.append(probe_layers(name, vectors, clips.target, clips.fold, clips.labels, cache.info.blocks, told))
    deepest = max(len(one.scores) for one in found)
    head = [
        "layer",
        *(f"{one.name}, {one.metric}" for one in found),
        *(f"{one.name}, classes with their best F1" for one in found),
    ]
    rows = []
    for layer in range(deepest):
        there = [layer < len(one.scores) for one in found]
        scores = [f"{one.scores[layer]:.1%}" if has else "" for one, has in zip(found, there)]
        best = [str(int((one.best == layer).sum())) if has else "" for one, has in zip(found, there)]
        rows.append([str(layer + 1), *scores, *best])
    table = f"Linear probe on every layer: {clips}.\n\n{markdown(head, rows)}"
    plots = {"layers": pictures.by_layer(found), "best_layers": pictures.best_layers(found)}
    write(options.out, "layers", table, {"data": str(options.data), "encoders": [o.content() for o in found]}, plots)
    return 0


def _shown(hear: Transcriber, progress: Progress) -> Transcriber:
    def heard(sounds: list[np.ndarray]) -> list[str]:
        texts = hear(sounds)
        progress.add(len(sounds))
        return texts

    return heard


def recognise(options: argparse.Namespace) -> int:
    from gamut.analyse import pictures
    from gamut.analyse.noise import material, measure, normal, plain
    from gamut.analyse.transcribe import transcriber

    for name in ("utterances", "per_class", "batch"):
        if getattr(options, name) < 1:
            raise RunError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be 1 or more.")
    ratios, names = numbers(options.snr, "--snr"), named(options.models, options.names)
    low, high = numbers(options.increase, "--increase", 2)
    f1 = classes_of(options.layers) if options.layers else None
    if f1 is not None and not {low, high} <= set(ratios):
        raise RunError(f"The ratios of --increase, {low:g} and {high:g} dB, must both be in --snr ({options.snr}).")
    parts = material(Index.open(options.speech), Index.open(options.sounds), options.utterances, options.per_class)
    said = f"{len(parts.speech)} utterances, {len(parts.labels)} classes of sound, {len(ratios)} ratios"
    print(said, flush=True)
    opened = functools.partial(
        transcriber,
        tokens=options.tokens,
        language=options.language,
        precision=options.precision,
        decoding=options.decoding,
    )
    for path in options.models:
        opened(
            path
        )  # and discard it: so an error in one is found before hours are spent on another; only one is held at a time
    alike = plain if options.texts == "published" else functools.partial(normal, english=options.language == "en")
    found, mixtures = {}, len(parts.speech) * (1 + len(ratios) * len(parts.labels))
    for name, path in zip(names, options.models):

        def told(ratio: float, rate: float, name: str = name) -> None:
            print(f"{name}  {ratio:g} dB: WER {rate:.1%}", flush=True)

        with Progress(name, mixtures, "sounds") as progress:
            found[name] = measure(parts, ratios, _shown(opened(path), progress), options.batch, told, alike)
    silent = next(iter(found.values())).silent
    clean = {name: one.clean[0] / max(one.clean[1], 1) for name, one in found.items()}
    rows = [["without noise", *(f"{rate:.1%}" for rate in clean.values())]]
    rows += [
        [f"{ratio:g} dB", *(f"{one.rates[row]:.1%}" for one in found.values())] for row, ratio in enumerate(ratios)
    ]
    table = f"Word error rate: {said}.\n\n{markdown(['signal to noise', *names], rows)}"
    if silent:
        table += f"\n\nIn {silent} mixtures the sound was silent, so that they are the speech alone."
    plots = {"noise": pictures.error_rates(ratios, {name: list(one.rates) for name, one in found.items()}, clean)}
    content = {
        "snr": ratios,
        "texts": options.texts,
        "decoding": options.decoding,
        "labels": parts.labels,
        "silent": silent,
        "models": {
            name: {"clean": one.clean, "wrong": one.wrong.tolist(), "words": one.words.tolist()}
            for name, one in found.items()
        },
    }
    if f1 is not None:
        increase = {
            name: one.by_class[ratios.index(low)] - one.by_class[ratios.index(high)] for name, one in found.items()
        }
        shared = [label for label in parts.labels if label in f1]
        if not shared:
            raise RunError(f"{options.layers} and {options.sounds} have no classes in common.")
        at = [parts.labels.index(label) for label in shared]
        of = np.array([f1[label] for label in shared])
        head = ["class", "F1", *(f"{name}, WER {low:g} dB - WER {high:g} dB" for name in names)]
        rows = [
            [label, f"{of[n]:.2f}", *(f"{100 * increase[name][at[n]]:+.1f}" for name in names)]
            for n, label in enumerate(shared)
        ]
        table += "\n\nF1 of each class by the probe on the last layer, and the WER that its sounds add, in points:\n\n"
        table += markdown(head, rows)
        title = f"{names[0]}: WER at {low:g} dB less WER at {high:g} dB"
        plots["f1_against_wer"] = pictures.f1_against_errors(of, increase[names[0]][at], shared, title)
        content["f1"] = {label: float(value) for label, value in zip(shared, of)}
    write(options.out, "noise", table, content, plots)
    return 0


def numbers(text: str, option: str, count: int | None = None) -> list[float]:
    """`-10,20` -> [-10.0, 20.0]; raises RunError for anything else, and for another count."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or (count is not None and len(found) != count) or len(set(found)) < len(found):
        raise RunError(f"{option} takes {count or 'different'} numbers separated by commas, not {text!r}.")
    return found


def classes_of(path: Path) -> dict[str, float]:
    """F1 of each class by the last layer of the first encoder in a layers.json. Raises RunError."""
    try:
        first = json.loads(path.read_bytes())["encoders"][0]
        return dict(zip(first["labels"], first["f1"][-1], strict=True))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise RunError(f"{path} is not the layers.json of `python -m gamut.analyse layers` ({error}).") from error


if __name__ == "__main__":
    sys.exit(main())
