"""One folder for each class: the layout that needs no table."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from gamut.audio.kinds import is_sound, suffix_of
from gamut.errors import ShardError
from gamut.shards.convert.source import Listing, Record, Source, unique_keys
from gamut.shards.convert.tree import walk
from gamut.shards.labels import in_order


class Folder(Source):
    """`SRC/CLASS/.../FILE`: the class is the first folder, in order of name or, if all are whole
    numbers, of number; any format that soundfile or ffmpeg reads.

    Video and other files that need ffmpeg are included. Files with other endings, hidden files and files outside a
    class folder are passed over, and counted by reason. Links to folders are followed, each folder once.
    """

    expects = "one folder for each class, with sound files anywhere in it"

    def list(self, folder: Path) -> Listing:
        """One record a sound file. Raises ShardError where there is none, and where a folder cannot be listed."""
        paths, ignored = _sound_files(folder)
        if not paths:
            found = ", ".join(f"{count} {why}" for why, count in sorted((+ignored).items())) or "nothing"
            raise ShardError(
                f"{folder} has no sound files in class folders (found: {found}). The layout must be SRC/CLASS/FILE.wav."
                " For sounds without classes, or with several, write a table: python -m gamut.shards convert csv --help"
            )
        names = in_order(path.split("/", 1)[0] for path in paths)
        classes = {name: number for number, name in enumerate(names)}
        records = (
            Record(key=key, path=folder / path, labels=(classes[path.split("/", 1)[0]],), provenance={"file": path})
            for key, path in zip(unique_keys(paths), paths)
        )
        labels = tuple(os.fsencode(name).decode(errors="replace") for name in names)
        return Listing(folder.resolve().name, labels, (), records, ignored)


def _sound_files(folder: Path) -> tuple[list[str], Counter[str]]:
    """Relative paths of the sound files, sorted, and how many others were passed over and why."""
    paths, ignored = [], Counter[str]()
    for place, files in walk(folder, ignored):
        if not place:
            ignored["outside a class folder"] += len(files)
            continue
        for name in files:
            if is_sound(name):
                paths.append(f"{place}/{name}")
            else:
                ignored[f"{suffix} files" if (suffix := suffix_of(name)) else "files without an ending"] += 1
    return sorted(paths), ignored
