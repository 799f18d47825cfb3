"""Labels of third-party shards: from KEY.json, KEY.cls or KEY.txt to one class table for the set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gamut.errors import ShardError, nearest
from gamut.shards.convert.table import class_labels, integer, records, refuse_again
from gamut.text import lines_of, read_lines

FIELDS = ("labels", "label", "target", "tags")  # of a KEY.json; the first one present counts
ENDINGS = ("json", "cls", "txt")
LARGEST = 16 << 20  # bytes of a member that describes a clip
MID = re.compile(r"/[a-z]/\w+")  # a class of AudioSet's ontology
MOST_CLASSES = 1_000_000
WORDY = 5  # words: labels of as many on average are captions
Classes = tuple[list[str], dict[str, int]]  # class names by id, and the ids of these and other names
_WHOLE = re.compile(r"^(\d+)\.0+$")  # of a .cls, as programs write a number that is not an integer to them
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

    @property
    def chosen(self) -> bool:
        """Whether somebody said where the labels are."""
        return self.endings != ENDINGS

    def read(self, members: Mapping[str, bytes]) -> Labels:
        """The labels of a clip, from its members by ending; there may be none. Raises ValueError."""
        for ending in self.endings:
            if ending not in members:
                continue
            if ending != "json":
                lines = [line for line in lines_of(members[ending]) if line]
                return Labels.of([_WHOLE.sub(r"\1", line) for line in lines])
            value = self._of_json(json.loads(members[ending]))
            if value is None:
                continue
            if not isinstance(value, list):
                return Labels.of([_text(value)])
            if len(value) > 1 and all(one in (0, 1) for one in value):
                return Labels.of([str(int(one)) for one in value])  # also of true and false
            return Labels.of([_text(one) for one in value])
        return Labels()

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
            return content if isinstance(content, (str, int, float, list)) else None
        return next((content[field] for field in FIELDS if content.get(field) is not None), None)


@dataclass(frozen=True)
class Labels:
    """What a clip is labelled with, as text: names, or numbers of classes.

    A list of zeros and ones alone is a vector, with an entry a class, or the class ids 0 and 1; only the set as a whole
    can tell (`Forms`). Of one, `names` are the positions of its ones, and `length` its length; else that is 0.
    """

    names: tuple[str, ...] = ()
    length: int = 0

    @classmethod
    def of(cls, texts: Sequence[str]) -> Labels:
        """Of the entries of a list, or the lines of a file. AST's data have machine ids with commas between them.

        >>> Labels.of(["/m/09x0r,/m/05zppz"]), Labels.of(["0", "1", "0", "1"])
        (Labels(names=('/m/09x0r', '/m/05zppz'), length=0), Labels(names=('1', '3'), length=4))
        """
        if len(texts) > 1 and all(text in ("0", "1") for text in texts):
            return cls(tuple(str(at) for at, text in enumerate(texts) if text == "1"), len(texts))
        split = (parts if all(map(MID.fullmatch, parts := _parts(text))) else [text] for text in texts)
        return cls(tuple(dict.fromkeys(name for names in split for name in names)))

    @property
    def certain(self) -> bool:
        """Whether it can only be a vector: as class ids some would be there twice."""
        return self.length > 2 or (self.length == 2 and len(self.names) != 1)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of two entries that are read as class ids, not as a vector."""
        return ("0", "1") if self.names == ("1",) else ("1", "0")


class Forms:
    """What the labels of all clips look like together: names, class ids, vectors or captions. Added clip by clip."""

    def __init__(self) -> None:
        self._lengths: set[int] = set()
        self._names: set[str] = set()
        self._labelled = 0
        self._alike = True  # every clip with labels has a list of zeros and ones
        self._first: tuple[str, Labels] | None = None  # the first clip with such a list
        self._certain: tuple[str, Labels] | None = None  # the first whose list can only be a vector

    def add(self, clip: str, labels: Labels) -> None:
        """clip: its name, for messages."""
        self._names.update(labels.names)
        self._labelled += bool(labels.names)
        self._alike &= bool(labels.length) or not labels.names
        if labels.length:
            self._lengths.add(labels.length)
            self._first = self._first or (clip, labels)
        if labels.certain:
            self._certain = self._certain or (clip, labels)

    def vectors(self, classes: int | None) -> int:
        """The length of the vectors that the labels of all clips are; 0 where they are names or class ids.

        Vectors they are only together: all of the same length, and that of the class table, where its number of
        `classes` is known. Raises ShardError where they can be read in two ways.
        """
        if self._first is None:
            return 0
        alike = len(self._lengths) == 1 and self._alike
        if alike and (self._certain is not None if classes is None else classes in self._lengths):
            return next(iter(self._lengths))
        if self._certain is None and not (alike and classes is None):
            return 0  # class ids: [0, 1] beside [1] or [3, 4], or of a longer table
        clip, one = self._certain or self._first
        if len(self._lengths) > 1:
            why = f"other clips have lists of {', '.join(map(str, sorted(self._lengths - {one.length})))}"
        elif not alike:
            why = "other clips have other labels"
        else:
            why = "no class table says which" if classes is None else f"the class table has {classes}"
        raise ShardError(
            f"The labels of {clip} are a list of {one.length} zeros and ones: a vector with an entry for each of "
            f"{one.length} classes, or the class ids 0 and 1, and {why}. If they are vectors, give all clips one of "
            "the same length, and that many names in the file of --classes; if they are class ids, list each once."
        )

    def refuse_captions(self) -> None:
        """Raise ShardError where the labels are sentences rather than classes: nearly each clip has one of its own."""
        names, labelled = self._names, self._labelled
        words = sum(len(name.split()) for name in names)
        if labelled > 1 and 2 * len(names) > labelled and words >= WORDY * len(names):
            raise ShardError(
                f"The labels seem to be captions, not classes: {labelled:,} clips have {len(names):,} different ones, "
                f"of {words / len(names):.0f} words each, such as {min(names)!r:.80}. Leave them out: --labels none. "
                "If they are classes all the same, say where they are: --labels txt (or json, cls)."
            )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"a label must be a name or a whole number, not {value!r:.60}")
    if not str(value):
        raise ValueError("a label is empty")
    return str(value)


def named(labels: Labels, vectors: int, given: Classes | None) -> list[str]:
    """The labels of a clip for `class_table`, each once. `vectors` is what `Forms.vectors` says; with `given` classes
    another name of a class is that class, and a text is several where only its parts, with commas between, are any."""
    if vectors:
        return [given[0][int(at)] for at in labels.names] if given else list(labels.names)
    found = labels.ids if labels.length else labels.names
    if given is None:
        return list(found)
    ids = given[1]
    split = (_parts(name) if name not in ids and all(one in ids for one in _parts(name)) else [name] for name in found)
    return list(dict.fromkeys(class_of(one, given) for some in split for one in some))


def class_of(name: str, given: Classes | None) -> str:
    """The name that the given class table has for a class; itself where it has none."""
    return given[0][given[1][name]] if given is not None and name in given[1] else name


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
                f"classes{nearest(strange[0], given)}. Add them to the file of --classes, or choose other labels "
                "with --labels."
            )
        return list(given), {label: known[label] for label in labels}
    if not numbers:
        names = in_order(labels)
        return names, {name: position for position, name in enumerate(names)}
    most = max((int(label) for label in labels), default=-1)
    if most >= MOST_CLASSES:
        raise ShardError(
            f"The label {most} would make a table of {most + 1:,} classes. If it is not a class number, choose "
            "where labels are read from with --labels."
        )
    ids = {label: int(label) for label in labels}
    return filled({number: label for label, number in ids.items()}), ids


def in_order(names: Iterable[str]) -> list[str]:
    """Each once, in alphabetical order; if all are whole numbers, by their value.

    >>> in_order(["10", "2"]), in_order(["10", "2", "b"])
    (['2', '10'], ['10', '2', 'b'])
    """
    each = set(names)
    whole = all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in each)
    return sorted(each, key=lambda name: (int(name) if whole else 0, name))


def filled(names: Mapping[int, str]) -> list[str]:
    """The class table from the names that are known, by class id; the ids between get a name that says so."""
    return [names.get(label, f"(class {label}, without clips)") for label in range(max(names, default=-1) + 1)]


def read_classes(path: Path) -> Classes:
    """(class names in order of their ids, id of each name) of a file with a name a line; of a CSV with a column
    display_name, whose column `mid`, if it has one, names the classes, too; or of HEAR's labelvocabulary.csv (`label`,
    `idx`). Raises ShardError naming the line.
    """
    lines = read_lines(path, ShardError)
    while lines and not lines[-1]:
        lines.pop()
    if lines and "display_name" in lines[0]:
        names, others = class_labels(path, ("display_name",))
        return list(names), others | {name: number for number, name in enumerate(names)}
    if lines and sorted(lines[0].split(",")) == ["idx", "label"]:
        return _vocabulary(path)
    ids: dict[str, int] = {}
    for line, name in enumerate(lines, 1):
        refuse_again(path, line, name, ids)
        ids[name] = len(ids)
    if not ids:
        raise ShardError(f"{path} names no classes: there must be one a line.")
    return list(ids), ids


def _vocabulary(path: Path) -> Classes:
    numbers: dict[int, str] = {}
    for line, row in records(path, ("label", "idx")):
        number, name = integer(path, line, "idx", row["idx"]), row["label"].strip()
        refuse_again(path, line, name, numbers.values())
        if number in numbers:
            raise ShardError(f"{path}, line {line}: idx {number} is there already, for {numbers[number]!r}.")
        numbers[number] = name
    names = [numbers.get(number, "") for number in range(len(numbers))]
    if not names or "" in names:
        raise ShardError(f"{path}: idx must be the whole numbers from 0 to the number of classes less one.")
    return names, {name: number for number, name in enumerate(names)}
