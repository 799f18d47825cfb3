"""The index of a remote shard set, copied to this node: it is small, checked, and mapped like any other index."""

from __future__ import annotations

import contextlib
import io
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
from gamut.remote.store import Store

LARGEST_JSON = 1 << 30  # bytes
LARGEST_ARRAY = 1 << 36
_ARRAY = re.compile(r"[A-Za-z0-9_-]+")


def mirror(where: str, settings: Remote) -> Path:
    """The folder on this node that holds the index of the set at `where`; its tars stay there.

    index.json is fetched every time, the arrays only if they are not here yet; the processes of a node take turns.
    Raises ShardError where there is no index, where its checksums do not match, where it names a command, or where this
    node has no room for it.
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
        raise ShardError(
            f"The index of {where} cannot be copied to {folder}: {error.strerror or error}. Free its disk, or name "
            "another folder with remote.cache=FOLDER or the environment variable GAMUT_CACHE."
        ) from error


def _mirror(store: Store, base: str, settings: Remote, folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    with files.lock(folder / "lock"):
        content = _description(store, base, settings)
        key = xxhash.xxh3_64_hexdigest(f"{base} {content['place']} {_fingerprint(content)}".encode())
        here = folder / key
        if not here.exists():
            for left in folder.glob("partial-*"):  # left by a killed process, since we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
            try:
                (temporary / "index").mkdir()
                _copy(store, base, settings, content, temporary / "index")
                files.rename_folder(temporary, here)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        _refresh_statistics(store, base, settings, here / "index" / "statistics.json")
        return here


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
        if not isinstance(place, str) or not isinstance(_fingerprint(content), str):
            raise TypeError("its place or fingerprint is not text")
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


def _fingerprint(content: dict[str, Any]) -> Any:
    return content["parts"][-1]["fingerprint"] if "parts" in content else content["fingerprint"]


def _pages(content: dict[str, Any]) -> dict[str, list[Page]]:
    """The pages of each column. Of a set in one part the whole file is one, which ends where its header says."""
    if "parts" not in content:
        return {name: [Page(name, 0, -1, digest)] for name, digest in content["arrays"].items()}
    found: dict[str, list[Page]] = {name: [] for name in content["parts"][-1]["entries"]}
    for page in pages_of(content["parts"]):
        found[page.name].append(page)
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


def _refresh_statistics(store: Store, base: str, settings: Remote, path: Path) -> None:
    """`stats` may have been run since. A set may have none, and a command cannot say that a file is missing."""
    file = io.BytesIO()
    try:
        if store.ranges:
            fetch(store, base, "index/statistics.json", file, settings, most=LARGEST_JSON)
        else:
            with contextlib.suppress(ShardError):
                fetch(store, base, "index/statistics.json", file, replace(settings, tries=1), most=LARGEST_JSON)
    except Denied:
        return
    if not file.getvalue():
        return
    files.write_bytes(path, file.getvalue())
