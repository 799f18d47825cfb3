"""Labels of third-party shards: from KEY.json, KEY.cls or KEY.txt to one class table for the set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gamut.errors import ShardError

FIELDS = ("labels", "label", "target", "tags")  # of a KEY.json; the first one present counts
ENDINGS = ("json", "cls", "txt")
LARGEST = 16 << 20  # bytes of a member that describes a clip
MOST_CLASSES = 1_000_000
_NUMBER = re.compile(r"0|[1-9][0-9]*")


@dataclass(frozen=True)
class LabelSource:
    """Where labels are looked for: `endings` in this order; `field` of the JSON, with dots for nesting, or '' for
    FIELDS.

    >>> LabelSource.parse("json:meta.tags")
    LabelSource(endings=('json',), field='meta.tags')
    """

    endings: tuple[str, ...] = ENDINGS
    field: str = ""

    @classmethod
    def parse(cls, text: str) -> LabelSource:
        """`auto`, `json`, `json:FIELD`, `cls`, `txt` or `none`. Raises ShardError for anything else."""
        ending, _, field = text.partition(":")
        if text in ("auto", "none"):
            return cls(ENDINGS if text == "auto" else ())
        if ending not in ENDINGS or (field and ending != "json") or text.endswith(":"):
            raise ShardError(f"--labels must be auto, json, json:FIELD, cls, txt or none, not {text!r}.")
        return cls((ending,), field)

    def read(self, members: Mapping[str, bytes]) -> list[str]:
        """The labels of a clip as text, from its members by ending; there may be none. Raises ValueError."""
        for ending in self.endings:
            if ending not in members:
                continue
            if ending != "json":
                lines = members[ending].decode().splitlines()
                found = [line.strip() for line in lines if line.strip()]
            else:
                value = self._of_json(json.loads(members[ending]))
                if value is None:
                    continue
                found = [_text(one) for one in (value if isinstance(value, list) else [value])]
            return list(dict.fromkeys(found))
        return []

    def events(self, members: Mapping[str, bytes]) -> list[tuple[float, float, str]]:
        """The strong labels of a clip, (onset, offset, class) each, in seconds: the `events` of its JSON, which are
        lists of these three or mappings with onset, offset and label (or event_label). Raises ValueError."""
        content = json.loads(members["json"]) if "json" in self.endings and "json" in members else None
        found = []
        for one in (content.get("events") if isinstance(content, dict) else None) or []:
            try:
                if isinstance(one, dict):
                    one = one["onset"], one["offset"], one.get("event_label", one.get("label"))
                onset, offset, name = one
                found.append((float(onset), float(offset), _text(name)))
            except (KeyError, TypeError) as error:
                raise ValueError(f"an event must be [onset, offset, label], not {one!r:.80}") from error
        return found

    def _of_json(self, content: Any) -> Any:
        """The value of the field; None where it is missing or null."""
        if self.field:
            for name in self.field.split("."):
                content = content.get(name) if isinstance(content, dict) else None
            return content
        if not isinstance(content, dict):
            return content if isinstance(content, (str, int, list)) else None
        return next((content[field] for field in FIELDS if content.get(field) is not None), None)


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"a label must be a name or a whole number, not {value!r:.60}")
    if not str(value):
        raise ValueError("a label is empty")
    return str(value)


def class_table(seen: Iterable[str], given: Sequence[str] | None = None) -> tuple[list[str], dict[str, int]]:
    """The class table, and the class id of each label that clips have.

    With `given` names, a label is one of them or a position among them. Otherwise, if all labels are whole numbers,
    they are the ids; if not, the ids are the positions of the sorted names. Raises ShardError where a label has
    no place in the table.
    """
    labels = set(seen)
    numbers = all(_NUMBER.fullmatch(label) for label in labels)
    if given is not None:
        known = {name: position for position, name in enumerate(given)}
        if numbers and not labels <= known.keys():
            known = {str(position): position for position in range(len(given))}
        if strange := sorted(labels - known.keys()):
            raise ShardError(
                f"{len(strange)} labels of the clips, such as {strange[0]!r}, are not among the {len(given)} given "
                "classes. Add them to the file of --classes, or choose other labels with --labels."
            )
        return list(given), {label: known[label] for label in labels}
    if not numbers:
        names = sorted(labels)
        return names, {name: position for position, name in enumerate(names)}
    most = max((int(label) for label in labels), default=-1)
    if most >= MOST_CLASSES:
        raise ShardError(
            f"The label {most} would make a table of {most + 1:,} classes. If it is not a class number, choose "
            "where labels are read from with --labels."
        )
    ids = {label: int(label) for label in labels}
    return filled({number: label for label, number in ids.items()}), ids


def filled(names: Mapping[int, str]) -> list[str]:
    """The class table from the names that are known, by class id; the ids between get a name that says so."""
    return [names.get(label, f"(class {label}, without clips)") for label in range(max(names, default=-1) + 1)]


def read_classes(path: Path) -> list[str]:
    """The names of a file with one class a line, in order of their ids. Raises ShardError."""
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"The classes cannot be read from {path}: {error}.") from error
    if not names or len(set(names)) < len(names) or not all(names):
        raise ShardError(f"{path} must hold one class name a line, each once, and no empty line.")
    return names
