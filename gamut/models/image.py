"""Vision transformers of images as starting points: names, kernels and positions of timm and transformers to ours.

The class token and its position stay. The patch kernels' colours are summed: a spectrogram in all three channels would
give the same. A table `learned` takes the rows of the image for time (ASiT: bicubic in both directions); tables
`factorised` take them for frequency, the middle 8 of them, and are means over the other axis (ElasticAST: linear).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch

from gamut.errors import CheckpointError
from gamut.models.layout import PATCH_FRAMES, ROWS
from gamut.models.positions import resize_image
from gamut.models.vit import VisionTransformer

KERNEL = "patch_embed.proj.weight"  # timm's name, and ours
HUGGING_FACE_KERNEL = "embeddings.patch_embeddings.projection.weight"
SPECIAL = ("cls_token", "dist_token", "embeddings.distillation_token")  # tokens that may have a position of their own

# transformers' ViT, of versions before 5 and since, after `embeddings.`, `encoder.layer.N.` or `layers.N.`
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": KERNEL,
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+?)(\.weight|\.bias|)")
_IN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
}


def timm_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under timm's names, those of transformers' ViTs renamed behind their prefix, all others as they are.

    Query, key and value become one. What a block has besides keeps a name in that block, so that it is missed.
    """
    prefixes = [name.removesuffix(HUGGING_FACE_KERNEL) for name in state if name.endswith(HUGGING_FACE_KERNEL)]
    for prefix in prefixes:
        renamed = {_renamed(name, prefix): tensor for name, tensor in state.items()}
        for query in [name for name in renamed if re.fullmatch(r"blocks\.\d+\.attn\.q\.\w+", name[len(prefix) :])]:
            parts = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
            if all(part in renamed for part in parts):
                renamed[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
        state = renamed
    return state


def _renamed(name: str, prefix: str) -> str:
    if not name.startswith(prefix):
        return name
    rest = name[len(prefix) :]
    block = _BLOCK.fullmatch(rest)
    if block:
        return f"{prefix}blocks.{block[1]}.{_IN_BLOCK.get(block[2], block[2])}{block[3]}"
    return prefix + _EMBEDDINGS.get(rest, rest)


def is_image(saved: dict[str, torch.Tensor]) -> bool:
    """Whether a backbone (timm's names, no prefix) looks at images: its patch kernel has channels, rows, columns."""
    return saved[KERNEL].ndim == 4


def from_image(
    saved: dict[str, torch.Tensor], vit: VisionTransformer, path: Path
) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of an image's ViT as `vit` has them, with its length of table, and a note of what was done.

    Raises CheckpointError naming `path` where the patches are not 16x16, the positions no square, or where the
    config.json beside the weights (transformers) tells of other heads or another activation than the model's.
    """
    kernel = saved[KERNEL]
    if kernel.shape[2:] != (PATCH_FRAMES, PATCH_FRAMES):
        raise CheckpointError(
            f"{path} has patches of {kernel.shape[2]}x{kernel.shape[3]}, this model's are 16x16: take weights of a ViT "
            "with patches of 16."
        )
    _compare_config(path, vit)
    rows_are_time = vit.model.positions == "learned"
    ours = dict(saved)
    ours[KERNEL] = _one_channel(kernel, rows_are_time)
    note = f"{kernel.shape[1]} colours summed"
    if "pos_embed" in saved:
        special, grid = _split_positions(saved, path)
        del ours["pos_embed"]
        ours |= _learned(special, grid, vit) if rows_are_time else _factorised(grid, vit.table_columns)
        note += f", positions of {grid.shape[0]}x{grid.shape[1]} to {vit.table_columns}x{ROWS}"
    return ours, note


def _one_channel(kernel: torch.Tensor, rows_are_time: bool) -> torch.Tensor:
    """[dim, 256], 16 * time + frequency, from [dim, channels, rows, columns]."""
    grey = kernel.float().sum(1)
    return (grey if rows_are_time else grey.transpose(1, 2)).flatten(1)


def _split_positions(saved: dict[str, torch.Tensor], path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions of class and distillation token [0 to 2, dim], those of the patches [side, side, dim])."""
    table = saved["pos_embed"].float().flatten(0, -2)
    special = sum(name in saved for name in SPECIAL)
    for first in (special, 0):
        side = math.isqrt(max(len(table) - first, 0))
        if side and side**2 == len(table) - first:
            return table[:first], table[first:].unflatten(0, (side, side))
    raise CheckpointError(
        f"{path} has {len(table)} positions, {special} of them of special tokens, and the rest are no square: only "
        "weights of square images can be taken."
    )


def _learned(special: torch.Tensor, grid: torch.Tensor, vit: VisionTransformer) -> dict[str, torch.Tensor]:
    table = resize_image(grid, vit.table_columns, ROWS, "bicubic").flatten(0, 1)
    if vit.class_token:
        # Where the class token has no position of its own it may as well be 0.
        table = torch.cat([special[:1] if len(special) else torch.zeros_like(table[:1]), table])
    return {"pos_embed": table[None]}


def _factorised(grid: torch.Tensor, columns: int) -> dict[str, torch.Tensor]:
    first = max(0, (len(grid) - ROWS) // 2)
    middle = grid[first : first + ROWS]
    table = resize_image(middle, ROWS, columns, "linear")
    return {"pos_embed_time": table.mean(0), "pos_embed_freq": table.mean(1)}


def _compare_config(path: Path, vit: VisionTransformer) -> None:
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for key, mine in (("num_attention_heads", vit.model.heads), ("hidden_act", "gelu")):
        theirs = config.get(key, mine) if isinstance(config, dict) else mine
        if theirs != mine:
            raise CheckpointError(
                f"{path.parent / 'config.json'} says {key} = {theirs!r}, and this model has {mine!r}: use the model "
                "section that fits these weights."
            )
