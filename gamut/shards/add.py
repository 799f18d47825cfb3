"""More shards for a set: a part is appended to its index, and no byte of an earlier generation is written again."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import ShardError
from gamut.files import refusal, replacing, sync, with_digest, write_bytes
from gamut.progress import Progress
from gamut.remote import Remote
from gamut.remote.pages import PAGE
from gamut.shards.build import Rows, only_writer, refuse_equal_ids, with_part
from gamut.shards.columns import DTYPES, SHARDS, Appender, map_column, path_of
from gamut.shards.generations import FORMAT, PARTS, Generation, columns_of, read_generations, together
from gamut.shards.index import STATISTICS, Index, statistics_of
from gamut.shards.part import Part
from gamut.shards.write import shard_name

NUMBERED = re.compile(r"shard-(\d+)\.tar")  # as `convert` names them


@dataclass(frozen=True)
class Added:
    """What `add` did."""

    clips: int  # new ones
    shards: int
    index: Index  # of the generation that they made


def add(folder: Path, new: Sequence[Path], remote: Remote | None = None) -> Added:
    """Append the shards of the sets in `new` to the set in `folder`, as one more generation of its index.

    The sets have the same name, columns and classes (more classes may follow at the end). Tars beside their index are
    linked into `folder`, or copied where they lie on another disk, those of `convert` under the next numbers; tars that
    lie elsewhere must be in the place of the set's own. A kill at any point leaves the set as it was, and the same
    command goes on. Raises ShardError where something does not fit, before anything is written.
    """
    with only_writer(folder):
        content, generations = read_generations(folder)
        index, now = Index.open(folder, remote=remote), generations[-1]
        parts = [Index.open(one, remote=remote) for one in new]
        for one in parts:
            _require_kind(index, one)
        labels, names = _classes(index, parts), _names(index, parts)
        named = _named(index, parts)
        if index.tars.inside(folder):
            _bring(folder, parts, named)
        there = {name: len(array) for name, array in index.arrays.items()}
        content = _in_parts(content, now, index) | {"labels": labels}
        rows = Rows(Appender(folder / "index", there), folder, index.name, now)
        try:
            _append(rows, index, now, parts, named)
            rows.require_labels(labels)
            rows.to.close()
        finally:
            rows.to.abandon()
        ids = map_column(path_of(folder, "clip_id"), DTYPES["clip_id"], rows.clips).array
        refuse_equal_ids(ids, now.clips, rows.to.entries, folder / "index", folder)
        wanted = [*columns_of(content | {"codecs": list(rows.codecs)}, rows.timed), *SHARDS]
        content = with_part(content, rows, wanted, names, rows.clips)
        _keep_statistics(index)
        write_bytes(folder / "index" / "index.json", json.dumps(with_digest(content), indent=1).encode(), ShardError)
        return Added(rows.clips - now.clips, rows.shards - now.shards, Index.open(folder, remote=remote))


def _require_kind(index: Index, one: Index) -> None:
    """Raise ShardError where the shards of `one` cannot be in the set of `index`."""
    if one.folder.resolve() == index.folder.resolve():
        raise ShardError(f"{one.folder} cannot be added to itself.")
    if not len(one):
        raise ShardError(f"There are no clips in {one.folder}.")
    if one.name != index.name:
        raise ShardError(
            f"{one.folder} is the set {one.name!r}, and {index.folder} is {index.name!r}; a set's name is part of each "
            f"clip's id. Make it again with --name {index.name}."
        )
    if set(one.columns) != set(index.columns):
        raise ShardError(
            f"{one.folder} has the columns {sorted(one.columns)}, and {index.folder} has {sorted(index.columns)}. Only "
            "sets with the same columns become one; `mixture` takes others side by side."
        )
    if bool(one.codecs) != bool(index.codecs):
        ours, theirs = (index, one) if one.codecs else (one, index)
        raise ShardError(
            f"The tars of {ours.folder} are those of `convert`, and those of {theirs.folder} third-party ones. Only "
            "sets of one kind become one; `mixture` takes others side by side."
        )
    inside = index.tars.inside(index.folder)
    if inside != one.tars.inside(one.folder) or (not inside and one.tars.place != index.tars.place):
        raise ShardError(
            f"The tars of {one.folder} are in {one.tars.place}, and those of {index.folder} in {index.tars.place}: the "
            "tars of a set are in one place. Put them there and index them again, or take both as a `mixture`."
        )
    there = np.isin(one.shard_table.checksum, index.shard_table.checksum)
    again = np.flatnonzero(there & (one.shard_table.clips > 0))  # tars without clips are all alike
    if len(again):
        raise ShardError(
            f"{one.tars.full(one.tars.names[int(again[0])])} is in {index.folder} already, as are {len(again)} of the "
            f"{len(one.shards)} tars of {one.folder}: their clips would come twice. Was it added before?"
        )


def _classes(index: Index, parts: Sequence[Index]) -> list[str]:
    """The class table of all. Raises ShardError where a class has two numbers."""
    labels = list(index.labels)
    for one in parts:
        for number, (mine, theirs) in enumerate(zip(labels, one.labels)):
            if mine != theirs:
                raise ShardError(
                    f"Class {number} is {mine!r} in {index.folder}, and {theirs!r} in {one.folder}: they would be "
                    "mixed up. Give both the same class table (`index --classes FILE` for third-party tars), or take "
                    "both as a `mixture`, which joins classes by name."
                )
        labels += one.labels[len(labels) :]
    if twice := {label for label in labels if labels.count(label) > 1} - set(index.labels):
        raise ShardError(f"The class {min(twice)!r} would have two numbers in {index.folder}.")
    return labels


def _names(index: Index, parts: Sequence[Index]) -> dict[str, dict[str, list[int]]]:
    try:
        return together([one.names for one in (index, *parts)])
    except ValueError as error:
        raise ShardError(f"The sets to be added to {index.folder} do not fit: {error}.") from error


def _named(index: Index, parts: Sequence[Index]) -> list[list[str]]:
    """The names that the tars of each part will have. Raises ShardError where one is taken."""
    if index.tars.inside(index.folder) and not index.codecs:
        numbers = [int(match[1]) for name in index.tars.names if (match := NUMBERED.fullmatch(name))]
        next_one = max(numbers, default=-1) + 1
        named = []
        for one in parts:
            named.append([shard_name(next_one + number) for number in range(len(one.shards))])
            next_one += len(one.shards)
        return named
    taken = set(index.tars.names)
    for one in parts:
        if twice := taken.intersection(one.tars.names):
            raise ShardError(
                f"{min(twice)} is a tar of {index.folder} and of {one.folder}. Rename one of them, and index it again."
            )
        taken.update(one.tars.names)
    return [list(one.tars.names) for one in parts]


def _bring(folder: Path, parts: Sequence[Index], named: Sequence[Sequence[str]]) -> None:
    """Link or copy the tars of the parts into the folder. Raises ShardError where another file has the name."""
    for one, names in zip(parts, named):
        for shard, name in enumerate(names):
            source, target = one.shard_path(shard), folder / name
            try:
                if target.exists():
                    if not (os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)):
                        raise ShardError(
                            f"{target} is not in the index of {folder}, and would be replaced by {source}. Move it "
                            f"elsewhere, or index it: python -m gamut.shards index {folder}"
                        )
                    continue
                _link(source, target)
            except OSError as error:
                raise ShardError(refusal(error, target)) from error
    sync(folder)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # of another disk, or a file system without links
        with replacing(target) as copy, open(source, "rb") as tar:
            shutil.copyfileobj(tar, copy, 1 << 20)


def _in_parts(content: dict, now: Generation, index: Index) -> dict[str, Any]:
    """index.json of format 2 that says what this one says."""
    if content["format"] == PARTS:
        return content
    first = {
        "clips": now.clips,
        "shards": now.shards,
        "classes": len(now.labels),
        "codecs": len(now.codecs),
        "names": now.names,
        "entries": {name: len(array) for name, array in index.arrays.items()},
        "page": PAGE,
        "begins": {},
        "ends": {page.name: page.end for page in index.pages},
        "arrays": content["arrays"],
        "fingerprint": now.fingerprint,
        "table": content["shards"],
    }
    assert content["format"] == FORMAT
    kept = {key: content[key] for key in ("name", "labels", "columns", "codecs", "place", "about") if key in content}
    return {"format": PARTS, **kept, "parts": [first]}


def _append(rows: Rows, index: Index, now: Generation, parts: Sequence[Index], named: Sequence[Sequence[str]]) -> None:
    if now.table is not None:
        _list_shards(rows, index)
    with Progress("adding", sum(map(len, parts))) as progress:
        for one, names in zip(parts, named):
            for shard, name in enumerate(names):
                rows.add(_part(index, one, shard, name))
                progress.add(int(one.shard_table.clips[shard]))


def _list_shards(rows: Rows, index: Index) -> None:
    """The shards of a set of format 1, as columns."""
    for shard, name in enumerate(index.tars.names):
        own = index.rows_of(shard)
        some = slice(own.start, own.stop)
        labels = index.label[index.label_offset[own.start] : index.label_offset[own.stop]]
        size, checksum = int(index.shard_table.size[shard]), int(index.shard_table.checksum[shard])
        rows.add_shard(name, size, checksum, index.samples[some], labels)


def _part(index: Index, one: Index, shard: int, name: str) -> Part:
    """A shard of another index as it is to be in this one."""
    own = one.rows_of(shard)
    rows = slice(own.start, own.stop)
    keys = [one.key(row) for row in own]
    part = Part(name, int(one.shard_table.size[shard]), int(one.shard_table.checksum[shard]), index.name, key=keys)
    part.offset, part.bytes = one.offset[rows].tolist(), one.size[rows].tolist()
    part.samples, part.clip_checksum = one.samples[rows].tolist(), one.checksum[rows].tolist()
    part.labels = [one.label_ids(row).tolist() for row in own]
    part.columns = {column: one.columns[column][rows].tolist() for column in index.columns}
    part.events = [one.events(row).tolist() for row in own] if one.event_offset is not None else []
    part.codec = [] if one.codec is None else [one.codecs[codec] for codec in one.codec[rows].tolist()]
    return part


def _keep_statistics(index: Index) -> None:
    """For the runs that go on with the generation which they describe."""
    there, kept = index.folder / "index" / STATISTICS, statistics_of(index.folder, index.fingerprint)
    if index.statistics() is not None and not kept.exists():
        write_bytes(kept, there.read_bytes(), ShardError)
