"""What a module costs: parameters and multiply-adds, counted by torch on shapes alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gamut.recipe import schema

if TYPE_CHECKING:
    from torch import nn

# AST on 10 s of sound as the Whisper-AT paper counts it (Table 1): ViT-B on 1,214 tokens.
AST_MULTIPLY_ADDS = 133e9
AST_PARAMETERS = 87e6

# Layers and dimensions of the encoders of the paper's tables.
ENCODERS: dict[str, tuple[int, int]] = {
    "tiny": (4, 384),
    "base": (6, 512),
    "small": (12, 768),
    "medium": (24, 1024),
    "large": (32, 1280),
    "hubert-xlarge": (48, 1280),
    "wav2vec2-large-robust": (24, 1024),
}


@dataclass(frozen=True)
class Cost:
    """Of one clip. `multiply_adds` is fvcore's convention, that of the paper's tables; FLOPs are twice as many."""

    parameters: int
    multiply_adds: float

    @property
    def flops(self) -> float:
        return 2.0 * self.multiply_adds

    @property
    def speed_up(self) -> float:
        """How many times fewer multiply-adds than AST."""
        return AST_MULTIPLY_ADDS / self.multiply_adds


def cost(module: nn.Module, *shapes: tuple[int, ...]) -> Cost:
    """Parameters of a module, and multiply-adds of its forward on float tensors of these shapes.

    torch counts matrix products and attention as two FLOPs a multiply-add; a LayerNorm counts five multiply-adds an
    element, as fvcore has it. Nothing is computed: a copy on the meta device has shapes alone.
    """
    import torch  # here: what the paper counts is known without
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    module = copy.deepcopy(module).to("meta")
    inputs = [torch.empty(shape, device="meta") for shape in shapes]

    def norm(x: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
        return 2 * 5 * torch.Size(x).numel()

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.native_layer_norm: norm})
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() / 2)


def tagger_cost(head: schema.Head, layers: int, dim: int, classes: int = 527, steps: int = 25) -> Cost:
    """Of a head on features [layers, steps, dim] of one clip."""
    from gamut.models.tagger import Tagger

    return cost(Tagger(head, layers, dim, classes, seed=None), (1, layers, steps, dim))
