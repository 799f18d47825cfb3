"""A key of a dataclass of settings: beside its default stand what it means and what it may be.

    @dataclass(frozen=True)
    class Loader:
        workers: int = key(2, "processes that read", at_least(0))
        max_holes: float = key(0.01, "share of clips that may turn out unusable", between(0, 1))

What relates several keys to each other is no business of a single one, and stands in a checker.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from gamut.registry import Registry


@dataclass(frozen=True)
class Bounds:
    """What a value may be; of a list or a mapping, what each of its values may be. None is bounded by nothing.

    With `choices` or a `registry` it must be one of their names; where there is a `least`, also a number.
    """

    least: float = -math.inf
    most: float = math.inf
    open: bool = False  # `least` itself is too little
    multiple: int | None = None  # of what number
    choices: tuple[str, ...] = ()
    registry: Registry | None = None  # whose names are choices, too
    some: bool = False  # of a list: that it holds any

    def allow(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return all(self.allow(one) for one in value) and (bool(value) or not self.some)
        if value is None or isinstance(value, bool):
            return True
        number = isinstance(value, (int, float))
        if (self.choices or self.registry) and not (number and self.least > -math.inf):
            return value in self.names
        if not number:
            return True
        enough = value > self.least if self.open else value >= self.least
        return enough and value <= self.most and not (self.multiple and value % self.multiple)

    @property
    def names(self) -> tuple[str, ...]:
        """All choices, with those that plugins register."""
        return (*self.choices, *(self.registry or ()))

    def __str__(self) -> str:
        """`at least 1`, `between 0 and 1`, `keep, recompute or offload`; empty where anything goes."""
        if self.choices or self.registry:
            number = (f"at least {self.least:g}",) if self.least > -math.inf else ()
            return one_of_words((*number, *self.names))
        if self.multiple:
            return f"a multiple of {self.multiple}"
        if self.open:
            return f"above {self.least:g}" + (f", at most {self.most:g}" if self.most < math.inf else "")
        if self.most < math.inf:
            return f"between {self.least:g} and {self.most:g}"
        return f"at least {self.least:g}" if self.least > -math.inf else ""


def at_least(least: float, *choices: str) -> Bounds:
    """choices: texts that are allowed, too."""
    return Bounds(least, choices=choices)


def above(least: float) -> Bounds:
    return Bounds(least, open=True)


def between(least: float, most: float) -> Bounds:
    """Both are allowed."""
    return Bounds(least, most)


def multiple_of(number: int) -> Bounds:
    """The number itself, and its multiples."""
    return Bounds(number, multiple=number)


def some(bounds: Bounds) -> Bounds:
    """Of a list: at least one value, and each of them within `bounds`."""
    return replace(bounds, some=True)


def one_of(*choices: str, registry: Registry | None = None) -> Bounds:
    """Any of these, or any name of a registry."""
    return Bounds(choices=choices, registry=registry)


@dataclass(frozen=True)
class About:
    """What is known of a key besides its type and default.

    may_change: whether another attempt of a run may give another value; of a mapping the entries that may (`a.b`).
    stage: the only stage whose recipes may say it.
    """

    meaning: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    unit: str = ""
    may_change: bool | tuple[str, ...] = False
    stage: str = ""


def key(
    default: Any,
    meaning: str,
    bounds: Bounds | None = None,
    *,
    unit: str = "",
    may_change: bool | tuple[str, ...] = False,
    stage: str = "",
) -> Any:
    """A field of a dataclass. With MISSING for `default` it must be given; a list or mapping is copied each time."""
    metadata = {"about": About(meaning, bounds or Bounds(), unit, may_change, stage)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bounded(default: Any, bounds: Bounds) -> Any:
    """A key whose meaning is said elsewhere."""
    return key(default, "", bounds)


def section(cls: type, *, may_change: bool = False, stage: str = "") -> Any:
    """A field that is a dataclass of settings itself. may_change: all of its keys may."""
    return field(default_factory=cls, metadata={"about": About(may_change=may_change, stage=stage)})


def about(cls: Any) -> dict[str, About]:
    """What is known of each field of a dataclass, or of one made from it, by name."""
    return _about(cls if isinstance(cls, type) else type(cls))


@functools.cache
def _about(cls: type) -> dict[str, About]:
    return {f.name: f.metadata.get("about", About()) for f in fields(cls)}


def bounds_of(cls: Any) -> dict[str, Bounds]:
    """What each field of a dataclass may be, for another whose values become its own."""
    return {name: known.bounds for name, known in about(cls).items()}


def problems(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, `must be at least 1, not 0`) of every value that is out of its bounds, or no finite number."""
    for name, known in about(settings).items():
        value, bounds = getattr(settings, name), known.bounds
        if is_dataclass(value):
            yield from problems(value, f"{prefix}{name}.")
            continue
        entries = value.items() if isinstance(value, dict) and str(bounds) else [("", value)]
        for entry, one in entries:
            dotted = f"{prefix}{name}.{entry}" if entry else prefix + name
            if not _finite(one):
                yield dotted, f"must be a finite number, not {one}"
            elif not bounds.allow(one):
                yield dotted, f"must be {_each(bounds, one)}, not {one!r}"


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _each(bounds: Bounds, value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"numbers {bounds}" + (", at least one of them" if bounds.some else "")
    if bounds.multiple:
        nearest = max(bounds.multiple, round(value / bounds.multiple) * bounds.multiple)
        return f"{bounds}, for example {nearest}"
    return str(bounds)


def one_of_words(names: tuple[str, ...] | list[str]) -> str:
    """`a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def flatten(settings: Any, mappings: bool = False, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value. Lists are values, and so are mappings, unless the entries of `mappings` count as keys."""
    flat: dict[str, Any] = {}
    named = settings if isinstance(settings, dict) else {f.name: getattr(settings, f.name) for f in fields(settings)}
    for name, value in named.items():
        if is_dataclass(value) or (mappings and isinstance(value, dict) and value):
            flat |= flatten(value, mappings, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
