"""Training a head on the cached features of a frozen encoder (Whisper-AT)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from finetune.objective import Classify, soft_targets
from gamut.audio.augment import mask_span
from gamut.data.batch import PackedBatch
from gamut.models.tagger import LoadedHead, Tagger, load_tagger
from gamut.randomness import Purpose
from gamut.recipe import schema


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

    def start_from(self, init: str) -> LoadedHead:
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
