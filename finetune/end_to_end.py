"""Fine-tuning a Whisper with its head, end to end (Whisper-AT, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.heads import TagFeatures, hidden_steps, mask_time
from finetune.objective import soft_targets
from gamut.audio.waveform import Partner, mixed
from gamut.data.batch import PackedBatch
from gamut.features.extract import pool
from gamut.models.tagger import Tagger, load_tagger
from gamut.models.weights import Loaded
from gamut.models.whisper import STEP, Whisper, load_whisper
from gamut.numbers import HOP, RATE
from gamut.recipe import schema


class TaggingWhisper(nn.Module):
    """Encoder and head as one network: from log-mels to logits."""

    def __init__(self, whisper: Whisper, tagger: Tagger, width: int) -> None:
        super().__init__()
        self.whisper = whisper
        self.tagger = tagger
        self.width = width
        whisper.encoder.requires_grad_(True)
        whisper.encoder.embed_positions.requires_grad_(False)  # sines, not learned
        whisper.encoder.layer_norm.requires_grad_(False)  # behind the last block's output, which is what the head takes

    def train(self, mode: bool = True) -> TaggingWhisper:
        """The encoder stays as it is evaluated: a dropout of its own would draw from torch's generator."""
        super().train(mode)
        self.whisper.eval()
        return self

    def forward(self, mel: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Logits [C, classes] of log-mels [C, mels, frames]; hidden: bool [C, steps / width], steps set to zero."""
        if not len(mel):  # transformers cannot encode no clip: silence, of which nothing is kept, runs the same layers
            return self(mel.new_zeros(1, *mel.shape[1:]), None)[:0]
        blocks = self.whisper(mel, lambda number, output: pool(output, self.width)).blocks
        features = torch.stack(blocks, 1)
        return self.tagger(features if hidden is None else mask_time(features, hidden))


@dataclass(frozen=True)
class Sounds:
    """A micro-batch of log-mels on the training device."""

    mel: torch.Tensor  # float32 [C, mels, frames]
    hidden: torch.Tensor | None  # bool [C, steps], in training
    targets: torch.Tensor  # float32 [C, classes]
    partner_holes: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.mel, self.hidden


def waveforms(batch: PackedBatch, samples: int) -> torch.Tensor:
    """float32 [C, samples] in [-1, 1): each clip's window, mixed with its partner where it has one.

    What is mixed is free of its mean, as everywhere; a clip by itself is as it was encoded for a cache.
    """
    own = batch.waveform.float() / 32768.0
    if batch.partner_waveform is not None and batch.segments:
        assert batch.partner_offset is not None
        assert batch.partner_weight is not None
        assert batch.partner_row is not None
        partner = Partner(batch.partner_waveform, batch.partner_offset, batch.partner_weight)
        mixtures = mixed(batch.waveform, batch.offset, batch.length, partner).view(batch.clips, -1)
        alone = batch.partner_row < 0
        return torch.where(alone[:, None], own.view(batch.clips, -1), mixtures)[:, :samples]
    return own.view(batch.clips, -1)[:, :samples] if batch.clips else own.view(0, 0).new_zeros(0, samples)


class EndToEnd(TagFeatures):
    """`TagFeatures` whose features are made by the encoder that learns with the head."""

    def __init__(self, recipe: schema.Recipe, classes: int, labels: list[str], seed: int, device: torch.device) -> None:
        """Raises CheckpointError where recipe.encoder is no Whisper."""
        head = recipe.head
        whisper = load_whisper(recipe.encoder)
        self.samples = round(head.seconds * RATE) // STEP * STEP
        steps = -(-(self.samples // STEP) // head.pool)
        about = {"name": recipe.encoder, "seconds": head.seconds, "pool": head.pool, "labels": labels}
        tagger = Tagger(head, whisper.depth, whisper.dim, classes, seed)
        self._made = TaggingWhisper(whisper, tagger, head.pool)
        self.mels = whisper.mels
        super().__init__(recipe, classes, (whisper.depth, steps, whisper.dim), about, seed, device)

    def _network(self) -> nn.Module:
        return self._made

    def start_from(self, init: str) -> Loaded:
        return load_tagger(self._made.tagger, init)

    def parameter_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The encoder at the learning rate, the head at `optim.head_scale` times it."""
        encoder = [one for one in self._made.whisper.parameters() if one.requires_grad]
        return [
            {"params": encoder},
            {"params": list(self._made.tagger.parameters()), "lr_scale": self.recipe.optim.head_scale},
        ]

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return list(self._made.whisper.encoder.layers) if module is self.model else []

    def _inputs(self, batch: PackedBatch, training: bool) -> Sounds:  # type: ignore[override]
        batch = batch.to(self.device)
        targets = soft_targets(batch, self.classes)
        wave = waveforms(batch, self.samples)
        mel = self._made.whisper.log_mel(wave) if batch.clips else wave.new_zeros(0, self.mels, self.samples // HOP)
        hidden, maximum = None, self.recipe.augment.time_mask
        if training and maximum:
            keys = (self.seed, batch.epoch, *batch.segment_key())
            hidden = hidden_steps(batch.clips, self.shape[1], keys, maximum, self.device)
        return Sounds(mel, hidden, targets, len(batch.partner_holes))
