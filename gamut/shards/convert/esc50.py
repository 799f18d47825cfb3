"""ESC-50 and its subset ESC-10 (K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", ACM MM 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gamut.errors import ShardError
from gamut.shards.convert.source import Listing, Record, Source, key_of
from gamut.shards.convert.table import integer, records

SUFFIXES = (".wav", ".ogg", ".flac")  # the official files are .wav; ESC-10 was published as .ogg
NEEDED = ("filename", "fold", "target", "category")


class Esc50(Source):
    """`audio/FOLD-SRC-TAKE-TARGET.wav` (or .ogg, .flac) and `meta/esc50.csv`; columns `fold` (1 to 5) and `target`.

    The class table holds the categories present, in order of their ESC-50 target, so ESC-10 has ten classes.
    """

    expects = "the unpacked ESC-50 or ESC-10: audio/*.wav or *.ogg, and meta/esc50.csv"

    def list(self, folder: Path) -> Listing:
        """One record a row of the CSV. Raises ShardError naming the file and line that are wrong."""
        audio, table = folder / "audio", folder / "meta" / "esc50.csv"
        for path, there in ((audio, audio.is_dir()), (table, table.is_file())):
            if not there:
                raise ShardError(
                    f"{folder} does not have the layout of ESC-50: it has no {path.relative_to(folder)}. "
                    "Give the folder that holds audio/ and meta/."
                )
        rows = list(_rows(table))
        names: dict[int, str] = {}
        for target, category, _, filename in rows:
            if names.setdefault(target, category) != category:
                raise ShardError(f"{table}: target {target} is both {names[target]} and {category} (at {filename}).")
        classes = {target: number for number, target in enumerate(sorted(names))}
        present = {path.name for path in audio.iterdir()}
        clips = []
        for target, category, fold, filename in rows:
            stem = Path(filename).stem
            found = [name for name in (filename, *(stem + suffix for suffix in SUFFIXES)) if name in present]
            clips.append(
                Record(
                    key=key_of(stem),
                    path=audio / (found[0] if found else filename),
                    labels=(classes[target],),
                    columns={"fold": fold, "target": target},
                    provenance={"file": found[0] if found else filename, "category": category},
                )
            )
        listed = {Path(record.path).name for record in clips}
        ignored = {"not in meta/esc50.csv": len(present - listed)} if present - listed else {}
        return Listing("esc50", tuple(names[target] for target in sorted(names)), ("fold", "target"), clips, ignored)


def _rows(table: Path) -> Iterator[tuple[int, str, int, str]]:
    """(target, category, fold, file name) of every row."""
    for line, row in records(table, NEEDED):
        filename = row["filename"]
        if not filename or filename != Path(filename).name:
            raise ShardError(f"{table}, line {line}: {filename!r} is not the name of a file.")
        target, fold = (integer(table, line, name, row[name]) for name in ("target", "fold"))
        yield target, row["category"], fold, filename
