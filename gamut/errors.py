"""Errors that a person can act on.

Every error that a user's input can cause is a `GamutError` whose message is one or more full sentences: what was
wrong, where (file, key, clip), and what to do. Commands print the message without a stack trace and exit with
its `status` (gamut/commands.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class GamutError(Exception):
    """Something that the person at the keyboard can put right. The message is for them."""

    status = 2  # of a command that it ends


class RecipeError(GamutError):
    """A recipe, an override or a key in one of them is wrong."""


class ShardError(GamutError):
    """A shard set, an index or a tar member is missing, damaged or out of date."""


class AudioError(GamutError):
    """An audio file or clip cannot be used. `reason` is a short stable word for counting, such as `truncated`."""

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class FeatureError(GamutError):
    """A cache or file of features is missing, unfinished or damaged, cannot be written, or has no features of a clip
    that is asked for."""


class PlanError(GamutError):
    """A plan cannot be made from this index and policy, or a saved plan does not belong to them."""


class CheckpointError(GamutError):
    """A checkpoint is missing, damaged, or belongs to another recipe, model or world."""


class ExportError(GamutError):
    """A format cannot hold a model, what it needs is not installed, or there is no place for the exported folder."""


class RunError(GamutError):
    """A run cannot start or go on: another writer holds its folder, too many holes, too many bad steps."""


class MachineError(RunError):
    """A machine, its memory or a process of a run has failed, by no mistake in the run: another start may do."""

    status = 71  # EX_OSERR


def missing(package: str, extra: str) -> str:
    """What is said of a package that an extra of Gamut brings. By the clone, since Gamut is in no package registry."""
    return f"the package {package}, which is not installed. In the clone: pip install '.[{extra}]'"


def nearest(word: str, names: Sequence[str], prefix: str = "") -> str:
    """The end of a sentence about an unknown name: `; the nearest valid name is NAME`, or nothing if none is near."""
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; the nearest valid name is {prefix}{found[0]}" if found else ""
