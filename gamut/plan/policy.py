"""Everything that decides a plan besides the clips and the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass
from typing import Any

from gamut.errors import PlanError
from gamut.numbers import HOP, PATCH, WINDOW
from gamut.settings import above, at_least, between, bounded, multiple_of, one_of, problems, some

PLANNER_VERSION = 3  # raise it when the same inputs give another plan
MAX_LANES = 16
FINGERPRINTED = {"hops": "shifts"}  # earlier names, which fingerprints keep for renamed fields
ADDED = {
    "cached": False,
    "hidden": 0.0,
    "clones": 1,
    "mixtures": 0.0,
}  # fields that came later, with what was done before


@dataclass(frozen=True)
class Policy:
    """How an epoch is cut into steps, packs and crops. Nothing in here depends on who runs it.

    A step is `packs` packs. A pack is exactly `clips` draws, or as many as fit into `tokens` transformer tokens (class
    tokens and all views included) with `packer`: `exact` (oldest clip first, the rest filled by subset-sum with
    `lookahead` clips to choose from) or `next_fit` (in order; ElasticAST), in both cases at most `max_clips`.

    A view is `crop_frames` frames, padded where the clip is shorter and `pad` is set; without `pad`, or without a
    crop, it is as long as the clip, floored to a multiple of 16 frames (at least 16, padded), and never over
    `max_frames`, nor made of more than `max_samples` of the clip: a longer clip is cut there, or is an error, as
    `too_long` says. `hops` are the distances of frames in samples at 16 kHz and `pools` are numbers of frames averaged
    into one; of several, one is drawn for each clip and epoch. Frames are counted after the averaging. With `pad_to`
    every view is as long in time as `pad_to` frames at 10 ms, cut or padded: at C times 10 ms, floor16(pad_to / C).

    A clip has `views` of that kind, then `local_views` of `local_frames`. With probability `roll` its waveform is
    rolled, end to beginning, by a random amount before any view is cut. `drop_tokens` is the share of each view's
    patches that the model leaves out; of the views that are not local it also leaves out a share `hidden`, and has each
    of these `clones` times, of which the batch has one (masks of the same view). With probability `mixup` a draw gets a
    partner, with which it is mixed at a weight from Beta(mixup_beta, mixup_beta); with probability `mixtures` one with
    which it is added up at equal power, while a teacher hears both apart.

    Where the features of clips are `cached`, every clip costs the same, whatever its length: it counts as one token,
    and views, crops and hops say nothing. Its mixup partner is a clip of its own pack, which is read anyway.

    Frames of every view are a multiple of 16; patches are 16x16 and `stride` apart in time and frequency. A view may
    also have a `class_token` and a `distillation_token`.

    An epoch has `draws` (of a mixture of sets in these `proportions`; see gamut/plan/draws.py). A set with clips or
    draws for two blocks of `block` draws is planned a block at a time (see gamut/plan/blocks.py).

    Raises PlanError for an invalid value, naming the field and what it may be.
    """

    packs: int = bounded(MISSING, at_least(1))
    clips: int | None = bounded(None, at_least(1))
    tokens: int | None = bounded(None, at_least(1))
    max_clips: int = bounded(64, at_least(1))
    views: int = bounded(1, at_least(1))
    crop_frames: int | None = bounded(None, multiple_of(PATCH))
    random_crop: bool = True
    pad: bool = True
    max_frames: int | None = bounded(None, multiple_of(PATCH))
    too_long: str = bounded("cut", one_of("cut", "error"))
    max_samples: int | None = bounded(None, at_least(WINDOW))
    hops: tuple[int, ...] = bounded((HOP,), some(at_least(1)))
    pools: tuple[int, ...] = bounded((1,), some(at_least(1)))
    pad_to: int | None = bounded(None, multiple_of(PATCH))
    local_views: int = bounded(0, at_least(0))
    local_frames: int = bounded(192, multiple_of(PATCH))
    roll: float = bounded(0.0, between(0, 1))
    drop_tokens: float = bounded(0.0, between(0, 0.9))
    hidden: float = bounded(0.0, between(0, 0.99))
    clones: int = bounded(1, at_least(1))
    mixup: float = bounded(0.0, between(0, 1))
    mixup_beta: int = bounded(10, at_least(1))
    mixtures: float = bounded(0.0, between(0, 1))
    class_token: bool = True
    cached: bool = False  # the model gets stored features: every clip is one token, and mixed within its pack
    distillation_token: bool = False
    stride: int = bounded(PATCH, between(1, PATCH))
    packer: str = bounded("exact", one_of("exact", "next_fit"))
    lookahead: int = bounded(64, at_least(1))
    window: int = bounded(16384, at_least(1))
    shuffle: bool = True
    locality: str = bounded("none", one_of("none", "node"))
    draws: int | None = bounded(None, at_least(1))  # an epoch; None: as many as there are clips
    proportions: tuple[float, ...] = bounded((), above(0))  # of the draws, one for each set of a mixture
    block: int = bounded(1 << 20, at_least(1))  # draws that are planned together, at least; decides large sets alone

    def __post_init__(self) -> None:
        for field in ("hops", "pools"):
            object.__setattr__(self, field, tuple(int(value) for value in getattr(self, field)))
        object.__setattr__(self, "proportions", tuple(float(part) for part in self.proportions))
        for field, problem in problems(self):
            raise PlanError(f"`{field}` of a plan {problem}.")
        for named, sentence in clashes(self):
            raise PlanError(f"In a plan, {sentence.format(**{field: f'`{field}`' for field in named})}.")

    @property
    def segments(self) -> int:
        """Views of a draw, local ones included."""
        return self.views + self.local_views

    @property
    def lanes(self) -> int:
        """The largest divisor of `packs` up to 16: each lane gives packs / lanes packs to every step."""
        return max(lanes for lanes in range(1, MAX_LANES + 1) if self.packs % lanes == 0)

    def fields(self) -> dict[str, str]:
        """Each field by name, with the planner's version: what a fingerprint is made of.

        Plans of earlier versions stay valid: a renamed field keeps its old name here, and those that were added later
        are left out unless they are set.
        """
        values = {FINGERPRINTED.get(name, name): value for name, value in asdict(self).items()}
        del values["block"]  # most sets are one: `plan_fingerprint` adds it for the others
        named = {name: json.dumps(value) for name, value in values.items() if ADDED.get(name, MISSING) != value}
        return {"planner": str(PLANNER_VERSION)} | named

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any field or with the planner's version."""
        return digest(self.fields())


def clashes(policy: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """The contradictions in a policy, or in an object with its fields: the fields concerned, and a sentence without its
    end that names them as {field}, since a recipe has other names for them."""
    if (policy.clips is None) == (policy.tokens is None):
        given = "neither is" if policy.clips is None else "both are, so set one of them to null"
        yield (
            ("clips", "tokens"),
            "a pack is filled by number of clips or by tokens, so exactly one of {clips} and {tokens} must be set: "
            + given,
        )
    if policy.cached and (policy.views != 1 or policy.local_views or policy.drop_tokens or policy.roll):
        yield (
            ("cached", "views", "local_views", "roll", "drop_tokens"),
            "{cached} features have one view a clip: {views} 1, and {local_views}, {roll} and {drop_tokens} 0",
        )
    if policy.mixtures and (policy.mixup or policy.cached or policy.local_views):
        yield (
            ("mixtures", "mixup", "cached", "local_views"),
            "{mixtures} are sums of two clips' views, of which a teacher hears each: they do not go with {mixup}, "
            "{cached} or {local_views}, so leave these out or set {mixtures} to 0",
        )
    if policy.pad_to and (policy.crop_frames or not policy.pad):
        yield (
            ("pad_to", "crop_frames", "pad"),
            "{pad_to} is a fixed length in time, the same at every resolution: it replaces {crop_frames} (set that to "
            "null) and needs {pad}",
        )
    if policy.crop_frames and policy.max_frames and policy.crop_frames > policy.max_frames:
        yield (
            ("crop_frames", "max_frames"),
            f"{{crop_frames}} ({policy.crop_frames}) is over {{max_frames}} ({policy.max_frames})",
        )


def digest(fields: Mapping[str, str]) -> str:
    """16 hexadecimal digits of named fields."""
    return hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()[:16]


def differing(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the fields in which two fingerprints differ, each as `name (saved, now)`, in order of `now`."""
    names = [*now, *(name for name in saved if name not in now)]
    return [
        f"{name} ({saved.get(name, 'absent')}, now {now.get(name, 'absent')})"
        for name in names
        if saved.get(name) != now.get(name)
    ]
