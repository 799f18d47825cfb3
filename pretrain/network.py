"""What ASiT trains: a backbone, and the heads that its losses need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gamut.models.backbone import Backbone, build
from gamut.models.heads import FeatureHead, ProjectionHead, ReconstructionHead, UnitLinear
from gamut.models.layout import Layout
from gamut.models.pooling import band_means
from gamut.models.predictor import Gaps, Predictor
from gamut.recipe import schema


class Outputs(NamedTuple):
    """What a forward gives; None where no loss asks for it."""

    classes: torch.Tensor | None  # [S, K]: logits of each segment's CLS token, or of its pooled tokens
    data: torch.Tensor | None  # [n, C]: logits of data tokens, or [n, D]: features
    pixels: torch.Tensor | None  # [m, 256]
    vectors: torch.Tensor | None = None  # float32 [S, D]: what KoLeo spreads, of each segment


class AsitNetwork(nn.Module):
    """Backbone, projection and reconstruction heads. A head that no loss uses is not there.

    `asit.heads` says what class and data tokens share of the projection: all of it, its MLP (`partly`: an output layer
    each), or nothing (`separate`). Where the local loss is on features (`asit.targets`), data tokens have a linear map
    instead.
    """

    def __init__(self, model: schema.Model, asit: schema.Asit, seed: int) -> None:
        super().__init__()
        self.backbone = build(model, seed)
        self.has_classes, self.has_data = asit.weight_global > 0, asit.weight_local > 0
        self.averaged = 0  # last blocks whose mean is what the teacher says of data tokens
        if self.has_data and asit.targets == "features":
            self.has_data, self.averaged = False, asit.target_blocks or model.depth
            self.regression = FeatureHead(model.dim, seed + 4)
        if asit.predictor != "none":
            dim = asit.predictor_dim or model.dim // 2
            self.predictor = Predictor(model, asit.predictor, dim, asit.predictor_depth, seed + 5)
        self.koleo_on = asit.koleo_on if asit.weight_koleo > 0 else ""
        outputs_data = asit.prototypes_data or asit.prototypes
        trained_gain = asit.gain == "trained"
        self.heads = asit.heads if self.has_classes and self.has_data else "shared"
        if self.has_classes or self.has_data:
            outputs = asit.prototypes if self.has_classes else outputs_data
            self.projection = ProjectionHead(
                model.dim, asit.hidden, asit.bottleneck, outputs, seed + 1, trained_gain=trained_gain
            )
        if self.heads != "shared":
            # Of `partly` shared heads only the output layer is used; it is given the same values as a head of its own.
            own = ProjectionHead(
                model.dim, asit.hidden, asit.bottleneck, outputs_data, seed + 3, trained_gain=trained_gain
            )
            self.projection_data: ProjectionHead | UnitLinear = own if self.heads == "separate" else own.last_layer
        if asit.weight_reconstruction > 0:
            self.reconstruction = ReconstructionHead(
                model.dim,
                asit.reconstruction_hidden or asit.hidden,
                asit.reconstruction_bottleneck or asit.bottleneck,
                seed + 2,
                last_gelu=asit.reconstruction_last_gelu,
            )

    def forward(
        self,
        patches: torch.Tensor,
        where: Layout,
        drop_keys: torch.Tensor | None,
        data: torch.Tensor | None = None,
        rebuild: torch.Tensor | None = None,
        frozen: bool = False,
        with_vectors: bool = False,
        gaps: Gaps | None = None,
    ) -> Outputs:
        """Logits of segments and of the patches `data`, and pixels of the patches `rebuild`, in one pass.

        patches: [N, 256]; data, rebuild: int64 patch numbers. data None: no logits, of segments neither; rebuild None:
        no pixels. frozen: the output layers get gradients of zero. with_vectors: KoLeo's too, if it is on. gaps: the
        patches are the encoded ones of more, of which the others are predicted; `data` and `rebuild` are of them all.
        """
        tokens = self.backbone(patches, where, drop_keys)
        classes = some = pixels = vectors = None
        koleo_on = self.koleo_on if with_vectors else ""
        if (data is not None and self.has_classes) or koleo_on == "pooled":
            pooled = self.backbone.pool(tokens, where)
            classes = pooled if data is not None and self.has_classes else None
            vectors = pooled.float() if koleo_on == "pooled" else None
        if koleo_on == "rows":
            vectors = band_means(tokens, where).float()
        place = where.patch
        if gaps is not None:
            guessed = self.predictor(tokens, where, gaps)
            seen = torch.index_select(tokens, 0, place)
            tokens = seen.new_empty(len(gaps.whole.patch), seen.shape[1])
            tokens = tokens.index_copy(0, gaps.kept.patch, seen).index_copy(0, gaps.hidden, guessed.to(seen.dtype))
            place = torch.arange(len(tokens), device=tokens.device)
        if data is not None and (self.has_data or self.averaged):
            some = torch.index_select(tokens, 0, place[data])
        if rebuild is not None:
            pixels = self.reconstruction(torch.index_select(tokens, 0, place[rebuild]))
        features = None
        if self.averaged and some is not None:
            features, some = self.regression(some), None
        classes, logits = self._project(classes, some, frozen)
        return Outputs(classes, logits if features is None else features, pixels, vectors)

    def teach(self, patches: torch.Tensor, where: Layout) -> Outputs:
        """What a teacher says of segments and of all patches [N, 256]."""
        everything = torch.arange(len(patches), device=patches.device)
        if not self.averaged:
            return self(patches, where, None, everything)
        with last_blocks(self.backbone, self.averaged) as taken:
            classes = self(patches, where, None, everything[:0]).classes
        mean = torch.stack([F.layer_norm(each.float(), each.shape[1:]) for each in taken]).mean(0)
        return Outputs(classes, F.layer_norm(torch.index_select(mean, 0, where.patch), mean.shape[1:]), None)

    def _project(
        self, classes: torch.Tensor | None, data: torch.Tensor | None, frozen: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Each module is applied once, whatever is shared: ZeRO-2 has been wrong about modules that run twice."""
        if classes is None or data is None:
            logits = [None if tokens is None else self.projection(tokens, frozen) for tokens in (classes, data)]
            return logits[0], logits[1]
        if self.heads == "separate":
            return self.projection(classes, frozen), self.projection_data(data, frozen)
        both = self.projection.features(torch.cat([classes, data]))
        if self.heads == "shared":
            both = self.projection.last_layer(both, frozen)
        # Not two slices: each would have a gradient of all rows, zeros but for its own.
        classes, data = both.split([len(classes), len(data)])
        if self.heads == "partly":
            return self.projection.last_layer(classes, frozen), self.projection_data(data, frozen)
        return classes, data


@contextmanager
def last_blocks(backbone: Backbone, count: int) -> Iterator[list[torch.Tensor]]:
    """What the last blocks give in a forward within it, [T, dim] each, in order."""
    taken: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, given, tokens: taken.append(tokens))
        for block in backbone.blocks[-count:]
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()
