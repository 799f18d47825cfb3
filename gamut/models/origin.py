"""What a file's patch kernels and positions become in this model: those of images, of other spectrograms, our own.

Kernels. AST's and SSAST's are (frequency, time), ASiT's (time, frequency), as ours. An image's rows become frequency,
but time where the model has a learned table like ASiT's; its colours are summed: a spectrogram in all three channels
would give the same.

Positions. Those of class and distillation token stay, where the model has such a token. The grid of an image's patches
becomes a learned table as in ASiT (bicubic in both directions) or AST (the middle rows and columns, or linear), that of
a spectrogram's as for clips of another length (`positions.resize_grid`). Factorised tables are means over the other
axis, after the middle rows of an image were taken, and all else is made to fit linearly (ElasticAST).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from gamut.errors import CheckpointError
from gamut.models.folder import CONFIG, config_beside
from gamut.models.names import KERNEL, M2D_BANDS, State
from gamut.models.positions import middle, resize_grid, resize_image, stretch
from gamut.models.vit import VisionTransformer
from gamut.numbers import bands

SPECIAL = ("cls_token", "dist_token")  # tokens that may have a position of their own, in this order


def as_ours(saved: State, prefix: str, vit: VisionTransformer, path: Path) -> tuple[State, str]:
    """A backbone's tensors (our names, without their `prefix`) as `vit` has them, and a note of what was done.

    Raises CheckpointError naming `path` where the patches are not 16x16, where positions are no grid, or where the
    config.json beside the weights (transformers) tells of other heads or another activation than the model's.
    """
    kernel, ours = saved[KERNEL], dict(saved)
    image, frequency_first, notes = False, False, []
    if kernel.ndim == 4:
        _check(kernel, vit, path)
        image = kernel.shape[1] > 1
        if image:
            frequency_first = vit.model.positions == "factorised" or vit.model.table_like == "ast"
            notes.append(f"a ViT of images: {kernel.shape[1]} colours summed")
        elif prefix.split(".")[-2:] == ["v", ""]:
            frequency_first = True
            notes.append("kernels of (frequency, time) turned")
        grey = kernel.float().sum(1)
        ours[KERNEL] = (grey.transpose(1, 2) if frequency_first else grey).flatten(1)
    if "pos_embed" in saved:
        del ours["pos_embed"]
        special, grid = _square(saved, path) if image else _time_major(saved, vit, frequency_first, path)
        there = f"{grid.shape[0]}x{grid.shape[1]}"
        if vit.model.positions == "learned":
            fitted = (
                _of_image(grid, vit) if image else resize_grid(grid, vit.table_columns, vit.bands, vit.model.table_like)
            )
            ours["pos_embed"] = _with_special(saved, special, fitted, vit)
        else:
            fitted = _of_image(grid, vit) if image else resize_image(grid, vit.table_columns, vit.bands, "linear")
            ours |= {"pos_embed_time": fitted.mean(1), "pos_embed_freq": fitted.mean(0)}
        if image or fitted.shape != grid.shape or vit.model.positions != "learned":
            notes.append(f"positions of {there} to {vit.table_columns}x{vit.bands}")
    for name, length in (("pos_embed_time", vit.table_columns), ("pos_embed_freq", vit.bands)):
        if saved.get(name) is not None and saved[name].ndim == 2 and len(saved[name]):
            ours[name] = stretch(saved[name], length, "linear")
    return ours, ", ".join(notes)


def _check(kernel: torch.Tensor, vit: VisionTransformer, path: Path) -> None:
    if kernel.shape[2:] != vit.patch:
        raise CheckpointError(
            f"{path} has patches of {kernel.shape[2]}x{kernel.shape[3]}, this model's are {vit.patch[0]}x"
            f"{vit.patch[1]}: take weights of a ViT with patches of 16."
        )
    config = config_beside(path)
    for key, mine in (("num_attention_heads", vit.model.heads), ("hidden_act", "gelu")):
        theirs = config.get(key, mine)
        if theirs != mine:
            raise CheckpointError(
                f"{path.parent / CONFIG} says {key} = {theirs!r}, and this model has {mine!r}: use the model "
                "section that fits these weights."
            )


def _square(saved: State, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of an image: (positions of class and distillation token [0 to 2, dim], of the patches [side, side, dim])."""
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


def _time_major(
    saved: State, vit: VisionTransformer, frequency_first: bool, path: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a spectrogram: (positions of class and distillation token [0 to 2, dim], [columns, bands, dim]).

    How many bands there are is not written down: as many as the model has, if that divides the number of patches, else
    8 (patches side by side), 12 (AST's stride of 10) or 5 (M2D's 80 mel bins).
    """
    table = saved["pos_embed"].float().flatten(0, -2)
    special = sum(name in saved for name in SPECIAL)
    patches = len(table) - special
    for high in (vit.bands, bands(), bands(10), M2D_BANDS):
        if patches > 0 and patches % high == 0:
            grid = table[special:]
            return table[:special], (
                grid.unflatten(0, (high, -1)).transpose(0, 1) if frequency_first else grid.unflatten(0, (-1, high))
            )
    raise CheckpointError(
        f"{path} has {len(table)} positions, {special} of them of special tokens, and the rest are no grid with "
        f"{vit.bands}, {bands()}, {bands(10)} or {M2D_BANDS} patches over frequency: use the model section "
        "that it was trained with."
    )


def _of_image(grid: torch.Tensor, vit: VisionTransformer) -> torch.Tensor:
    """[columns, bands, dim] of a spectrogram from an image's [side, side, dim]."""
    if vit.model.positions == "learned" and vit.model.table_like == "asit":
        return resize_image(grid, vit.table_columns, vit.bands, "bicubic")
    if len(grid) > vit.bands:
        grid = middle(grid, vit.bands)
    wide = grid.transpose(0, 1)
    if vit.model.positions == "learned" and len(wide) > vit.table_columns:
        wide = middle(wide, vit.table_columns)
    return resize_image(wide, vit.table_columns, vit.bands, "linear")


def _with_special(saved: State, special: torch.Tensor, grid: torch.Tensor, vit: VisionTransformer) -> torch.Tensor:
    """A whole learned table [1, special + patches, dim]. A token without a position of its own gets zeros."""
    there = dict(zip([name for name in SPECIAL if name in saved], special))
    own = [there.get(name, torch.zeros_like(grid[0, 0])) for name in SPECIAL[: vit.special]]
    return torch.cat([*(position[None] for position in own), grid.flatten(0, 1)])[None]
