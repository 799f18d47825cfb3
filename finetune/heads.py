"""Training a head on the cached features of a frozen encoder (Whisper-AT).

The cache is opened, and looked through for the round's clips, before anything is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.objective import Classify, soft_targets
from gamut.audio.augment import mask_span
from gamut.data.batch import Hole, PackedBatch
from gamut.data.loader import Loader
from gamut.errors import FeatureError
from gamut.features import FeatureCache, Info
from gamut.models.tagger import Tagger, load_tagger, reads
from gamut.models.weights import Loaded
from gamut.plan import Clips
from gamut.randomness import Purpose
from gamut.recipe import schema
from gamut.shards import Index


def open_features(recipe: schema.Recipe, index: Index) -> FeatureCache | None:
    """The cache that the recipe names, or None where it names none.

    Raises FeatureError where there is no finished cache, or it is of another shard set than the recipe's data.
    """
    if not recipe.features:
        return None
    cache = FeatureCache(recipe.features)
    cache.check_index(index.fingerprint)
    return cache


def require_features(cache: FeatureCache | None, index: Index, clips: Clips | None, *, scored: bool = False) -> None:
    """Raises FeatureError where the cache was not made of all these clips, or, of clips that are `scored`, one was
    unusable then: such a hole is counted in training, and a score does not allow it."""
    if cache is None or clips is None:
        return
    rows = np.asarray(clips.row)
    absent = rows[~np.isin(rows, cache.rows)]
    if len(absent):
        raise FeatureError(
            f"The cache {cache.folder} lacks {len(absent)} of {len(rows)} clips of this round, such as "
            f"{index.key(int(absent[0]))}: extract features of the whole set, or name the subset that it was made of."
        )
    holes = rows[~cache.has(rows)] if scored else rows[:0]
    if len(holes):
        raise FeatureError(
            f"The cache {cache.folder} has no features of {len(holes)} of {len(rows)} clips to be scored, such as "
            f"{index.key(int(holes[0]))}: they were unusable when they were to be encoded. Mend the shard set and "
            "extract with --mend, or leave these clips out of the set."
        )


@dataclass(frozen=True)
class Layers:
    """A cache as its layers `chosen` alone: what no head reads need not be sent, mixed and masked."""

    cache: FeatureCache
    chosen: slice

    @property
    def holes(self) -> Sequence[Hole]:
        return self.cache.holes

    @property
    def info(self) -> Info:
        return self.cache.info

    def read(self, rows: np.ndarray) -> np.ndarray:
        """As `FeatureCache.read`, which checks whole records."""
        return np.ascontiguousarray(self.cache.read(rows)[:, self.chosen])


def loader_of(cache: FeatureCache | None, head: schema.Head) -> Callable[..., Loader]:
    """What makes the loaders of a run: of the features that the head reads where there is a cache, else of sound."""
    return Loader if cache is None else functools.partial(Loader, features=Layers(cache, reads(head.kind)))


def encoder_of(cache: FeatureCache) -> dict[str, Any]:
    """What a head must know of the encoder that it was trained on, as JSON holds it."""
    info = cache.info
    return {
        "name": info.name,
        "model": info.model,
        "front": info.front,
        "pooling": info.pooling,
        "blocks": list(info.blocks),
        "fingerprint": info.fingerprint,
    }


@dataclass(frozen=True)
class Features:
    """A micro-batch of features on the training device, mixed and masked."""

    features: torch.Tensor  # [C, layers, steps, dim]
    targets: torch.Tensor  # float32 [C, classes]
    partner_holes: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (self.features,)


def mix(batch: PackedBatch) -> torch.Tensor:
    """[C, layers, steps, dim]: lambda * own + (1 - lambda) * partner's, in float32; a clip without one as it is."""
    assert batch.features is not None
    if batch.partner_clip is None:
        return batch.features
    assert batch.partner_weight is not None
    own = batch.features.float()
    alone = batch.partner_clip < 0
    partner = torch.where(alone, torch.arange(len(own), device=own.device), batch.partner_clip)
    return torch.lerp(torch.index_select(own, 0, partner), own, batch.partner_weight[:, None, None, None])


def hidden_steps(
    clips: int, steps: int, keys: tuple[int | torch.Tensor, ...], maximum: int, device: torch.device
) -> torch.Tensor:
    """bool [C, steps]: a run of U[0, maximum) of the steps of each clip; where it lies is uniform.

    keys: (seed, epoch, clip id, draw, view), integers or int64 [C].
    """
    size = torch.full((clips,), steps, dtype=torch.int64, device=device)
    begin, end = mask_span(keys, Purpose.SPEC_TIME, maximum, size)
    step = torch.arange(steps, device=device)
    return (step >= begin[:, None]) & (step < end[:, None])


def mask_time(features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Features [C, layers, steps, dim] with zeros in the hidden steps (bool [C, steps]) of all layers."""
    return features.masked_fill(hidden[:, None, :, None], 0.0)


class TagFeatures(Classify):
    """`Classify` for a head in place of a whole network; the payload of its batches is features."""

    def __init__(
        self,
        recipe: schema.Recipe,
        classes: int,
        shape: tuple[int, int, int],
        about: dict[str, Any],
        seed: int,
        device: torch.device,
    ) -> None:
        """shape: (layers, steps, dim) of the cache; about: what it says of its encoder, kept with the weights."""
        self.shape, self.about = shape, about
        super().__init__(recipe, classes, 0.0, 1.0, seed, device, about.get("labels", ()))

    def _network(self) -> nn.Module:
        layers, _, dim = self.shape
        return Tagger(self.recipe.head, layers, dim, self.classes, self.seed)

    def described(self) -> dict[str, Any]:
        return {"head": asdict(self.recipe.head), "shape": list(self.shape), "encoder": self.about} | self.classified()

    def start_from(self, init: str) -> Loaded:
        """Take a head, ours or a public one; its classifier too, where it is for as many classes."""
        assert isinstance(self.model, Tagger)
        return load_tagger(self.model, init)

    def parameter_groups(self) -> None:
        return None

    def _inputs(self, batch: PackedBatch, training: bool) -> Features:
        batch = batch.to(self.device)
        assert batch.features is not None
        targets = soft_targets(batch, self.classes)
        if not training:
            return Features(batch.features.float(), targets, 0)
        features = mix(batch).float()
        if self.recipe.augment.time_mask:
            keys = (self.seed, batch.epoch, *batch.segment_key())
            clips, _, steps, _ = features.shape
            hidden = hidden_steps(clips, steps, keys, self.recipe.augment.time_mask, self.device)
            features = mask_time(features, hidden)
        return Features(features, targets, len(batch.partner_holes))
