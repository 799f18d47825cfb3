"""Events with times, from ESC-10's recordings to their scores, in one command.

Mixtures of 5 s are made of the recordings, up to three at random times over noise, those of a fold's mixtures from
that fold alone; with their onsets and offsets they become shards. Then the recipe esc10_events is trained with several
seeds, once on the events and once on their classes alone (finetune.weight_frames=0), and both are scored on the
mixtures of fold 5; some minutes of a core a run. Results that exist are not computed again. Needs the extra
`events`: pip install '.[events]' in the clone.

ESC10 has the layout of ESC-50: audio/ and meta/esc50.csv.

Example:
    python launchers/events.py ESC-10 --folder runs/events --seeds 3
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

import numpy as np
from rich.console import Console
from rich.table import Table

from finetune.jobs import Job, run_all
from gamut.audio import blocks
from gamut.audio.segment import load
from gamut.commands import command, positive
from gamut.errors import RunError
from gamut.files import write_text
from gamut.numbers import RATE
from gamut.shards.convert import SOURCES
from gamut.shards.convert.source import Record
from launchers.demo import run

SECONDS = 5.0  # of a mixture
MOST = 3  # events in one
LONGEST = (0.5, 3.0)  # seconds: an event is cut at a length drawn from here
SHORTEST = 0.25  # seconds, as in DESED
GAP = 0.5  # seconds of silence that end one
LEVEL = (10.0, 25.0)  # dB above the noise
NOISE = 0.01  # of full scale
METRICS = ("mAP", "event_f1", "segment_f1", "psds1", "psds2")
TRAINED = {"strong": (), "weak": ("finetune.weight_frames=0",)}


def first_event(waveform: np.ndarray) -> np.ndarray:
    """The first stretch of a recording without a pause: float32 [n], from what is within 30 dB of its loudest 20 ms on
    to the first `GAP` of less; at least `SHORTEST` of it, if there is as much."""
    size = RATE // 50
    frames = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size)
    level = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(level > 10 ** (-30 / 20) * level.max())
    if not len(loud):
        return waveform
    pauses = np.flatnonzero(np.diff(loud) * 0.02 > GAP)
    last = loud[pauses[0]] if len(pauses) else loud[-1]
    first = loud[0] * size
    return waveform[first : max((last + 1) * size, first + round(SHORTEST * RATE))]


def mixture(sounds: list[tuple[str, np.ndarray]], random: np.random.Generator) -> tuple[np.ndarray, list]:
    """(int16 [SECONDS * RATE], (onset, offset, class) of each event in it, in seconds)."""
    total = round(SECONDS * RATE)
    noise = np.cumsum(random.normal(size=total))  # brown, which falls off as street and wind do, and a little white
    noise = noise - np.convolve(noise, np.ones(801) / 801, "same")
    whole = NOISE * (noise / noise.std() + 0.3 * random.normal(size=total))
    events = []
    for which in random.integers(len(sounds), size=int(random.integers(1, MOST + 1))).tolist():
        name, sound = sounds[which]
        sound = sound[: round(random.uniform(*LONGEST) * RATE)]
        fade = np.minimum(1.0, np.minimum(np.arange(len(sound)), np.arange(len(sound))[::-1]) / (0.01 * RATE))
        loudness = 10 ** (random.uniform(*LEVEL) / 20) * NOISE / max(float(np.sqrt((sound**2).mean())), 1e-6)
        onset = int(random.integers(total - len(sound) + 1))
        whole[onset : onset + len(sound)] += sound * fade * loudness
        events.append((onset / RATE, (onset + len(sound)) / RATE, name))
    return np.clip(np.rint(whole * 32768), -32768, 32767).astype(np.int16), sorted(events)


def recordings(esc10: Path) -> dict[int, list[tuple[str, np.ndarray]]]:
    """The class and the waveform, float32 [n] in [-1, 1), of each recording of each fold."""
    listing = SOURCES["esc50"]().list(esc10)
    folds: dict[int, list[tuple[str, np.ndarray]]] = {}
    for record in listing.records:
        if isinstance(record, Record):
            sound = blocks.waveform(load(Path(record.path), record.segment), record.key).samples / np.float32(32768)
            folds.setdefault(record.columns["fold"], []).append((listing.labels[record.labels[0]], sound))
    return folds


def mix(esc10: Path, folder: Path, each: int, seed: int = 0) -> None:
    """Write `each` mixtures of every fold, FOLD/NUMBER.wav, and beside them mixtures.csv and events.tsv."""
    import soundfile

    clips: list[tuple] = [("path", "labels", "fold")]
    events: list[tuple] = [("filename", "onset", "offset", "event_label")]
    for fold, whole in sorted(recordings(esc10).items()):
        sounds = [(name, first_event(sound)) for name, sound in whole]
        random = np.random.default_rng([seed, fold])
        (folder / str(fold)).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            path = f"{fold}/{fold}-{number:04d}.wav"
            waveform, heard = mixture(sounds, random)
            soundfile.write(folder / path, waveform, RATE, subtype="PCM_16")
            clips.append((path, ";".join(sorted({name for *_, name in heard})), fold))
            events += [(path, f"{onset:.4f}", f"{offset:.4f}", name) for onset, offset, name in heard]
    write_text(folder / "events.tsv", lines(events, "\t"))
    write_text(folder / "mixtures.csv", lines(clips, ","))  # written last: if it exists, all mixtures do


def lines(rows: list[tuple], delimiter: str) -> str:
    """A table as text, a row a line."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("esc10", type=Path, metavar="ESC10")
    parser.add_argument("--folder", type=Path, default=Path("runs/events"))
    parser.add_argument("--each", type=positive, default=400, help="mixtures of each fold (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--jobs", type=positive, default=2, help="runs side by side (default: %(default)s)")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides of the recipe esc10_events")
    options = parser.parse_intermixed_args(argv)
    console, folder = Console(), options.folder.resolve()
    sounds, shards = folder / "mixtures", folder / "shards"
    listed = sounds / "mixtures.csv"
    if not listed.exists():
        console.print(f"Mixing {options.each} times {SECONDS:g} s of each fold into {sounds} ...")
        mix(options.esc10, sounds, options.each)
    elif (there := listed.read_text().count("\n1/")) != options.each:
        raise RunError(f"{sounds} holds {there} mixtures of each fold, not {options.each}: give another --folder.")
    words = ("python", "-m", "gamut.shards")
    run(console, *words, "convert", "csv", str(listed), str(shards), "--events", str(sounds / "events.tsv"))
    run(console, *words, "stats", str(shards))
    where = (f"data={shards}", f"run.folder={folder}", f"finetune.seeds={options.seeds}")
    jobs = [
        Job(name, ("esc10_events", *where, f"run.name={name}", *own, *options.words), folder / name)
        for name, own in TRAINED.items()
    ]
    console.print(f"Training, {options.jobs} at a time; {folder}/NAME/output.log says how far it is ...")
    table = Table(title=f"Fold 5, mean and deviation over {options.seeds} seeds")
    for column in ("trained on", *METRICS):
        table.add_column(column)
    for job, summary in zip(jobs, run_all(jobs, options.jobs, console)):
        values = [np.array([one["metrics"][metric] for one in summary["rounds"]]) for metric in METRICS]
        spreads = [f" ± {one.std():.3f}" if len(one) > 1 else "" for one in values]
        table.add_row(job.name, *(f"{one.mean():.3f}{spread}" for one, spread in zip(values, spreads)))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
