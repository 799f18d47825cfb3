"""VGGSound (H. Chen et al., "VGGSound: A Large-Scale Audio-Visual Dataset", ICASSP 2020)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gamut.errors import ShardError
from gamut.shards.convert.source import SPLIT, Listing, Missing, Record, Source
from gamut.shards.convert.table import number, rows
from gamut.shards.convert.youtube import Downloads, key_of_video

TABLE = "vggsound.csv"
COLUMNS = ("YouTube ID", "start seconds", "label", "train/test split")
SPLITS = {"train": (0,), "test": (1,)}


class VggSound(Source):
    """`vggsound.csv` (no header: YouTube ID, start seconds, label, split) and clips anywhere below.

    Clips are `YTID_000001.mp4` as the authors name them, or under any name that AudioSet's may have. Classes are the
    labels in alphabetical order, 309 of them. Columns: `split` (0 train, 1 test) and `start_ms`. Key: `YTID_000001`.
    """

    expects = f"{TABLE}, and clips named YTID_START.* (audio or video) anywhere below"

    def list(self, folder: Path) -> Listing:
        """One record a clip that is there, one `Missing` a clip that is not. Raises ShardError."""
        downloads = Downloads(folder)
        table = downloads.table(TABLE)
        if table is None:
            raise ShardError(
                f"{folder} has no {TABLE}. Download it from https://github.com/hche11/VGGSound; put it beside the "
                "clips."
            )
        names = sorted({fields[2] for _, fields in rows(table, COLUMNS)})
        classes = {name: number for number, name in enumerate(names)}
        ignored = Counter[str]()
        made = _records(folder, table, downloads, classes, ignored)
        return Listing("vggsound", tuple(names), (SPLIT, "start_ms"), made, ignored, {SPLIT: SPLITS})


def _records(
    folder: Path, table: Path, downloads: Downloads, classes: dict[str, int], ignored: Counter[str]
) -> Iterator[Record | Missing]:
    seen: dict[str, tuple[str, str]] = {}
    for line, (video, begin, label, split) in rows(table, COLUMNS):
        start = number(table, line, COLUMNS[1], begin)
        if split not in SPLITS:
            raise ShardError(f"{table}, line {line}: the split is {split!r}, not train or test.")
        key = f"{key_of_video(video)}_{int(start):06d}"
        if key in seen:
            if seen[key] != (label, split):
                raise ShardError(f"{table}, line {line}: {key} is listed twice, as {seen[key]} and {(label, split)}.")
            ignored["repeated clips"] += 1
            continue
        seen[key] = (label, split)
        file = downloads.take(video, start, strict=True)
        if file is None:
            yield Missing(key, f"{video}_{int(start):06d}.*", SPLITS[split][0])
            continue
        if file[1]:
            raise ShardError(
                f"{table}, line {line}: {folder / file[0]} would be two clips; put the start times into the file names."
            )
        yield Record(
            key=key,
            path=str(folder / file[0]),
            labels=(classes[label],),
            columns={SPLIT: SPLITS[split][0], "start_ms": round(start * 1000)},
            provenance={"file": file[0], "ytid": video, "start_seconds": start},
        )
    ignored.update(downloads.rest())
