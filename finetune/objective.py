"""Supervised fine-tuning: a backbone, one vector a clip, a classifier."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from finetune.average import WeightAverage
from gamut.audio.augment import random_noise, spec_augment, time_maximum
from gamut.audio.logmel import cut, normalise
from gamut.data.batch import PackedBatch
from gamut.data.front import spectrogram
from gamut.models.classifier import ClassifierNetwork
from gamut.models.layout import Layout, drop_tokens
from gamut.models.weights import Loaded, load_backbone, load_classifier
from gamut.randomness import Begun, begun
from gamut.recipe import schema
from gamut.train.engine import is_decayed
from gamut.train.objective import Moment, Objective, Prepared, described, evaluating, mixed


class Inputs(Protocol):
    """A micro-batch on the training device."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the network is called with."""
        ...

    @property
    def targets(self) -> torch.Tensor:
        """float32 [C, classes]: one or several ones a row, or a mixture of two such rows."""
        ...

    @property
    def partner_holes(self) -> int:
        """Clips that stay unmixed since their partner could not be read."""
        ...


@dataclass(frozen=True)
class LabelledBatch:
    """A micro-batch on the training device, ready for the classifier."""

    patches: torch.Tensor  # float32 [N, 256]
    where: Layout
    drop_keys: torch.Tensor | None  # int64 [S] in training, where the batch came from
    targets: torch.Tensor  # float32 [C, classes]
    partner_holes: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.patches, self.where, self.drop_keys


def multi_hot(batch: PackedBatch, classes: int) -> torch.Tensor:
    """float32 [C, classes]: the labels of a batch's own clips, one or several a clip."""
    return _rows_of_ones(batch.label_offset, batch.label, classes)


def soft_targets(batch: PackedBatch, classes: int) -> torch.Tensor:
    """float32 [C, classes]: `multi_hot`, mixed as the sounds are: lambda * y1 + (1 - lambda) * y2."""
    own = multi_hot(batch, classes)
    if batch.partner_label_offset is None:
        return own
    assert batch.partner_label is not None
    assert batch.partner_weight is not None
    other = _rows_of_ones(batch.partner_label_offset, batch.partner_label, classes)
    share = batch.partner_weight[:, None]
    return share * own + (1.0 - share) * other


def _rows_of_ones(offset: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
    counts = offset.diff()
    rows = torch.repeat_interleave(torch.arange(len(counts), device=label.device), counts, output_size=len(label))
    target = torch.zeros(len(counts), classes, device=label.device)
    target[rows, label] = 1.0
    return target


class Classify(Objective):
    """Cross-entropy over classes that exclude each other, or binary cross-entropy a class for clips with several."""

    count_names: tuple[str, ...] = ("clips_with_labels",)

    def __init__(
        self,
        recipe: schema.Recipe,
        classes: int,
        mean: float,
        std: float,
        seed: int,
        device: torch.device,
        labels: Sequence[str] = (),
    ) -> None:
        """mean and std: of the log-mel; labels: names of the classes, kept with the weights."""
        self.recipe, self.labels = recipe, tuple(labels)
        self.classes = classes
        self.mean, self.std = mean, std
        self.seed = seed
        self.device = device
        self.model = self._network().to(device)
        self.weights = WeightAverage()

    def _network(self) -> nn.Module:
        network = ClassifierNetwork(self.recipe.model, self.classes, self.seed)
        if self.recipe.finetune.freeze:
            network.freeze()
        return network

    def described(self) -> dict[str, Any]:
        return described(self.recipe, self.mean, self.std) | self.classified()

    def classified(self) -> dict[str, Any]:
        """Of the classes, whatever tells them apart."""
        return {"loss": self.recipe.finetune.loss, "labels": list(self.labels)} if self.labels else {}

    def start_from(self, init: str) -> Loaded:
        """Take the (teacher's) backbone of a run, checkpoint or file, and with `finetune.take_head` its classifier."""
        assert isinstance(self.model, ClassifierNetwork)
        whole = self.recipe.finetune.take_head
        loaded = load_classifier(self.model, init) if whole else load_backbone(self.model.backbone, init)
        return loaded.for_use(self.described())

    def parameter_groups(self) -> list[dict[str, Any]] | None:
        """Layer decay (BEiT, DeiT III): block i of n learns at decay ** (n - i), what lies before block 0 at
        decay ** (n + 1), the last norm and the head at 1. Weight decay as `optim.undecayed` says."""
        decay, depth = self.recipe.optim.layer_decay, self.recipe.model.depth
        after = ["backbone.attn_pool."] + (["backbone.norm."] if self.recipe.model.norm == "pre" else [])
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            block = re.match(r"backbone\.blocks\.(\d+)\.", name)
            late = not name.startswith("backbone.") or name.startswith(tuple(after))
            power = 0 if late else depth - int(block[1]) if block else depth + 1
            weight = float(is_decayed(name, parameter, self.recipe.optim.undecayed))
            groups.setdefault((decay**power, weight), []).append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, "weight_decay_scale": weight}
            for (scale, weight), parameters in groups.items()
        ]

    def averages(self, epoch: int) -> bool:
        first = self.recipe.finetune.average_from
        # An attempt that ended behind the epoch's steps has averaged it.
        return first is not None and self.weights.epochs < epoch + 2 - first

    def average(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights.add(weights)

    def with_average(self) -> contextlib.AbstractContextManager[None]:
        """Within it the model has the mean of its weights over epochs, where there is one."""
        return self.weights.inside(self.model)

    def extra_state(self) -> dict[str, torch.Tensor]:
        return self.weights.tensors()

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        self.weights.load(tensors, self.model)

    def _front_end(self, batch: PackedBatch, keys: tuple[Begun], training: bool) -> torch.Tensor:
        mel = spectrogram(batch, self.recipe.front.mode, self.recipe.views.pad_with, self.compiled())
        augment = self.recipe.augment
        if training and (augment.time_mask or augment.frequency_mask):
            fill = 0.0 if augment.mask_fill == "zero" else self.mean
            widest = time_maximum(augment.time_mask, augment.time_scale, batch.frames, batch.hop, batch.pool)
            mel = spec_augment(mel, batch.frames, batch.sizes, keys, widest, augment.frequency_mask, fill=fill)
        mel = normalise(mel, self.mean, self.std, self.compiled())
        if training and augment.noise:
            mel = random_noise(mel, batch.frames, batch.sizes, keys)
        return cut(mel, batch.frames, batch.sizes, self.recipe.model.stride)

    def _inputs(self, batch: PackedBatch, training: bool) -> Inputs:
        segments = begun(self.seed, batch.epoch, *batch.segment_key())  # on the host, where the batch still is there
        keys = (Begun(segments.word.to(self.device, non_blocking=True)),)
        batch = batch.to(self.device)
        pixels, kept = self._front_end(batch, keys, training), None
        if training and (share := self.recipe.augment.drop_tokens):
            kept = drop_tokens(keys, batch.frames, batch.sizes, share, self.recipe.model.stride)
            pixels = torch.index_select(pixels, 0, kept.patch)
        assert isinstance(self.model, ClassifierNetwork)
        where = self.model.backbone.layout(batch.frames, batch.sizes, kept)
        return LabelledBatch(
            pixels,
            where,
            segments.word if training and not self.recipe.finetune.freeze else None,
            soft_targets(batch, self.classes),
            len(batch.partner_holes),
        )

    def prepare(self, batch: PackedBatch, at: Moment) -> Prepared:
        count = torch.tensor([float(batch.clips)], dtype=torch.float64)  # the loop brings it to the device
        return Prepared(self._inputs(batch, training=True), count)

    def loss(
        self, engine: nn.Module, prepared: Prepared, totals: dict[str, float], at: Moment
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        clips: Inputs = prepared.inputs
        with mixed(self.model, self.recipe.precision, self.device):
            logits = engine(*clips.arguments).float()
        smoothing = self.recipe.finetune.label_smoothing
        if self.recipe.finetune.loss == "ce":
            target = clips.targets / clips.targets.sum(1, keepdim=True).clamp_min(1.0)
            target = target * (1.0 - smoothing) + smoothing / self.classes
            sums = -(target * F.log_softmax(logits, dim=-1)).sum()
        else:
            target = clips.targets * (1.0 - smoothing) + (1.0 - clips.targets) * smoothing / self.classes
            sums = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / self.classes
        clips_in_step = max(totals["clips_with_labels"], 1.0)
        right = clips.targets.gather(1, logits.argmax(1, keepdim=True)).sum()
        loss = sums / clips_in_step
        metrics = {"loss": loss.detach(), "train/accuracy": right / clips_in_step}
        if self.recipe.augment.mixup:
            metrics["mixup/partner_holes"] = torch.tensor(float(clips.partner_holes))
        return loss, metrics

    @torch.no_grad()
    def logits(self, batch: PackedBatch) -> torch.Tensor:
        """Scores of a batch, float32 [C, classes], without augmentation."""
        clips = self._inputs(batch, training=False)
        with evaluating(self.model, self.recipe.precision, self.device):
            return self.model(*clips.arguments).float()
