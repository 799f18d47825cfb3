"""The index of a remote shard set on this node: fetched, checked, and mapped like any other index.

A set in one part is copied whole: it has at most some ten thousand tars. Of one in several parts, or of many tars, the
pages are fetched that this node does not have yet, so that of a set that has grown only what is new is; beyond `WHOLE`
bytes none is fetched before it is needed (`gamut.shards.paged`), but for those that say what the shards are.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from gamut import files
from gamut.errors import ShardError
from gamut.remote import Remote
from gamut.remote.fetch import Absent, Denied, fetch, open_store
from gamut.remote.pages import Page, digest, pages_of
from gamut.remote.place import full, parse
from gamut.remote.ranges import Ranged, no_room
from gamut.remote.store import Store

LARGEST_JSON = 1 << 30  # bytes
LARGEST_ARRAY = 1 << 36
WHOLE = 1 << 30  # bytes of an index that is fetched at once
HEADER = 1 << 12  # bytes of a file of which the header of a column is the beginning
_ARRAY = re.compile(r"[A-Za-z0-9_-]+")


def mirror(where: str, settings: Remote) -> Path:
    """The folder on this node that holds the index of the set at `where`; its tars stay there.

    index.json is fetched every time, of the columns what is to be here and is not; the processes of a node take turns.
    Raises ShardError where there is no index, where a column is missing or shorter than it says, where checksums do not
    match, where it names a command, or where this node has no room for it.
    """
    base, names = parse(where)
    if names is not None:
        raise ShardError(
            f"{where} names tars, not a shard set. Index them: python -m gamut.shards index {where} --out FOLDER, then "
            "data=FOLDER."
        )
    store = open_store(base, settings)
    folder = settings.folder() / "index"
    try:
        return _mirror(store, base, settings, folder)
    except OSError as error:
        raise ShardError(no_room(where, folder, error)) from error


def _mirror(store: Store, base: str, settings: Remote, folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    with files.lock(folder / "lock"):
        content = _description(store, base, settings)
        generations = _fingerprints(content)
        here, there = _place(folder, f"{base} {content['place']}", generations if store.ranges else generations[-1:])
        lacking = not there or there[-1] != generations[-1]
        if lacking and store.ranges and "parts" in content:
            _extend(base, settings, content, here / "index")
        elif lacking:
            shutil.rmtree(here, ignore_errors=True)
            for left in folder.glob("partial-*"):  # left by a killed process, since we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
            try:
                (temporary / "index").mkdir()
                _copy(store, base, settings, content, temporary / "index")
                files.rename_folder(temporary, here)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for earlier in generations[:-1] if lacking else ():
            _refresh_statistics(store, base, settings, here / "index" / statistics_name(earlier))
        _refresh_statistics(store, base, settings, here / "index" / statistics_name())
        return here


def _place(folder: Path, where: str, generations: Sequence[str]) -> tuple[Path, list[str]]:
    """(where the set with these generations is kept, those of them that are there): where it began with the same one,
    and none of another set has followed."""
    for number in itertools.count():
        told = f"{where} {generations[0]}" + f" {number}" * (number > 0)
        here = folder / xxhash.xxh3_64_hexdigest(told.encode())
        try:
            content = json.loads((here / "index" / "index.json").read_bytes())
            files.require_digest(content)
            there = _fingerprints(content)
        except (FileNotFoundError, *files.UNSOUND):
            return here, []
        # Those asked for follow on those that are there; of one alone, it is the last.
        if there[-len(generations) :] == list(generations[: len(there)]):
            return here, there
    raise AssertionError


def _extend(base: str, settings: Remote, content: dict[str, Any], to: Path) -> None:
    """Have a set in parts here as `content` says: all of its pages, or of a large one the headers of its columns."""
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    columns = _pages(content)
    large = sum(page.end - page.begin for pages in columns.values() for page in pages) > WHOLE
    for name, pages in columns.items():
        first = next(part for part in content["parts"] if name in part["arrays"])
        file = Ranged(to / f"{name}.npy", pages, base, settings)
        end = pages[-1].end if pages else int(first["ends"][name])
        header = int(first["begins"].get(name, min(HEADER, end)))
        file.begin(header, end)
        if not large:
            file.require(0, end)
            files.sync(file.path)
    files.write_text(to / "index.json", json.dumps(files.with_digest(content | ({"origin": base} if large else {}))))


def _description(store: Store, base: str, settings: Remote) -> dict[str, Any]:
    """The remote index.json, saying where its tars are."""
    file = io.BytesIO()
    try:
        fetch(store, base, "index/index.json", file, settings, most=LARGEST_JSON)
    except Absent as error:
        raise ShardError(
            f"{error} A remote set has its index beside its tars. To index tars that have none: "
            f"python -m gamut.shards index {base}shard-{{000000..000099}}.tar --out FOLDER, then data=FOLDER."
        ) from None
    try:
        content = json.loads(file.getvalue())
        files.require_digest(content)
        place = content.setdefault("place", base)
        content.pop("origin", None)
        if not isinstance(place, str) or not all(isinstance(one, str) for one in _fingerprints(content)):
            raise TypeError("its place or fingerprint is not text")
        if "parts" in content and not all(_ARRAY.fullmatch(one) for one in _fingerprints(content)):
            raise ValueError("a fingerprint is none")
        if not all(_ARRAY.fullmatch(name) for name in _pages(content)):
            raise ValueError("an array is not named as one")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{full(base, 'index/index.json')} is not the index of a shard set ({error}).") from error
    if place.startswith("pipe:") and place != base:
        raise ShardError(
            f"{full(base, 'index/index.json')} names a command that reads its shards ({place}). Commands are run only "
            "where a recipe or an index on this machine names them."
        )
    return content


def _fingerprints(content: dict[str, Any]) -> list[str]:
    """Of all generations."""
    parts = content.get("parts", [content])
    found = [part["fingerprint"] for part in parts]
    if not found:
        raise ValueError("it names no part")
    return found


def _pages(content: dict[str, Any]) -> dict[str, list[Page]]:
    """The pages of each column. Of a set in one part the whole file is one, which ends where its header says."""
    if "parts" not in content:
        return {name: [Page(name, 0, -1, digest)] for name, digest in content["arrays"].items()}
    found: dict[str, list[Page]] = {name: [] for name in content["parts"][-1]["entries"]}
    for page in pages_of(content["parts"]):
        before = found[page.name]
        if not 0 <= page.begin < page.end <= LARGEST_ARRAY or (before and page.begin != before[-1].end):
            raise ValueError(f"the pages of {page.name} do not follow each other")
        before.append(page)
    return found


def _copy(store: Store, base: str, settings: Remote, content: dict[str, Any], to: Path) -> None:
    for name, pages in _pages(content).items():

        def check(file: BinaryIO, name: str = name, pages: Sequence[Page] = tuple(pages)) -> str | None:
            intact = all(digest(file, page.begin, _end(file, page.end)) == page.digest for page in pages)
            return None if intact else f"{name}.npy does not have the checksum in index.json"

        with files.replacing(to / f"{name}.npy") as file:
            fetch(store, base, f"index/{name}.npy", file, settings, check=check, most=LARGEST_ARRAY)
    files.write_text(to / "index.json", json.dumps(files.with_digest(content)))


def _end(file: BinaryIO, told: int) -> int:
    """The byte where a column ends in its file, which is longer while somebody appends to the set."""
    if told >= 0:
        return told
    file.seek(0)
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return file.tell() + math.prod(shape) * dtype.itemsize
    except files.UNSOUND:
        return file.seek(0, os.SEEK_END)


def statistics_name(fingerprint: str = "") -> str:
    """The file with the statistics of a set, or of an earlier generation, which `add` has kept."""
    return f"statistics-{fingerprint[:16]}.json" if fingerprint else "statistics.json"


def _refresh_statistics(store: Store, base: str, settings: Remote, path: Path) -> None:
    """`stats` may have been run since. A set may have none, and a command cannot say that a file is missing."""
    file = io.BytesIO()
    try:
        if store.ranges:
            fetch(store, base, f"index/{path.name}", file, settings, most=LARGEST_JSON)
        else:
            with contextlib.suppress(ShardError):
                fetch(store, base, f"index/{path.name}", file, replace(settings, tries=1), most=LARGEST_JSON)
    except Denied:
        return
    if not file.getvalue():
        return
    files.write_bytes(path, file.getvalue())
