"""Which files are sounds: those that are named, and in folders those with an ending of one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from gamut.errors import RecipeError

NAMED = 3  # files of those that a folder has beside its sounds


def sound_files(given: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Files that are named or lie in folders, and the name of each below the folder that was given. What folders hold
    besides is said on stderr. Raises RecipeError where a folder has none."""
    from gamut.audio.kinds import is_sound

    for one in given:
        if not one.is_dir():
            yield one, Path(one.name)
            continue
        inside = sorted(path for path in one.rglob("*") if path.is_file())
        sounds = [path for path in inside if is_sound(path) and not path.name.startswith(".")]
        others = sorted(set(inside) - set(sounds))
        if others:
            print(_passed_over(one, others), file=sys.stderr)
        if not sounds:
            raise RecipeError(f"There is no sound file in {one}.")
        yield from ((path, path.relative_to(one)) for path in sounds)


def _passed_over(folder: Path, others: list[Path]) -> str:
    counts = Counter(path.suffix.lower() or "without an ending" for path in others)
    kinds = ", ".join(f"{count} {ending}" for ending, count in counts.most_common())
    names = ", ".join(str(path.relative_to(folder)) for path in others[:NAMED])
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f"{folder}: passed over what is hidden or has no ending of a sound file: {kinds} ({names}{more})"
