"""What ASiT trains: a backbone, and the heads that its losses need."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from gamut.models.backbone import build
from gamut.models.heads import ProjectionHead, ReconstructionHead, UnitLinear
from gamut.models.layout import Layout
from gamut.models.pooling import band_means
from gamut.recipe import schema


class Outputs(NamedTuple):
    """What a forward gives; None where no loss asks for it."""

    classes: torch.Tensor | None  # [S, K]: logits of each segment's CLS token, or of its pooled tokens
    data: torch.Tensor | None  # [n, C]: logits of data tokens
    pixels: torch.Tensor | None  # [m, 256]
    vectors: torch.Tensor | None = None  # float32 [S, D]: what KoLeo spreads, of each segment


class AsitNetwork(nn.Module):
    """Backbone, projection and reconstruction heads. A head that no loss uses is not there.

    `asit.heads` says what class and data tokens share of the projection: all of it, its MLP (`partly`: an output layer
    each), or nothing (`separate`).
    """

    def __init__(self, model: schema.Model, asit: schema.Asit, seed: int) -> None:
        super().__init__()
        self.backbone = build(model, seed)
        self.has_classes, self.has_data = asit.weight_global > 0, asit.weight_local > 0
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
    ) -> Outputs:
        """Logits of segments and of the patches `data`, and pixels of the patches `rebuild`, in one pass.

        patches: [N, 256]; data, rebuild: int64 patch numbers. data None: no logits, of segments neither; rebuild None:
        no pixels. frozen: the output layers get gradients of zero. with_vectors: KoLeo's too, if it is on.
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
        if data is not None and self.has_data:
            some = torch.index_select(tokens, 0, where.patch[data])
        if rebuild is not None:
            pixels = self.reconstruction(torch.index_select(tokens, 0, where.patch[rebuild]))
        return Outputs(*self._project(classes, some, frozen), pixels, vectors)

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
