"""The ASiT objective: group-masked reconstruction, local and global self-distillation (Atito et al.).

The student sees both views with blocks hidden, the teacher sees them whole. One forward of each over both views. Local
crops (multi-crop), where the recipe asks for them, go to the student alone, whole, and serve the global loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from gamut.audio.logmel import normalise, patches
from gamut.data.batch import PackedBatch
from gamut.data.front import spectrogram
from gamut.models.backbone import Backbone
from gamut.models.find import OBJECTIVE
from gamut.models.layout import BANDS, Layout
from gamut.models.strict import require_fit
from gamut.models.weights import Loaded, load_backbone
from gamut.numbers import PATCH
from gamut.randomness import key_torch
from gamut.recipe import schema
from gamut.train.objective import Moment, Prepared, Pretraining
from gamut.train.parts import fill, shape, whole_state
from pretrain import losses
from pretrain.collapse import collapse
from pretrain.masking import Hidden, hide, mask_keys
from pretrain.network import AsitNetwork, Outputs
from pretrain.teacher import Centre, Spread, make_teacher, momentum, move, sum_up, temperature


@dataclass(frozen=True)
class MaskedBatch:
    """A micro-batch on the training device: clean patches, masks and the packed layout."""

    clean: torch.Tensor  # float32 [G, 256], normalised, of the two views of each clip: what the teacher gets
    own: Hidden  # the same two views, masked
    teacher: Layout
    hidden: torch.Tensor  # float32 [N, 256], masked, local crops included: what the student gets
    student: Layout
    number: torch.Tensor  # int64 [G], which of the student's patches each of the teacher's is
    drop_keys: torch.Tensor  # int64 [S]
    local: torch.Tensor  # int64: the teacher's patches of the local loss
    rebuild: torch.Tensor | None  # int64: the teacher's patches of the reconstruction loss, if there is one
    counted: torch.Tensor  # bool [len(rebuild), 256]: pixels of the reconstruction loss
    beside: torch.Tensor | None  # int64 [S]: the student's segments of one number are neighbours for KoLeo, if it is on
    clips: int
    crops: int  # local crops a clip


def patch_numbers(frames: torch.Tensor, views: int, whole: int, total: int) -> torch.Tensor:
    """int64 [total], ascending: the numbers of the patches that belong to the first `whole` of each clip's `views`.

    frames: int64 [clips * views].
    """
    count = frames // PATCH * BANDS
    first = count.cumsum(0) - count
    count, first = (x.view(-1, views)[:, :whole].reshape(-1) for x in (count, first))
    ahead = torch.repeat_interleave(first - (count.cumsum(0) - count), count, output_size=total)
    return ahead + torch.arange(total, device=frames.device)


def neighbourhoods(batch: PackedBatch) -> torch.Tensor:
    """int64 [S]: a number for each pack and view; a local crop has one of its own, so no neighbours.

    Neighbours are of one pack, since a pack is the same at any number of ranks and micro-batches.
    """
    device, views, whole = batch.frames.device, batch.views, batch.views - batch.local_views
    packs = torch.arange(len(batch.pack_clips)).repeat_interleave(torch.tensor(batch.pack_clips, dtype=torch.int64))
    number = packs[:, None] * views + torch.arange(views)
    alone = -1 - torch.arange(number.numel()).view(number.shape)
    number = torch.where(torch.arange(views) < whole, number, alone)
    return number.view(-1).to(device, non_blocking=True)


class Asit(Pretraining):
    """Teacher and student on packed views. `model` is the student; the teacher is ours to move."""

    count_names = ("masked_pixels", "local_tokens", "class_pairs", "pixels", "neighbours")

    def __init__(self, recipe: schema.Recipe, mean: float, std: float, device: torch.device) -> None:
        self.options = recipe.asit
        self.seed = recipe.seed
        self.mean, self.std, self.mode = mean, std, recipe.front.mode
        self.pad_with = recipe.views.pad_with
        self.precision = recipe.precision
        self.device = device
        self.model: AsitNetwork = AsitNetwork(recipe.model, recipe.asit, recipe.seed).to(device)
        self.teacher = make_teacher(self.model)
        self.rebuilds = recipe.asit.weight_reconstruction > 0
        self.epochs = recipe.epochs
        asit = recipe.asit
        self.centre_class = Centre(asit.prototypes, asit.centre_momentum, device)
        self.centre_data = Centre(asit.prototypes_data or asit.prototypes, asit.centre_momentum, device)
        widths = {"teacher/spread": asit.prototypes, "student/spread": asit.prototypes} if asit.weight_global else {}
        widths |= {"teacher/spread_data": asit.prototypes_data or asit.prototypes} if asit.weight_local else {}
        self.spreads = {name: Spread(width, device) for name, width in widths.items()}

    @property
    def backbone(self) -> Backbone:
        return cast(Backbone, self.teacher.backbone)

    def start_from(self, init: str) -> Loaded:
        """Take the backbone of another run, checkpoint or file, for student and teacher; the heads stay fresh."""
        loaded = load_backbone(self.model.backbone, init)
        self.teacher.load_state_dict(self.model.state_dict())
        return loaded.for_use(self.described())

    def front_end(self, batch: PackedBatch) -> torch.Tensor:
        """Normalised log-mel patches [N, 256] of a batch on the device, float32."""
        mel = spectrogram(batch, self.mode, self.pad_with)
        return patches(normalise(mel, self.mean, self.std))

    def prepare(self, batch: PackedBatch, at: Moment) -> Prepared:
        batch = batch.to(self.device)
        clip_id, draw, view = batch.segment_key()
        both = self.front_end(batch)
        options, crops = self.options, batch.local_views
        frames, sizes, number, clean = batch.frames, batch.sizes, torch.arange(len(both), device=self.device), both
        keys = mask_keys(self.seed, batch.epoch, clip_id, draw, view)
        if crops:
            whole = batch.views - crops
            frames, keys = (x.view(-1, batch.views)[:, :whole].reshape(-1) for x in (frames, keys))
            sizes = tuple(size for at, size in enumerate(batch.sizes) if at % batch.views < whole)
            number = patch_numbers(batch.frames, batch.views, whole, sum(sizes) // PATCH * BANDS)
            clean = torch.index_select(both, 0, number)
        teacher = self.model.backbone.layout(frames, sizes)
        own = hide(clean, teacher, frames, sizes, keys, batch.views - crops, batch.pack_clips, options)
        hidden, student = own.patches, teacher
        if crops:
            hidden = both.index_copy(0, number, hidden)
            student = self.model.backbone.layout(batch.frames, batch.sizes)
        everything = torch.arange(len(clean), device=self.device)
        touched = own.masks.touched.nonzero()[:, 0]
        masked = options.mask_target > 0
        local = touched if masked and options.local_on == "masked" else everything
        if not options.weight_local:
            local = everything[:0]
        rebuild = touched if masked else everything
        counted = own.masks.patches[rebuild] if masked else torch.ones_like(clean, dtype=torch.bool)
        drop_keys = key_torch(self.seed, batch.epoch, clip_id, draw, view, device=self.device)
        inputs = MaskedBatch(
            clean=clean,
            own=own,
            teacher=teacher,
            hidden=hidden,
            student=student,
            number=number,
            drop_keys=drop_keys,
            local=local,
            rebuild=rebuild if options.weight_reconstruction else None,
            counted=counted,
            beside=neighbourhoods(batch) if options.weight_koleo else None,
            clips=batch.clips,
            crops=crops,
        )
        neighbours = sum(clips for clips in batch.pack_clips if clips > 1) * (batch.views - crops)
        counts = torch.stack(
            [
                counted.sum(dtype=torch.float64),
                torch.tensor(float(len(local)), dtype=torch.float64, device=self.device),
                torch.tensor(2.0 * (1 + crops) * batch.clips, dtype=torch.float64, device=self.device),
                torch.tensor(float(clean.numel()), dtype=torch.float64, device=self.device),
                torch.tensor(float(neighbours), dtype=torch.float64, device=self.device),
            ]
        )
        return Prepared(inputs, counts)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def loss(
        self, engine: nn.Module, prepared: Prepared, totals: dict[str, float], at: Moment
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        views: MaskedBatch = prepared.inputs
        options = self.options
        everything = torch.arange(len(views.clean), device=self.device)
        with self._autocast():
            student: Outputs = engine(
                views.hidden,
                views.student,
                views.drop_keys,
                views.number[views.local],
                None if views.rebuild is None else views.number[views.rebuild],
                frozen=at.epoch < options.freeze_output_epochs,
                with_vectors=True,
            )
        sums: dict[str, torch.Tensor] = {}
        metrics: dict[str, torch.Tensor] = {}
        if student.pixels is not None:
            clean = views.clean[views.rebuild]
            sums["reconstruction"] = losses.reconstruction(student.pixels, clean, views.counted)
        teacher, warmth = Outputs(None, None, None), self.teacher_temperature(at)
        if student.classes is not None or student.data is not None:
            with torch.no_grad(), self._autocast():
                teacher = self.teacher(views.clean, views.teacher, None, everything)
        if student.data is not None and teacher.data is not None:
            self.centre_data.add(teacher.data)
            target = losses.teacher_distribution(teacher.data[views.local], self.centre_data.value, warmth)
            self.spreads["teacher/spread_data"].add(target)
            sums["local"] = losses.cross_entropy(target, student.data, options.student_temperature)
            metrics["teacher/entropy_data"] = losses.entropy(target) / max(totals["local_tokens"], 1.0)
        if student.classes is not None and teacher.classes is not None:
            self.centre_class.add(teacher.classes)
            target = losses.teacher_distribution(teacher.classes, self.centre_class.value, warmth)
            self.spreads["teacher/spread"].add(target)
            sharpened = student.classes.detach().float() / options.student_temperature
            self.spreads["student/spread"].add(sharpened.softmax(dim=-1))
            width = target.shape[1]
            sums["global"] = losses.crosswise(
                target.view(views.clips, 2, width),
                student.classes.view(views.clips, 2 + views.crops, width),
                options.student_temperature,
            )
            pairs = max(totals["class_pairs"], 1.0)
            metrics["teacher/entropy"] = losses.entropy(target) * (1 + views.crops) / pairs
        if student.vectors is not None and views.beside is not None:
            sums["koleo"] = losses.koleo(student.vectors, views.beside)
        counts = {
            "reconstruction": totals["masked_pixels"],
            "local": totals["local_tokens"],
            "global": totals["class_pairs"],
            "koleo": totals["neighbours"],
        }
        weights = {
            "reconstruction": options.weight_reconstruction,
            "local": options.weight_local,
            "global": options.weight_global,
            "koleo": options.weight_koleo,
        }
        terms = {name: sums[name] / max(counts[name], 1.0) for name in sums}
        loss = sum((weights[name] * terms[name] for name in terms), torch.zeros((), device=self.device))
        metrics |= {f"loss/{name}": term.detach() for name, term in terms.items()}
        metrics["loss"] = loss.detach()
        metrics["mask/pixels"] = views.own.masks.pixels.sum() / max(totals["pixels"], 1.0)
        if options.mask_fill == "clip" or options.mask_copied:
            metrics["mask/clips_alone"] = views.own.alone
        return loss, metrics

    def teacher_temperature(self, at: Moment) -> float:
        """Of the teacher's softmax at this moment of the run."""
        options = self.options
        done = at.fraction * self.epochs
        return temperature(
            options.teacher_temperature, options.teacher_temperature_start, options.teacher_temperature_epochs, done
        )

    def copies(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def replicas(self) -> dict[str, torch.Tensor]:
        return super().replicas() | {"centre.class": self.centre_class.value, "centre.data": self.centre_data.value}

    def predictions(self) -> dict[str, float]:
        sum_up(self._gathered())
        values = {name: spread.value for name, spread in self.spreads.items()}
        norms = {f"teacher/centre_norm{of}": centre.coming.norm() for of, centre in self._centres().items()}
        if norms:
            values |= dict(zip(norms, torch.stack(list(norms.values())).tolist()))  # one wait for the device
        return values

    def collapsed(self, values: dict[str, float]) -> str:
        for of, centre in self._centres().items():
            share = self.spreads[f"teacher/spread{of}"].share
            if said := collapse(of, len(centre.value), values, share):
                return said
        return ""

    def after_step(self, at: Moment) -> dict[str, float]:
        speed = momentum(self.options.teacher_momentum, at.fraction)
        move(self.teacher, self.model, speed)
        for centre in self._centres().values():
            centre.move()
        return {"teacher/momentum": speed, "teacher/temperature": self.teacher_temperature(at)}

    def skipped_step(self) -> None:
        for part in self._gathered():
            part.drop()

    def _centres(self) -> dict[str, Centre]:
        """The centres of the losses that are on, by what their metrics' names end in."""
        on = {"": self.options.weight_global, "_data": self.options.weight_local}
        centres = {"": self.centre_class, "_data": self.centre_data}
        return {of: centre for of, centre in centres.items() if on[of]}

    def _gathered(self) -> list[Centre | Spread]:
        """What a step's predictions are gathered in, in the same order on every rank."""
        return [self.centre_class, self.centre_data, *self.spreads.values()]

    def extra_state(self) -> dict[str, torch.Tensor]:
        state = {f"teacher.{name}": value for name, value in whole_state(self.teacher).items()}
        return state | {"centre.class": self.centre_class.value, "centre.data": self.centre_data.value}

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        mine: dict[str, torch.Tensor] = {}
        mine |= {f"teacher.{name}": value for name, value in self.teacher.named_parameters()}
        mine |= {f"teacher.{name}": value for name, value in self.teacher.named_buffers()}
        mine |= {"centre.class": self.centre_class.value, "centre.data": self.centre_data.value}
        hint = "resume with the recipe that wrote it, or start a run of another name"
        require_fit(mine, tensors, OBJECTIVE, hint, spare=True, shape=shape)
        for name, tensor in mine.items():
            fill(tensor, tensors[name])

    @torch.no_grad()
    def rebuild(self, batch: PackedBatch, at: Moment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(patches, hidden, rebuilt patches) of a batch, [N, 256] each, by the student: for looking at.

        Only where there is a reconstruction loss (`rebuilds`).
        """
        views: MaskedBatch = self.prepare(batch, at).inputs
        everything = torch.arange(len(views.hidden), device=self.device)
        was_training = self.model.training
        self.model.eval()
        try:
            with self._autocast():
                pixels = self.model(views.hidden, views.student, None, None, everything).pixels
        finally:
            self.model.train(was_training)
        return views.clean, views.own.masks.patches, pixels[views.number].float()
