"""AudioSet (J. F. Gemmeke et al., "Audio Set: An ontology and human-labeled dataset for audio events", ICASSP 2017)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from gamut.errors import ShardError
from gamut.shards.convert.source import SPLIT, Listing, Missing, Record, Source
from gamut.shards.convert.table import class_labels, number, rows
from gamut.shards.convert.youtube import Downloads, key_of_video
from gamut.shards.labels import MID

# In this order: a clip in both training tables counts for the first.
TABLES = ("balanced_train_segments.csv", "unbalanced_train_segments.csv", "eval_segments.csv")
NAMES = {
    "as-20k": (0,),
    "as-2m": (0, 1),
    "balanced": (0,),
    "unbalanced": (1,),
    "evaluation": (2,),
}
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
CLASSES = "class_labels_indices.csv"


class AudioSet(Source):
    """The official segment tables, class_labels_indices.csv, and clips anywhere below, under any of the usual names.

    Columns: `split` (0 balanced, 1 unbalanced, 2 evaluation; as-20k is 0, as-2m is 0 and 1) and `start_ms`. Splits
    without their table are left out.
    """

    expects = f"{', '.join(TABLES)} (any of them), {CLASSES}, and clips named YTID.*, YTID_START.* or YYTID.*"

    def list(self, folder: Path) -> Listing:
        """One record a clip that is there, one `Missing` a clip that is not. Raises ShardError."""
        downloads = Downloads(folder)
        tables = {split: table for split, name in enumerate(TABLES) if (table := downloads.table(name))}
        classes = downloads.table(CLASSES)
        if not tables or classes is None:
            raise ShardError(
                f"{folder} has no {CLASSES if tables else ' or '.join(TABLES)}. Download AudioSet's tables from "
                "https://research.google.com/audioset/download.html and put them beside the clips."
            )
        names, numbers = class_labels(classes)
        ignored = Counter[str]()
        splits = {name: values for name, values in NAMES.items() if set(values) & tables.keys()}
        made = _records(folder, downloads, tables, numbers, ignored)
        return Listing("audioset", names, (SPLIT, "start_ms"), made, ignored, {SPLIT: splits})


def _records(
    folder: Path, downloads: Downloads, tables: Mapping[int, Path], numbers: Mapping[str, int], ignored: Counter[str]
) -> Iterator[Record | Missing]:
    evaluation: set[str] = set()  # the videos that training must not hear
    if 2 in tables:
        evaluation = {fields[0] for _, fields in rows(tables[2], COLUMNS, more=True)}
    for split, table in tables.items():
        for line, (video, begin, end, *labels) in rows(table, COLUMNS, more=True):  # more: labels without quotes
            start, stop = number(table, line, COLUMNS[1], begin), number(table, line, COLUMNS[2], end)
            if split != 2 and video in evaluation:
                raise ShardError(f"{table}, line {line}: {video} is also in {TABLES[2]}; a video must not be in both.")
            file = downloads.take(video, start, strict=False)
            if file is None:
                yield Missing(key_of_video(video), f"{video}.*", split)
                continue
            if file[1]:
                ignored["repeated clips"] += 1
                continue
            mids = [mid.strip() for mid in ",".join(labels).split(",") if mid.strip()]
            if strange := [mid for mid in mids if mid not in numbers and not MID.fullmatch(mid)]:
                raise ShardError(f"{table}, line {line}: the label {strange[0]!r} is no machine id, such as /m/09x0r.")
            known = {numbers[mid]: None for mid in mids if mid in numbers}
            ignored["labels missing in the class table"] += sum(mid not in numbers for mid in mids)
            yield Record(
                key=key_of_video(video),
                path=str(folder / file[0]),
                labels=tuple(known),
                columns={SPLIT: split, "start_ms": round(start * 1000)},
                provenance={"file": file[0], "ytid": video, "start_seconds": start, "end_seconds": stop},
            )
    ignored.update(downloads.rest())
