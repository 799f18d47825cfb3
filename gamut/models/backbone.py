"""Backbones by name: what each of them is to the networks that it stands in, and sizes that stay what they are."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from gamut.errors import RecipeError
from gamut.models.layout import Kept, Layout, layout
from gamut.numbers import bands
from gamut.randomness import Purpose, key_torch, uniform_torch
from gamut.recipe import schema
from gamut.registry import BACKBONES


class Backbone(nn.Module, ABC):
    """From packed patches to tokens, and from these to a vector a clip.

    A subclass takes a model section and a seed, `Mine(model, seed=0)`, fills its weights from the seed alone
    (`gamut.models.initialise`), and draws from no generator of torch's. Its segments are laid out as `layout` says:
    class tokens, if it has any, and then the patches. Registered under a name, it is what `model.backbone` may be:

        @BACKBONES.register("mine")
        class Mine(Backbone): ...
    """

    blocks: nn.ModuleList  # in order; each gives its tokens [T, dim] first, as features of all layers are made of them

    def __init__(self, model: schema.Model, high: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.class_token = model.pooling == "cls"
        self.special = int(self.class_token) + int(model.distilled)  # tokens before a segment's patches
        self.bands = high or bands(model.stride)  # patches of a column

    def layout(self, frames: torch.Tensor, sizes: tuple[int, ...], kept: Kept | None = None) -> Layout:
        """Where the tokens of segments of `frames` (int64 [S]; `sizes` as Python numbers) frames are in this model."""
        model = self.model
        return layout(
            frames, sizes, self.class_token, kept, distilled=model.distilled, stride=model.stride, high=self.bands
        )

    def keep(self, where: Layout, drop_keys: torch.Tensor | None) -> torch.Tensor | None:
        """What each branch of each block is multiplied with, float32 [2 * depth, T, 1]: 0 for one that is dropped for
        its whole segment, else 1 / (share kept). None: nothing is dropped.

        The share dropped rises from none in the first block to all of `drop_path` in the last (timm's schedule).
        """
        if not self.training or drop_keys is None or not self.model.drop_path:
            return None
        # One key a branch and segment, all made at once.
        branch = torch.arange(2 * len(self.blocks), device=drop_keys.device)[:, None]
        share = (branch // 2).double() * self.model.drop_path / max(self.model.depth - 1, 1)
        draw = uniform_torch(key_torch(drop_keys, branch, Purpose.DROP_PATH))
        keep = (draw >= share.float()) / (1.0 - share).float()
        # Keys in the host's memory are hashed there: as many calls, each a tenth of what one of a GPU costs.
        keep = keep.to(where.segment.device, non_blocking=True)
        return torch.index_select(keep, 1, where.segment)[..., None]

    @abstractmethod
    def forward(self, patches: torch.Tensor, where: Layout, drop_keys: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens after the final norm, [T, dim], in the order of the layout.

        Args:
            patches: [N, 256], normalised, in packed order.
            where: their layout, from `layout`.
            drop_keys: int64 [S], of what is dropped at random of whole segments, in training; None: nothing is.
        """

    @abstractmethod
    def pool(self, tokens: torch.Tensor, where: Layout) -> torch.Tensor:
        """One vector a segment, [S, dim], from what `forward` returned."""


SIZES = {
    "tiny": schema.Model(dim=192, depth=6, heads=3),
    "s": schema.Model(dim=384, depth=12, heads=6),  # ViT-S, 22 M parameters
    "b": schema.Model(dim=768, depth=12, heads=12),  # ViT-B, 85 M
}


def sized(size: str, **options: Any) -> schema.Model:
    """The model section of a size, with other fields as given. Raises RecipeError naming the sizes there are."""
    if size not in SIZES:
        raise RecipeError(f"There is no model size {size!r}; there are {', '.join(SIZES)}.")
    return dataclasses.replace(SIZES[size], **options)


def build(model: schema.Model, seed: int = 0) -> Backbone:
    """The backbone that a model section names, on the CPU, its weights drawn from `seed`.

    Raises RecipeError where nothing is registered under the name, or something that is no `Backbone`.
    """
    made = BACKBONES[model.backbone](model, seed=seed)
    if not isinstance(made, Backbone):
        raise RecipeError(
            f"model.backbone={model.backbone} gives a {type(made).__name__}: derive it from "
            "gamut.models.backbone.Backbone, which says what a backbone must have."
        )
    return made
