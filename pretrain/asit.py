"""The ASiT objective: group-masked reconstruction, local and global self-distillation (Atito et al.).

The student sees both views with blocks hidden, the teacher sees them whole. One forward of each over both views. Local
crops (multi-crop), where the recipe asks for them, go to the student alone, whole, and serve the global loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gamut.audio.logmel import normalise, patches
from gamut.data.batch import PackedBatch
from gamut.data.front import spectrogram
from gamut.errors import CheckpointError
from gamut.models.heads import ProjectionHead, ReconstructionHead
from gamut.models.layout import PATCH_FRAMES, ROWS, Layout, layout
from gamut.models.vit import VisionTransformer
from gamut.models.weights import Loaded, load_backbone
from gamut.randomness import key_torch
from gamut.recipe import schema
from gamut.train.objective import Moment, Objective, Prepared
from pretrain import losses
from pretrain.masking import Masks, block_masks, mask_keys
from pretrain.teacher import Centre, make_teacher, momentum, move, move_centres


class AsitNetwork(nn.Module):
    """Backbone, projection head (shared by CLS and data tokens) and reconstruction head."""

    def __init__(self, model: schema.Model, asit: schema.Asit, seed: int) -> None:
        super().__init__()
        self.backbone = VisionTransformer(model, seed=seed)
        self.projection = ProjectionHead(model.dim, asit.hidden, asit.bottleneck, asit.prototypes, seed=seed + 1)
        self.reconstruction = ReconstructionHead(model.dim, asit.hidden, asit.bottleneck, seed=seed + 2)

    def forward(
        self,
        patches: torch.Tensor,
        where: Layout,
        drop_keys: torch.Tensor | None,
        data: torch.Tensor,
        rebuild: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(CLS logits [S, K], logits [len(data), K] of the patches `data`, pixels [len(rebuild), 256] of `rebuild`).

        patches: [N, 256]; data, rebuild: int64 patch numbers; rebuild None: no reconstruction.
        """
        tokens = self.backbone(patches.to(self.backbone.patch_embed.proj.weight.dtype), where, drop_keys)
        chosen = torch.index_select(tokens, 0, torch.cat([where.cls, where.patch[data]]))
        logits = self.projection(chosen)
        pixels = None
        if rebuild is not None:
            pixels = self.reconstruction(torch.index_select(tokens, 0, where.patch[rebuild]))
        return logits[: len(where.cls)], logits[len(where.cls) :], pixels


@dataclass(frozen=True)
class Views:
    """A micro-batch on the training device: clean patches, masks and the packed layout."""

    clean: torch.Tensor  # float32 [G, 256], normalised, of the two views of each clip: what the teacher gets
    masks: Masks
    teacher: Layout
    hidden: torch.Tensor  # float32 [N, 256], masked, local crops included: what the student gets
    student: Layout
    number: torch.Tensor  # int64 [G], which of the student's patches each of the teacher's is
    drop_keys: torch.Tensor  # int64 [S]
    local: torch.Tensor  # int64: the teacher's patches of the local loss
    rebuild: torch.Tensor  # int64: the teacher's patches of the reconstruction loss
    counted: torch.Tensor  # bool [len(rebuild), 256]: pixels of the reconstruction loss
    clips: int
    crops: int  # local crops a clip


def patch_numbers(frames: torch.Tensor, views: int, whole: int, total: int) -> torch.Tensor:
    """int64 [total], ascending: the numbers of the patches that belong to the first `whole` of each clip's `views`.

    frames: int64 [clips * views].
    """
    count = frames // PATCH_FRAMES * ROWS
    first = count.cumsum(0) - count
    count, first = (x.view(-1, views)[:, :whole].reshape(-1) for x in (count, first))
    ahead = torch.repeat_interleave(first - (count.cumsum(0) - count), count, output_size=total)
    return ahead + torch.arange(total, device=frames.device)


class Asit(Objective):
    """Teacher and student on packed views. `model` is the student; the teacher is ours to move."""

    count_names = ("masked_pixels", "local_tokens", "class_pairs", "pixels")

    def __init__(self, recipe: schema.Recipe, mean: float, std: float, device: torch.device) -> None:
        self.options = recipe.asit
        self.seed = recipe.seed
        self.mean, self.std, self.mode = mean, std, recipe.front.mode
        self.pad_with = recipe.views.pad_with
        self.precision = recipe.precision
        self.device = device
        self.model: AsitNetwork = AsitNetwork(recipe.model, recipe.asit, recipe.seed).to(device)
        self.teacher = make_teacher(self.model)
        width = recipe.asit.prototypes
        self.centre_class = Centre(width, recipe.asit.centre_momentum, device)
        self.centre_data = Centre(width, recipe.asit.centre_momentum, device)

    def start_from(self, init: str) -> Loaded:
        """Take the backbone of another run, checkpoint or file, for student and teacher; the heads stay fresh."""
        loaded = load_backbone(self.model.backbone, init)
        self.teacher.load_state_dict(self.model.state_dict())
        return loaded

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
            number = patch_numbers(batch.frames, batch.views, whole, sum(sizes) // PATCH_FRAMES * ROWS)
            clean = torch.index_select(both, 0, number)
        masks = block_masks(
            keys,
            frames,
            sizes,
            options.mask_target,
            options.mask_time_share,
            options.mask_frequency_share,
            options.mask_aligned,
        )
        hidden = clean.masked_fill(masks.patches, 0.0)
        teacher = layout(frames, sizes, class_token=True)
        student = teacher
        if crops:
            hidden = both.index_copy(0, number, hidden)
            student = layout(batch.frames, batch.sizes, class_token=True)
        everything = torch.arange(len(clean), device=self.device)
        touched = masks.touched.nonzero()[:, 0]
        masked = options.mask_target > 0
        local = touched if masked and options.local_on == "masked" else everything
        rebuild = touched if masked else everything
        counted = masks.patches[rebuild] if masked else torch.ones_like(clean, dtype=torch.bool)
        drop_keys = key_torch(self.seed, batch.epoch, clip_id, draw, view, device=self.device)
        inputs = Views(
            clean, masks, teacher, hidden, student, number, drop_keys, local, rebuild, counted, batch.clips, crops
        )
        counts = torch.stack(
            [
                counted.sum(dtype=torch.float64),
                torch.tensor(float(len(local)), dtype=torch.float64, device=self.device),
                torch.tensor(2.0 * (1 + crops) * batch.clips, dtype=torch.float64, device=self.device),
                torch.tensor(float(clean.numel()), dtype=torch.float64, device=self.device),
            ]
        )
        return Prepared(inputs, counts)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def loss(
        self, engine: nn.Module, prepared: Prepared, totals: dict[str, float], at: Moment
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        views: Views = prepared.inputs
        options = self.options
        everything = torch.arange(len(views.clean), device=self.device)
        with torch.no_grad(), self._autocast():
            teacher_class, teacher_data, _ = self.teacher(views.clean, views.teacher, None, everything)
        self.centre_class.add(teacher_class)
        self.centre_data.add(teacher_data)
        with self._autocast():
            student_class, student_local, pixels = engine(
                views.hidden, views.student, views.drop_keys, views.number[views.local], views.number[views.rebuild]
            )
        class_target = losses.teacher_distribution(teacher_class, self.centre_class.value, options.teacher_temperature)
        local_target = losses.teacher_distribution(
            teacher_data[views.local], self.centre_data.value, options.teacher_temperature
        )
        width = options.prototypes
        sums = {
            "reconstruction": losses.reconstruction(pixels, views.clean[views.rebuild], views.counted),
            "local": losses.cross_entropy(local_target, student_local, options.student_temperature),
            "global": losses.crosswise(
                class_target.view(views.clips, 2, width),
                student_class.view(views.clips, 2 + views.crops, width),
                options.student_temperature,
            ),
        }
        counts = {
            "reconstruction": totals["masked_pixels"],
            "local": totals["local_tokens"],
            "global": totals["class_pairs"],
        }
        weights = {
            "reconstruction": options.weight_reconstruction,
            "local": options.weight_local,
            "global": options.weight_global,
        }
        terms = {name: sums[name] / max(counts[name], 1.0) for name in sums}
        loss = sum((weights[name] * terms[name] for name in terms), torch.zeros((), device=self.device))
        metrics = {f"loss/{name}": term.detach() for name, term in terms.items()}
        metrics["loss"] = loss.detach()
        metrics["teacher/entropy"] = losses.entropy(class_target) * (1 + views.crops) / max(totals["class_pairs"], 1.0)
        metrics["mask/pixels"] = views.counted.sum() / max(totals["pixels"], 1.0)
        return loss, metrics

    def after_step(self, at: Moment) -> dict[str, float]:
        speed = momentum(self.options.teacher_momentum, at.fraction)
        move(self.teacher, self.model, speed)
        move_centres([self.centre_class, self.centre_data])
        return {"teacher/momentum": speed, "teacher/centre_norm": float(self.centre_class.value.norm())}

    def skipped_step(self) -> None:
        self.centre_class.drop()
        self.centre_data.drop()

    def extra_state(self) -> dict[str, torch.Tensor]:
        state = {f"teacher.{name}": value for name, value in self.teacher.state_dict().items()}
        return state | {"centre.class": self.centre_class.value, "centre.data": self.centre_data.value}

    def load_extra_state(self, tensors: dict[str, torch.Tensor]) -> None:
        mine = self.extra_state()
        for name, tensor in mine.items():
            if name not in tensors:
                raise CheckpointError(f"The checkpoint has no tensor {name}; it was not written by this objective.")
            if tensors[name].shape != tensor.shape:
                raise CheckpointError(
                    f"The checkpoint's {name} has shape {tuple(tensors[name].shape)}, this recipe's has "
                    f"{tuple(tensor.shape)}: resume with the recipe that wrote it, or start a run of another name."
                )
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    @torch.no_grad()
    def rebuild(self, batch: PackedBatch, at: Moment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(patches, hidden, rebuilt patches) of a batch, [N, 256] each, by the student: for looking at."""
        views: Views = self.prepare(batch, at).inputs
        everything = torch.arange(len(views.hidden), device=self.device)
        was_training = self.model.training
        self.model.eval()
        try:
            with self._autocast():
                pixels = self.model(views.hidden, views.student, None, everything[:0], everything)[2]
        finally:
            self.model.train(was_training)
        return views.clean, views.masks.patches, pixels[views.number].float()
