"""What pretrained networks know of two sounds at once: mixtures of ESC-10's recordings, and probes of them.

A mixture is the sum at equal power of two recordings of different classes of one fold, and has both labels. The
mixtures become shards; a linear probe learns from those of the training folds and is scored (mAP, and k-NN beside it)
on those of the others, next to the log-mel, the untrained network and chance. Recipes and all else go to
launchers/study.py, which pretrains with several seeds what is not there yet; without recipes the mixtures are made and
no more.

ESC10 has the layout of ESC-50: audio/ and meta/esc50.csv.

Examples:
    python launchers/mixtures.py ESC-10 --folder runs/mixtures
    python launchers/mixtures.py ESC-10 --folder runs/mixtures esc10/sparse esc10/sparse_mixtures --seeds 3 \\
        --kind rows --out runs/mixtures/study data=shards/esc10
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

import numpy as np
from rich.console import Console

from gamut.commands import command, positive
from gamut.errors import RunError
from gamut.files import write_text
from gamut.numbers import RATE
from gamut.shards import Index
from launchers import study
from launchers.demo import run
from launchers.events import lines, recordings

PEAK = 0.5  # of full scale, in every mixture
LISTED = "mixtures.csv"

Sounds = list[tuple[str, np.ndarray]]  # class, and float32 [n]


def pairs(sounds: Sounds, each: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """So many pairs of recordings of different classes, none twice. Raises RunError where there are not as many."""
    possible = [(a, b) for a in range(len(sounds)) for b in range(a + 1, len(sounds)) if sounds[a][0] != sounds[b][0]]
    if len(possible) < each:
        raise RunError(
            f"A fold has only {len(possible)} pairs of recordings of different classes: lower --each {each}."
        )
    return [possible[number] for number in random.permutation(len(possible))[:each]]


def added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """int16 [n]: the sum of two recordings, each at power 1 and free of its mean, as long as the longer one."""
    total = np.zeros(max(len(one), len(other)))
    for sound in (one, other):
        centred = sound - sound.mean(dtype=np.float64)
        total[: len(sound)] += centred / max(float(centred.std()), 1e-6)
    return np.rint(total * (PEAK * 32768 / max(float(np.abs(total).max()), 1e-6))).astype(np.int16)


def make(esc10: Path, folder: Path, each: int, seed: int = 0) -> None:
    """Write `each` mixtures of every fold, FOLD/FOLD-NUMBER.wav, and beside them mixtures.csv."""
    import soundfile

    clips: list[tuple] = [("path", "labels", "fold")]
    for fold, sounds in sorted(recordings(esc10).items()):
        (folder / str(fold)).mkdir(parents=True, exist_ok=True)
        for number, (a, b) in enumerate(pairs(sounds, each, np.random.default_rng([seed, fold]))):
            path = f"{fold}/{fold}-{number:04d}.wav"
            soundfile.write(folder / path, added(sounds[a][1], sounds[b][1]), RATE, subtype="PCM_16")
            clips.append((path, ";".join(sorted((sounds[a][0], sounds[b][0]))), fold))
    write_text(folder / LISTED, lines(clips, ","))  # written last: if it exists, all mixtures do


def chance(shards: Path, folds: str) -> float:
    """The mAP of scores that know nothing: the mean over classes of their share of the clips of these folds."""
    index = Index.open(shards)
    target = np.zeros((len(index), len(index.labels)), bool)
    for row in range(len(index)):
        target[row, index.label_ids(row)] = True
    return float(target[np.isin(np.asarray(index.columns["fold"]), [int(fold) for fold in folds.split(",")])].mean())


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("esc10", type=Path, metavar="ESC10")
    parser.add_argument("--folder", type=Path, default=Path("runs/mixtures"))
    parser.add_argument("--each", type=positive, default=200, help="mixtures of each fold (default: %(default)s)")
    parser.add_argument("--train", default="1,2,3", help="folds that the probe learns from (default: %(default)s)")
    parser.add_argument("--test", default="4,5", help="folds that it is scored on (default: %(default)s)")
    options, rest = parser.parse_known_args(argv)
    console, folder = Console(), options.folder.resolve()
    sounds, shards = folder / "sounds", folder / "shards"
    if not (sounds / LISTED).exists():
        console.print(f"Adding up {options.each} pairs of each fold in {sounds} ...")
        make(options.esc10, sounds, options.each)
    elif (there := (sounds / LISTED).read_text().count("\n1/")) != options.each:
        raise RunError(f"{sounds} holds {there} mixtures of each fold, not {options.each}: give another --folder.")
    words = ("python", "-m", "gamut.shards")
    run(console, *words, "convert", "csv", str(sounds / LISTED), str(shards))
    run(console, *words, "stats", str(shards))
    console.print(f"chance: mAP {chance(shards, options.test):.1%}", highlight=False)
    if not rest:
        return 0
    probed = [f"probe.{name}={{fold: [{folds}]}}" for name, folds in (("train", options.train), ("test", options.test))]
    return study.main([*rest, "--task", f"mixtures={shards}", *probed])


if __name__ == "__main__":
    sys.exit(main())
