"""What index.json says of a set: one part, or several, each appended to the ones before it.

Format 1 is of one part: the tars are a list in it, and each column has one digest. Format 2 is of several parts, or of
one with many tars: the tars are columns, too, and each page of a column has a digest. A generation is the set as it was
after one of its parts, and has a fingerprint of its own; part 0 of a set that was of format 1 keeps its fingerprint and
its list of tars.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from gamut.errors import ShardError
from gamut.files import DIGEST, UNSOUND, require_digest
from gamut.remote.pages import Page, pages_of
from gamut.shards.columns import COLUMN, DTYPES, EVENTS, FOREIGN, RAGGED, SHARDS
from gamut.shards.tars import holds_sounds

FORMAT, PARTS = 1, 2


@dataclass(frozen=True)
class Generation:
    """A set as it is in one of its generations; what index.json says of it."""

    name: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]  # the set's own
    names: Mapping[str, Mapping[str, list[int]]]
    codecs: tuple[str, ...]
    place: str | None  # of the tars; None: beside the index
    origin: str | None  # from where the pages of its columns are fetched; None: they are all here
    fingerprint: str
    clips: int
    shards: int
    entries: Mapping[str, int | None]  # of each column; None: the column that says where its stretches begin says it
    table: tuple[dict, ...] | None = None  # the tars; None: they are columns
    digests: Mapping[str, str] | None = None  # of whole files, in format 1
    parts: tuple[dict, ...] = ()  # of index.json, in format 2
    number: int = 0
    of: int = 1  # generations that the set has by now

    def pages(self, edges: Mapping[str, tuple[int, int]]) -> list[Page]:
        """All pages that the columns have, column by column; edges: where each begins and ends in its file, as it was
        mapped. Raises ValueError where they are not pages of all of it.
        """
        if self.digests is not None:
            return [Page(name, 0, end, self.digests[name]) for name, (_, end) in edges.items()]
        pages = pages_of(self.parts)
        done = {name: begin for name, (begin, _) in edges.items()}
        for page in pages:
            if page.begin not in (0, done[page.name]):  # 0: a whole file of format 1
                break
            done[page.name] = page.end
        if done != {name: end for name, (_, end) in edges.items()}:
            raise ValueError("its pages are not all of its columns")
        return pages


def read_generations(folder: Path) -> tuple[dict, list[Generation]]:
    """(index.json, the generations of the set in `folder`, the newest last).

    Raises ShardError where there is no index, or one of another format, or damaged, with the command that repairs it.
    """
    content = _content(folder)
    try:
        require_digest(content)
        if content["format"] == FORMAT:
            return content, [_only(content)]
        if DIGEST not in content:
            raise ValueError("index.json has no digest")
        return content, [_nth(content, number) for number in range(len(content["parts"]))]
    except UNSOUND as error:
        raise damaged(folder, error) from error


def read_generation(folder: Path, fingerprint: str = "") -> Generation:
    """The generation of the set in `folder` with this fingerprint; the newest for none.

    Raises ShardError as `read_generations`, and where the set has no such generation.
    """
    _, generations = read_generations(folder)
    if not generations:
        raise damaged(folder, ValueError("index.json names no part"))
    if not fingerprint:
        return generations[-1]
    for one in generations:
        if one.fingerprint == fingerprint:
            return one
    count = f"any of the {len(generations)} generations of" if len(generations) > 1 else "that of"
    raise ShardError(
        f"The fingerprint {fingerprint} is not {count} the set in {folder}: its index was made again, or it is another "
        f"set. The newest is {generations[-1].fingerprint}. Restore that index, or begin a new run."
    )


def damaged(folder: Path, error: Exception) -> ShardError:
    """The error for an index that cannot be right."""
    return ShardError(f"The index in {folder} is damaged ({error}). Rebuild it: python -m gamut.shards index {folder}")


def fingerprint(content: Mapping[str, Any]) -> str:
    """Of what an index.json of format 1 says of the set: its tars, classes and arrays by their checksums."""
    identity = json.dumps([content[field] for field in ("format", "name", "labels", "shards", "arrays")])
    return xxhash.xxh3_128_hexdigest(identity.encode())


def part_fingerprint(before: str, name: str, labels: Sequence[str], part: Mapping[str, Any]) -> str:
    """Of a generation of format 2: of the one before it, the classes, and what its part appended, by digests."""
    told = [part[field] for field in ("clips", "shards", "names", "entries", "arrays")]
    return xxhash.xxh3_128_hexdigest(json.dumps([PARTS, before, name, list(labels), told], sort_keys=True).encode())


def grown(folder: Path) -> bool:
    """Whether `add` has appended to the set in a folder; False where it has no index that can be read."""
    try:
        return len(read_generations(folder)[1]) > 1
    except ShardError:
        return False


def columns_of(content: Mapping[str, Any], timed: bool) -> list[str]:
    """The columns of a set, in the order that index.json has them. timed: whether clips have events."""
    own = [COLUMN + column for column in content["columns"]]
    return [*DTYPES, *own, *(FOREIGN if content.get("codecs") else ()), *(EVENTS if timed else ())]


def _only(content: dict) -> Generation:
    if content["fingerprint"] != fingerprint(content):
        raise ValueError("index.json does not have its fingerprint")
    clips, table = int(content["clips"]), tuple(content["shards"])
    names = columns_of(content, "event_offset" in content["arrays"])
    entries = {name: _entries(name, clips) for name in names}
    digests = {name: content["arrays"][name] for name in names}
    if not all(isinstance(digest, str) for digest in digests.values()):
        raise ValueError("a digest is not text")
    return Generation(
        **_common(content, len(content["labels"]), content.get("names", {})),
        codecs=tuple(content.get("codecs", ())),
        fingerprint=content["fingerprint"],
        clips=clips,
        shards=len(table),
        entries=entries,
        table=table,
        digests=digests,
    )


def _nth(content: dict, number: int) -> Generation:
    parts = content["parts"][: number + 1]
    last, first = parts[-1], parts[0]
    entries: dict[str, int | None] = {name: int(count) for name, count in last["entries"].items()}
    table = first.get("table") if number == 0 else None
    if table is not None:  # of format 1 until there was a second part
        timed = "event_offset" in first["arrays"]
        entries = {name: _entries(name, int(first["clips"])) for name in columns_of(content, timed)}
    elif missing := {*columns_of(content, "event_offset" in entries), *SHARDS} - entries.keys():
        raise ValueError(f"part {number} has no {min(missing)}")
    before: list[Mapping[str, int]] = [{}, *(part["entries"] for part in parts[:-1])]
    for was, part in zip(before, parts):
        if any(part["entries"][name] < count for name, count in was.items()):
            raise ValueError("a part has fewer entries than the one before it")
    return Generation(
        **_common(content, int(last["classes"]), last["names"]),
        codecs=tuple(content.get("codecs", ())[: int(last["codecs"])]),
        fingerprint=last["fingerprint"],
        clips=int(last["clips"]),
        shards=int(last["shards"]),
        entries=entries,
        table=None if table is None else tuple(table),
        digests=first["arrays"] if table is not None else None,
        parts=tuple(parts),
        number=number,
        of=len(content["parts"]),
    )


def _common(content: dict, classes: int, names: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": content["name"],
        "labels": tuple(content["labels"][:classes]),
        "columns": tuple(content["columns"]),
        "names": {column: dict(values) for column, values in names.items()},
        "place": content.get("place"),
        "origin": content.get("origin"),
    }


def _entries(name: str, clips: int) -> int | None:
    return None if name in RAGGED else clips + (name in RAGGED.values())


def _content(folder: Path) -> dict:
    """index.json, of a format that this code reads."""
    path = folder / "index" / "index.json"
    try:
        content = json.loads(path.read_bytes())
        found = content["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(_absent(folder)) from None
    except (OSError, *UNSOUND) as error:
        raise ShardError(f"{path} is damaged ({error}). Rebuild it: python -m gamut.shards index {folder}") from error
    if found not in (FORMAT, PARTS):
        raise ShardError(
            f"{path} has format {found}, but this version of Gamut reads formats {FORMAT} and {PARTS}. "
            f"Rebuild it: python -m gamut.shards index {folder}"
        )
    return content


def _absent(folder: Path) -> str:
    if any(folder.glob("*.tar")):
        return (
            f"The shards in {folder} have no index. If their conversion did not finish, run it again; otherwise index "
            f"them: python -m gamut.shards index {folder}"
        )
    if told := holds_sounds(folder):
        return told
    if folder.is_file():
        return f"{folder} is a file. Name the folder that `python -m gamut.shards convert` or `index` wrote."
    return f"There are no shards in {folder}. Make them: python -m gamut.shards convert DATASET SRC {folder}"


def together(names: Iterable[Mapping[str, Mapping[str, Sequence[int]]]]) -> dict[str, dict[str, list[int]]]:
    """Names of values in the columns of several parts as one. Raises ValueError where one name has two meanings."""
    found: dict[str, dict[str, list[int]]] = {}
    for columns in names:
        for column, values in columns.items():
            for name, numbers in values.items():
                if found.setdefault(column, {}).setdefault(name, list(numbers)) != list(numbers):
                    raise ValueError(f"{name!r} in the column {column} means other values there")
    return found
