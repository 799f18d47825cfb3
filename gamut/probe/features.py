"""From whole clips to vectors: a backbone's, and the log-mel's own for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gamut.audio.logmel import unpatch
from gamut.data.assemble import assemble
from gamut.data.batch import PackedBatch
from gamut.data.front import normalised
from gamut.data.loader import Loader
from gamut.data.reader import open_reader
from gamut.data.share import Share
from gamut.errors import GamutError
from gamut.models.backbone import Backbone
from gamut.models.layout import BANDS, Layout
from gamut.models.pooling import band_means
from gamut.numbers import PATCH, RATE
from gamut.plan import Clips, Epoch, Policy, plan_evaluation
from gamut.preemption import PREEMPTION
from gamut.recipe.policy import hop
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.train.objective import evaluating
from gamut.watchdog import WATCHDOG

TOKENS = 2048  # of a pack: small enough to be shared out, and to stay in a CPU's cache
PACKS = 16  # of a step; how they are dealt changes nothing, since each is a forward of its own


@dataclass(frozen=True)
class FrontEnd:
    """From a packed batch to normalised patches, as in the pretraining."""

    mean: float
    std: float
    mode: str

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """float32 [N, 256] on the batch's device."""
        return normalised(batch, self.mean, self.std, self.mode)


@dataclass(frozen=True)
class Encoder:
    """A frozen backbone and its front end.

    >>> encode = Encoder(vit, FrontEnd(-4.27, 4.57, "fast"), "fp32", torch.device("cpu"))      # doctest: +SKIP
    >>> encode(batch)["mean"].shape      # doctest: +SKIP
    torch.Size([5, 768])
    """

    backbone: Backbone
    front: FrontEnd
    precision: str
    device: torch.device
    with_rows: bool = False

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, with_logmel: bool = False) -> dict[str, torch.Tensor]:
        """Vectors of the batch's clips, float32 [C, dim] each.

        `cls`: the class token, or `pool`: attention pooling, where the model has one of them; `mean`: the mean of the
        patches' tokens after the final norm; where the encoder is made `with_rows` also `rows` [C, 8 * dim]: their mean
        over time, the bands of frequency side by side (as in MSM-MAE, Niizumi et al. 2022); with `with_logmel` also
        `logmel`: mean and deviation over time of the normalised log-mel [C, 256]. The backbone's mode is as it was
        afterwards; nothing else of it is touched.
        """
        batch = batch.to(self.device)
        pixels = self.front(batch)
        where = self.backbone.layout(batch.frames, batch.sizes)
        with evaluating(self.backbone, self.precision, self.device):
            tokens = self.backbone(pixels, where)
            found = {"mean": _mean(tokens, where)}
            if self.with_rows:
                found["rows"] = band_means(tokens, where)
            if self.backbone.model.pooling in ("cls", "attention"):
                name = "cls" if self.backbone.class_token else "pool"
                found = {name: self.backbone.pool(tokens, where)} | found
        if with_logmel:
            found["logmel"] = _spread(unpatch(pixels), batch.sizes)
        return {name: value.float() for name, value in found.items()}


def _mean(tokens: torch.Tensor, where: Layout) -> torch.Tensor:
    """Mean over the patches of each segment, class token left out: float32 [S, dim]."""
    own = torch.index_select(tokens, 0, where.patch).float()
    return torch.segment_reduce(own, "mean", lengths=where.columns * BANDS, axis=0, unsafe=True)


def _spread(frames: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Mean and deviation over the frames of each segment: [S, 256]."""
    parts = [torch.cat([part.mean(0), part.std(0, correction=0)]) for part in frames.split(list(sizes))]
    return torch.stack(parts) if parts else frames.new_zeros(0, 2 * frames.shape[1])


def kinds(recipe: Recipe) -> list[str]:
    """The vectors of a clip that a recipe's probes score, the log-mel's left out."""
    pooled = {"cls": ["cls"], "attention": ["pool"], "mean": [], "rows": [], "frames": []}[recipe.model.pooling]
    return [*pooled, "mean", *(["both"] if pooled else []), *(["rows"] if recipe.probe.rows else [])]


def whole_clips(clips: Clips, recipe: Recipe, packs: int = PACKS) -> Epoch:
    """The plan of a pass over clips at their native length, to the recipe's `probe.max_seconds`."""
    longest = int(recipe.probe.max_seconds * RATE)
    resolution = hop(recipe.views.resolutions[0])
    tokens = max(TOKENS, longest // (resolution * PATCH) * BANDS + 1)
    policy = Policy(
        packs=packs,
        tokens=tokens,
        pad=False,
        max_samples=longest,
        hops=(resolution,),
        pools=(recipe.views.poolings[0],),
        class_token=recipe.model.pooling == "cls",
    )
    return plan_evaluation(clips, policy)


def extract(
    encode: Encoder,
    index: Index,
    epoch: Epoch,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    per_forward: int = 1,
    with_logmel: bool = False,
) -> Share:
    """This rank's share of the vectors of a plan's clips. All ranks call it together and forward equally often.

    The clips are distributed because a training step needs all ranks: if one of them encoded alone, the others would
    only wait. And where the backbone's weights are split over the ranks, all of them take part in a forward. For that
    reason a rank that cannot read continues with empty packs; `problem` says what happened. A clip's vector does not
    depend on the number of ranks, since the plan decides which packs are joined, `per_forward` of them at most.
    """
    share = Share()
    pin = encode.device.type == "cuda"
    ranks: dict[str, Any] = {"rank": rank, "world": world, "per_forward": per_forward, "neighbours": True}
    loader = Loader(index, epoch, **ranks, workers=workers, prefetch=2, pin=pin)
    WATCHDOG.beat("a probe")
    for batch in _batches(loader, index, epoch, share):
        share.add(batch, encode(batch, with_logmel))
        WATCHDOG.beat()
    return share


def _batches(loader: Loader, index: Index, epoch: Epoch, share: Share) -> Iterator[PackedBatch]:
    """The loader's batches; after an error, or where the process is to end, as many empty ones as are due."""
    done, empty = 0, assemble(open_reader(index), epoch, [])
    try:
        for _, batches in loader:
            done += 1
            for batch in batches:
                share.left = share.left or PREEMPTION.asked
                yield empty if share.left else batch
    except (GamutError, OSError) as error:
        share.problem = str(error)
    for step in range(done, epoch.steps):
        for _ in range(loader.forwards(step)):
            yield empty
