"""Entries by name, to which modules outside of this package add their own.

A room says what one of its entries is and keeps them in a `Registry`. Whoever writes another, such as a metric,
registers it in a module of their own and names the module in the environment variable `GAMUT_PLUGINS`
(`GAMUT_PLUGINS=my_metrics,my_data`), or installs it with an entry point in the group `gamut.plugins`. These modules are
imported at the first look-up in any registry, so that an entry from outside is there in every command, rank, loader
worker and task that inherits the environment.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from gamut.errors import GamutError, RecipeError, nearest

GROUP = "gamut.plugins"
VARIABLE = "GAMUT_PLUGINS"

Entry = TypeVar("Entry")
Made = TypeVar("Made")


class RegistryError(GamutError):
    """Two entries of one name, or a plugin that cannot be imported."""


class Registry(Generic[Entry]):
    """What there is of one kind, by name.

    kind: a noun for the messages, such as `metric`. built_in: the package's own entries, each as `module:attribute`,
    whose module is imported when the entry is asked for.

    >>> shapes: Registry[type] = Registry("shape", {"fraction": "fractions:Fraction"})
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes["square"], shapes["fraction"]
    (<class 'gamut.registry.Square'>, <class 'fractions.Fraction'>)
    >>> shapes["sqare"]
    Traceback (most recent call last):
        ...
    gamut.errors.RecipeError: There is no shape 'sqare'; the nearest valid name is square. There are: fraction, square.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._late = dict(built_in or {})
        self._entries: dict[str, Entry] = {}
        self._places = dict(self._late)  # where each name was registered

    def add(self, name: str, entry: Entry) -> Entry:
        """Register `entry` and return it. Raises RegistryError where another place has registered the name."""
        caller = sys._getframe(1)
        return self._add(name, entry, f"{caller.f_code.co_filename}:{caller.f_lineno}")

    def register(self, name: str) -> Callable[[Made], Made]:
        """`add` as a decorator of a class or function that is itself the entry."""
        caller = sys._getframe(1)
        place = f"{caller.f_code.co_filename}:{caller.f_lineno}"

        def decorate(entry: Made) -> Made:
            self._add(name, cast(Entry, entry), place)
            return entry

        return decorate

    def _add(self, name: str, entry: Entry, place: str) -> Entry:
        first = self._places.setdefault(name, place)
        if first != place:  # the same place twice: a module that is imported again
            raise RegistryError(
                f"There are two entries for the {self.kind} {name!r}: {first} and {place}. Rename one of them."
            )
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name. Raises RecipeError with the nearest name, and all there are, for an unknown one."""
        if name not in self:
            known = sorted(self._places)
            listed = ", ".join(known) or "none"
            raise RecipeError(f"There is no {self.kind} {name!r}{nearest(name, known)}. There are: {listed}.")
        if name not in self._entries:
            module, _, attribute = self._late[name].partition(":")
            self._entries[name] = getattr(importlib.import_module(module), attribute)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """The names, the built-in ones first, in the order of registration."""
        load_plugins()
        return iter(list(self._places))


_lock = threading.RLock()
_loaded = False


def load_plugins() -> None:
    """Import the modules named by entry points in `gamut.plugins` and by GAMUT_PLUGINS, once a process.

    Raises RegistryError naming the plugin that fails; the next call then tries again.
    """
    global _loaded
    with _lock:
        if _loaded:
            return
        _loaded = True  # before: a plugin may look something up while it is imported
        from importlib import metadata  # which takes longer than the rest of this module

        try:
            for module in os.environ.get(VARIABLE, "").split(","):
                if name := module.strip():
                    _load(name, VARIABLE, functools.partial(importlib.import_module, name))
            for point in metadata.entry_points(group=GROUP):
                origin = f"the entry point {point.name} of {point.dist.name if point.dist else '?'}"
                _load(point.module, origin, point.load)
        except BaseException:
            _loaded = False
            raise


def _load(name: str, origin: str, load: Callable[[], object]) -> None:
    """Import the plugin `name`. Raises RegistryError with what is wrong with it and who named it."""
    plugin = f"The plugin {name}, named by {origin}, cannot be imported"
    try:
        load()
    except ModuleNotFoundError as error:
        lacking = "there is no such module" if error.name == name else f"it needs the module {error.name}"
        raise RegistryError(f"{plugin}: {lacking}. Install it, or put its folder on PYTHONPATH.") from error
    except GamutError as error:
        raise RegistryError(f"{plugin}. {error}") from error
    except Exception as error:  # it runs what others wrote
        raise RegistryError(f"{plugin}: {type(error).__name__}: {error}.") from error


# What a recipe names, of kinds that are defined in rooms above it (`gamut.models.backbone.Backbone`,
# `gamut.train.objective.Pretraining`).
BACKBONES: Registry[Any] = Registry(
    "backbone", {"vit": "gamut.models.vit:VisionTransformer", "beats": "gamut.models.beats:Beats"}
)
OBJECTIVES: Registry[Any] = Registry("objective", {"asit": "pretrain.asit:Asit"})
