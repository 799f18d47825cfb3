"""The ASiT objective: group-masked reconstruction, local and global self-distillation (Atito et al.).

What is seen is in views.py, the networks in network.py, the losses in losses.py, how the teacher moves in teacher.py,
and its centres in centres.py.

The student sees both views with blocks hidden, the teacher sees them whole. One forward of each over both views. Local
crops (multi-crop), where the recipe asks for them, go to the student alone, whole, and serve the global loss.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from gamut.audio.logmel import normalise, patches
from gamut.data.batch import PackedBatch
from gamut.data.front import Mixtures, mixtures, spectrogram
from gamut.models.backbone import Backbone
from gamut.models.find import OBJECTIVE
from gamut.models.strict import require_fit
from gamut.models.weights import Loaded, load_backbone
from gamut.randomness import begun
from gamut.recipe import schema
from gamut.train.config import stage_of
from gamut.train.objective import Moment, Prepared, Pretraining, evaluating, mixed
from gamut.train.partitions import fill, shape, whole_state
from pretrain import losses
from pretrain.centres import Centres
from pretrain.network import AsitNetwork, Outputs
from pretrain.teacher import make_teacher, momentum, move, temperature
from pretrain.views import MaskedBatch, masked_batch

# The count that each loss is a mean over.
MEAN_OVER = {"reconstruction": "masked_pixels", "local": "local_tokens", "global": "class_pairs", "koleo": "neighbours"}


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
        # What a step in bf16 runs: autocast would convert the teacher's weights in every forward. Not where ZeRO cuts
        # the weights over the ranks (stage 3), which converts what it has gathered.
        cut = recipe.engine != "oss" and stage_of(recipe.deepspeed) == 3
        self.narrow = copy.deepcopy(self.teacher).bfloat16() if recipe.precision == "bf16" and not cut else None
        self.rebuilds = recipe.asit.weight_reconstruction > 0
        self.epochs = recipe.epochs
        self.centres = Centres(recipe.asit, recipe.model.dim, device)

    @property
    def backbone(self) -> Backbone:
        return cast(Backbone, self.teacher.backbone)

    def start_from(self, init: str) -> Loaded:
        """Take the backbone of another run, checkpoint or file, for student and teacher; the heads stay fresh."""
        loaded = load_backbone(self.model.backbone, init)
        self.teacher.load_state_dict(self.model.state_dict())
        self._follow()
        return loaded.for_use(self.described())

    def front_end(self, batch: PackedBatch) -> torch.Tensor:
        """Normalised log-mel patches [N, 256] of a batch on the device, float32."""
        return self._patches(spectrogram(batch, self.mode, self.pad_with, self.compiled()))

    def _patches(self, mel: torch.Tensor) -> torch.Tensor:
        return patches(normalise(mel, self.mean, self.std, self.compiled()))

    def _heard(self, batch: PackedBatch) -> torch.Tensor | Mixtures:
        """The patches of a batch; in mixtures, also of what is mixed and of the partners."""
        if batch.partner_gain is None:
            return self.front_end(batch)
        return Mixtures(*map(self._patches, mixtures(batch, self.mode, self.pad_with, self.compiled())))

    def prepare(self, batch: PackedBatch, at: Moment) -> Prepared:
        segments = begun(self.seed, batch.epoch, *batch.segment_key())  # on the host, where the batch still is there
        batch = batch.to(self.device)
        layout, compiled = self.model.backbone.layout, self.compiled()
        views = masked_batch(batch, self._heard(batch), layout, self.options, segments, compiled=compiled)
        return Prepared(views, views.counts())

    def loss(
        self, engine: nn.Module, prepared: Prepared, totals: dict[str, float], at: Moment
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        views: MaskedBatch = prepared.inputs
        options = self.options
        with mixed(self.model, self.precision, self.device):
            student: Outputs = engine(
                views.hidden,
                views.student,
                views.drop_keys,
                views.number[views.local],
                None if views.rebuild is None else views.number[views.rebuild],
                frozen=at.epoch < options.freeze_output_epochs,
                with_vectors=True,
                gaps=views.gaps,
            )
        sums: dict[str, torch.Tensor] = {}
        metrics: dict[str, torch.Tensor] = {}
        if student.pixels is not None and views.rebuild is not None:
            clean = views.clean[views.heard(views.rebuild)]
            sums["reconstruction"] = losses.reconstruction(student.pixels, clean, views.counted)
        teacher, warmth = Outputs(None, None, None), self.teacher_temperature(at)
        if student.classes is not None or student.data is not None:
            runs = self.teacher if self.narrow is None else self.narrow
            with torch.no_grad(), mixed(runs, self.precision, self.device):
                teacher = cast(AsitNetwork, runs).teach(views.taught, views.teacher)
        if student.data is not None and teacher.data is not None:
            sharpness = warmth, options.student_temperature
            ordered = views.clones == 1 and len(views.local) == len(views.clean) and views.second is None
            places = None if ordered else views.heard(views.local)
            others = None if views.second is None else views.second.patch[views.heard(views.local)]
            rows = places, others, views.local_counts
            if options.targets == "features":
                sums["local"] = self.centres.regress(student.data, teacher.data, *rows)
            else:
                taught = self.centres.distil(student.data, teacher.data, *rows, sharpness, self.compiled())
                sums["local"] = taught.loss
                metrics["teacher/entropy_data"] = taught.entropy / max(totals["local_tokens"], 1.0)
        if student.classes is not None and teacher.classes is not None:
            target = self.centres.target("", teacher.classes, warmth)
            if views.second is not None:  # a mixture is to say what both of its clips say
                both = target, torch.index_select(target, 0, views.second.segment)
                target = (both[0][: len(both[1])] + both[1]) / 2
            sharpened = student.classes.detach().float() / options.student_temperature
            self.centres.spreads["student/spread"].add(sharpened.softmax(dim=-1))
            width = target.shape[1]
            sums["global"] = losses.crosswise(
                target.view(views.clips, 2, width),
                student.classes.view(views.clones, views.clips, 2 + views.crops, width),
                options.student_temperature,
            )
            pairs = max(totals["class_pairs"], 1.0)
            metrics["teacher/entropy"] = losses.entropy(target) * (views.clones + views.crops) / pairs
        if student.vectors is not None and views.beside is not None:
            sums["koleo"] = losses.koleo(student.vectors, views.beside)
        terms = {name: sums[name] / max(totals[MEAN_OVER[name]], 1.0) for name in sums}
        weighted = (getattr(options, f"weight_{name}") * term for name, term in terms.items())
        loss = sum(weighted, torch.zeros((), device=self.device))
        metrics |= {f"loss/{name}": term.detach() for name, term in terms.items()}
        metrics["loss"] = loss.detach()
        metrics["mask/pixels"] = views.own.masks.pixels.sum() / max(totals["pixels"], 1.0)
        if options.mask_fill == "clip" or options.mask_copied:
            metrics["mask/clips_alone"] = views.own.alone
        if options.mixtures:
            metrics["mixtures/partner_holes"] = torch.tensor(float(views.partner_holes))
        return loss, metrics

    def teacher_temperature(self, at: Moment) -> float:
        """Of the teacher's softmax at this moment of the run."""
        return temperature(self.options, at.fraction * self.epochs)

    def copies(self) -> tuple[nn.Module, ...]:
        return (self.teacher,) if self.narrow is None else (self.teacher, self.narrow)

    @torch.no_grad()
    def _follow(self) -> None:
        """Have the teacher in bf16 be the teacher that there is now."""
        if self.narrow is not None:
            mine, its = ([weight.data for weight in module.parameters()] for module in (self.narrow, self.teacher))
            torch._foreach_copy_(mine, its)

    def replicas(self) -> dict[str, torch.Tensor]:
        return super().replicas() | self.centres.state()

    def predictions(self) -> dict[str, torch.Tensor]:
        return self.centres.values()

    def collapsed(self, values: dict[str, float]) -> str:
        return self.centres.collapsed(values)

    def after_step(self, at: Moment) -> dict[str, float]:
        speed = momentum(self.options.teacher_momentum, at.fraction)
        move(self.teacher, self.model, speed)
        self._follow()
        self.centres.move()
        return {"teacher/momentum": speed, "teacher/temperature": self.teacher_temperature(at)}

    def skipped_step(self) -> None:
        self.centres.drop()

    def extra_state(self) -> dict[str, torch.Tensor]:
        state = {f"teacher.{name}": value for name, value in whole_state(self.teacher).items()}
        return state | self.centres.state()

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        mine: dict[str, torch.Tensor] = self.centres.state()
        mine |= {f"teacher.{name}": value for name, value in self.teacher.named_parameters()}
        mine |= {f"teacher.{name}": value for name, value in self.teacher.named_buffers()}
        hint = "resume with the recipe that wrote it, or start a run of another name"
        require_fit(mine, tensors, OBJECTIVE, hint, spare=True, shape=shape)
        for name, tensor in mine.items():
            fill(tensor, tensors[name])
        self._follow()

    def masked(self, batch: PackedBatch, at: Moment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        if not self.options.mask_target:
            return None
        views: MaskedBatch = self.prepare(batch, at).inputs
        seen = views.own.first(len(views.clean))  # of a view's masks the first
        return views.clean, seen.masks.patches, seen.patches

    @torch.no_grad()
    def rebuild(self, batch: PackedBatch, at: Moment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(patches, hidden, rebuilt patches) of a batch, [N, 256] each, by the student: for looking at.

        Only where there is a reconstruction loss (`rebuilds`).
        """
        views: MaskedBatch = self.prepare(batch, at).inputs
        with evaluating(self.model, self.precision, self.device):
            rows = views.number[views.given]
            pixels = self.model(views.hidden, views.student, None, None, rows, gaps=views.gaps).pixels.float()
        first = len(views.clean)  # of a view's masks the first
        rebuilt = torch.zeros_like(views.own.patches).index_copy(0, views.given, pixels)[:first]
        return views.clean, views.own.masks.patches[:first], rebuilt
