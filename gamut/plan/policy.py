"""Everything that decides a plan besides the clips and the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from gamut.errors import PlanError
from gamut.patches import PATCH

PLANNER_VERSION = 3  # raise it when the same inputs come to give another plan
MAX_LANES = 16

UNIT_HOP = 160  # 10 ms at 16 kHz: the hop at resolution C = 1
WINDOW_SAMPLES = 400  # 25 ms at 16 kHz: the first frame of a log-mel


@dataclass(frozen=True)
class Policy:
    """How an epoch is cut into steps, packs and crops. Nothing in here depends on who runs it.

    A step is `packs` packs. A pack is exactly `clips` draws, or as many as fit into `tokens` transformer tokens (class
    tokens and all views included) with `packer`: `exact` (oldest clip first, the rest filled by subset-sum with
    `lookahead` clips to choose from) or `next_fit` (in order; ElasticAST), in both cases at most `max_clips`.

    A view is `crop_frames` frames, padded where the clip is shorter and `pad` is set; without `pad`, or without a
    crop, it is as long as the clip, floored to a multiple of 16 frames (at least 16, padded), and never over
    `max_frames`, nor made of more than `max_samples` of the clip: a longer clip is cut there, or is an error, as
    `too_long` says. `shifts` are hops between frames in samples at 16 kHz and `pools` are numbers of frames averaged
    into one; of several, one is drawn for each clip and epoch. Frames are counted after the averaging. With `pad_to`
    every view is as long in time as so many frames at 10 ms, cut or padded: at C times 10 ms, floor16(pad_to / C).

    A clip has `views` of that kind, then `local_views` of `local_frames`. With probability `roll` its waveform is
    rolled, end to beginning, by a random amount before any view is cut. `drop_tokens` is the share of each view's
    patches that the model leaves out. With probability `mixup` a draw gets a partner, with which it is mixed at a
    weight from Beta(mixup_beta, mixup_beta).

    Where the features of clips are `cached`, every clip costs the same, whatever its length: it counts as one token,
    and views, crops and hops say nothing. Its mixup partner is a clip of its own pack, which is read anyway.

    Frames of every view are a multiple of 16; patches are 16x16 and `stride` apart in time and frequency. A view has a
    `class_token` and a `distillation_token` besides, or not.

    An epoch has `draws` (of a mixture of sets in these `proportions`; see gamut/plan/draws.py).

    Raises PlanError for a value that cannot be, naming the field and what it may be.
    """

    packs: int
    clips: int | None = None
    tokens: int | None = None
    max_clips: int = 64
    views: int = 1
    crop_frames: int | None = None
    random_crop: bool = True
    pad: bool = True
    max_frames: int | None = None
    too_long: str = "cut"  # cut | error
    max_samples: int | None = None
    shifts: tuple[int, ...] = (160,)
    pools: tuple[int, ...] = (1,)
    pad_to: int | None = None
    local_views: int = 0
    local_frames: int = 192
    roll: float = 0.0
    drop_tokens: float = 0.0
    mixup: float = 0.0
    mixup_beta: int = 10
    class_token: bool = True
    cached: bool = False  # the model gets stored features: every clip is one token, and mixed within its pack
    distillation_token: bool = False
    stride: int = PATCH
    packer: str = "exact"  # exact | next_fit
    lookahead: int = 64
    window: int = 16384
    shuffle: bool = True
    locality: str = "none"  # none | node
    draws: int | None = None  # an epoch; None: as many as there are clips
    proportions: tuple[float, ...] = ()  # of the draws, one for each set of a mixture

    def __post_init__(self) -> None:
        for field in ("shifts", "pools"):
            object.__setattr__(self, field, tuple(int(value) for value in getattr(self, field)))
        object.__setattr__(self, "proportions", tuple(float(part) for part in self.proportions))
        for field in ("packs", "clips", "tokens", "max_clips", "views", "lookahead", "window", "mixup_beta", "draws"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise PlanError(f"`{field}` of a plan is {value}; it must be at least 1.")
        if not 1 <= self.stride <= PATCH:
            raise PlanError(f"`stride` of a plan is {self.stride}; it must lie between 1 and {PATCH}, a patch's width.")
        if self.local_views < 0:
            raise PlanError(f"`local_views` of a plan is {self.local_views}; it must be at least 0.")
        if self.max_samples is not None and self.max_samples < WINDOW_SAMPLES:
            raise PlanError(f"`max_samples` of a plan is {self.max_samples}; it must hold a window of 400 samples.")
        for field, most in (("roll", 1.0), ("mixup", 1.0), ("drop_tokens", 0.9)):
            value = getattr(self, field)
            if not 0.0 <= value <= most:
                raise PlanError(f"`{field}` of a plan is {value}; it must lie between 0 and {most:g}.")
        for field in ("crop_frames", "max_frames", "pad_to", "local_frames"):
            value = getattr(self, field)
            if value is not None and (value < PATCH or value % PATCH):
                nearest = max(PATCH, round(value / PATCH) * PATCH)
                raise PlanError(f"`{field}` of a plan is {value}; it must be a multiple of 16, for example {nearest}.")
        for field, known in (
            ("too_long", ("cut", "error")),
            ("packer", ("exact", "next_fit")),
            ("locality", ("none", "node")),
        ):
            if getattr(self, field) not in known:
                raise PlanError(f"`{field}` of a plan is {getattr(self, field)!r}; it must be {' or '.join(known)}.")
        if (self.clips is None) == (self.tokens is None):
            raise PlanError(
                f"A pack is filled by number of clips or by tokens: give one of `clips` and `tokens` "
                f"(they are {self.clips} and {self.tokens})."
            )
        if self.cached and (self.segments != 1 or self.drop_tokens or self.roll):
            raise PlanError("A plan of `cached` features has one view a clip: no local views, roll or token dropout.")
        if not all(0 < part < float("inf") for part in self.proportions):
            raise PlanError(f"`proportions` of a plan is {self.proportions}; each must be above 0.")
        if not self.shifts or min(self.shifts) < 1:
            raise PlanError(f"`shifts` of a plan is {self.shifts}; it needs at least one hop of 1 sample or more.")
        if not self.pools or min(self.pools) < 1:
            raise PlanError(f"`pools` of a plan is {self.pools}; it needs at least one number of frames, 1 or more.")
        if self.pad_to and (self.crop_frames or not self.pad):
            raise PlanError(
                f"`pad_to` ({self.pad_to}) makes all views of one length in time, by padding: it takes the place of "
                f"`crop_frames` ({self.crop_frames}) and needs `pad`."
            )
        if self.crop_frames and self.max_frames and self.crop_frames > self.max_frames:
            raise PlanError(f"`crop_frames` ({self.crop_frames}) is over `max_frames` ({self.max_frames}).")

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

        `cached` is named where it is set: a plan made before there was such a field is still the same plan.
        """
        values = {name: value for name, value in asdict(self).items() if name != "cached" or value}
        return {"planner": str(PLANNER_VERSION)} | {name: json.dumps(value) for name, value in values.items()}

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any field or with the planner's version."""
        return digest(self.fields())


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
