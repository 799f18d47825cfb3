"""Whether an index makes sense, stretch by stretch in bounded memory: it need not be of our making.

A small index is checked by every process that opens it. Of a large one each rank of a job checks its share, so that the
job reads it once, however many ranks it has: what is wrong ends that rank, and with it the job, before the first step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from gamut.shards.shard_table import ShardTable

LARGEST = 1 << 50  # bytes of a tar, samples of a clip
ROWS = 1 << 20  # clips checked at once
SMALL = 1 << 30  # bytes of an index that every process checks
BY_ONE = 1 << 26  # bytes of an index that one thread checks
CHECKERS = 8  # threads of a process that check a larger one, at most
MANY_TARS = 4096  # of more tars each rank looks for its share


def own_share(all_of_it: bool) -> tuple[int, int]:
    """(number, of): which share this process checks: everything, or every `of`-th from `number` on, by its rank."""
    try:
        rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        return 0, 1
    return (0, 1) if all_of_it or not 0 <= rank < ranks else (rank, ranks)


def parts_of(share: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """This process' share of an index of `size` bytes, cut into smaller ones: one for each core that it has of its
    node, up to CHECKERS."""
    number, of = share
    try:
        others = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except ValueError:
        others = 1
    threads = 1 if size <= BY_ONE else min(CHECKERS, max(1, len(os.sched_getaffinity(0)) // max(1, others)))
    return [(number + of * thread, of * threads) for thread in range(threads)]


class Checks:
    """Checks that go on in threads.

    >>> checks = Checks([lambda: None, lambda: None])
    >>> checks.wait()
    """

    def __init__(self, each: Sequence[Callable[[], None]], threads: int = CHECKERS) -> None:
        self._pool = ThreadPoolExecutor(threads, "check")
        self._futures = [self._pool.submit(one) for one in each]

    def wait(self) -> None:
        """Until all are done, or raise what the first that failed, by its place, has raised; then those that have not
        begun never do."""
        try:
            for future in self._futures:
                future.result()
        finally:
            self._pool.shutdown(cancel_futures=True)


class Whole(NamedTuple):
    """What columns point into."""

    table: ShardTable
    clips: int
    classes: int
    codecs: int


def require_names(
    words: Sequence[str],
    tars: Sequence[str],
    names: Mapping[str, Mapping[str, Sequence[int]]],
    columns: Collection[str],
) -> None:
    """Raise ValueError where a word, the name of a tar, or one that a column has for values, is none."""
    if not all(isinstance(word, str) and "\0" not in word for word in (*words, *tars)):
        raise ValueError("a name is not text")
    for name in tars:
        if "/" in name or name in ("", "..", "."):
            raise ValueError(f"{name!r} is not the name of a file")
    for column, values in names.items():
        if column not in columns or not all(
            isinstance(number, int) for numbers in values.values() for number in numbers
        ):
            raise ValueError(f"the names of the column {column} are not of its values")


def require_sense(whole: Whole, arrays: Mapping[str, np.ndarray], tars: bool, share: tuple[int, int] = (0, 1)) -> None:
    """Raise ValueError where a column points outside of what it points into. tars: also where a clip is outside of its
    tar. share: of the stretches of clips that are looked at."""
    number, of = share
    sizes = np.asarray(whole.table.size)
    require_count(whole)
    for name in ("label_offset", "key_offset", "event_offset"):
        if name in arrays and arrays[name][0] != 0:
            raise ValueError(f"{name}.npy does not ascend from 0")
    for first in range(number * ROWS, whole.clips, of * ROWS):
        rows = slice(first, min(first + ROWS, whole.clips))
        _require_rows(whole, arrays, rows, sizes if tars else None)
        _require_ragged(whole, arrays, rows)


def require_count(whole: Whole) -> None:
    """Raise ValueError where the tars do not have as many clips as the index."""
    if whole.table.first[-1] != whole.clips:
        raise ValueError(f"its tars have {whole.table.first[-1]} clips, not {whole.clips}")


def ends_of(tars: int, classes: int, codecs: int) -> dict[str, int]:
    """Where the values of a column end, which begin at 0."""
    return {
        "shard": tars,
        **dict.fromkeys(("samples", "offset", "size"), LARGEST),
        "codec": codecs,
        **dict.fromkeys(("label", "event"), classes),
    }


def _require_rows(whole: Whole, arrays: Mapping[str, np.ndarray], rows: slice, sizes: np.ndarray | None) -> None:
    shard, offset, size = (arrays[name][rows] for name in ("shard", "offset", "size"))
    ends = ends_of(len(whole.table), whole.classes, whole.codecs)
    for name in ("shard", "samples", "offset", "size", "codec"):
        if name in arrays:
            require_within(name, arrays[name][rows], ends[name])
    expected = np.searchsorted(whole.table.first, np.arange(rows.start, rows.stop), side="right") - 1
    if not np.array_equal(shard, expected):
        raise ValueError("its clips are not in the order of the tars")
    if sizes is not None and (offset + size > sizes[shard]).any():
        raise ValueError("a clip is outside of its tar")


def _require_ragged(whole: Whole, arrays: Mapping[str, np.ndarray], rows: slice) -> None:
    for name, of in (("label_offset", "label"), ("key_offset", "key"), ("event_offset", "event")):
        if name not in arrays:
            continue
        offsets = arrays[name][rows.start : rows.stop + 1]
        if (np.diff(offsets) < 0).any() or offsets[0] < 0 or offsets[-1] > len(arrays[of]):
            raise ValueError(f"{name}.npy does not ascend from 0")
        values = arrays[of][offsets[0] : offsets[-1]]
        if name != "key_offset":
            require_within(of, values, whole.classes)
            continue
        bytes(values).decode()
        if (arrays[of][offsets[:-1][np.diff(offsets) > 0]] & 0xC0 == 0x80).any():
            raise ValueError("a key begins within a character")


def require_within(name: str, values: np.ndarray, end: int) -> None:
    """Raise ValueError where a value of the column is not in 0 to `end` - 1."""
    if len(values) and not 0 <= values.min() <= values.max() < end:
        raise ValueError(f"{name}.npy has values outside of 0 to {end - 1}")
