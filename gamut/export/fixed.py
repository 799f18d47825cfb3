"""A vision transformer laid out for clips of one length, as the programs that know images have it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gamut.errors import ExportError
from gamut.export.source import Source, frames_of_all, frames_within
from gamut.models.positions import factorised_positions, grid_positions
from gamut.models.vit import VisionTransformer
from gamut.numbers import PATCH, columns
from gamut.recipe.policy import evaluation_policy
from gamut.recipe.resolved import portable


@dataclass(frozen=True)
class Fixed:
    """Weights for clips of `frames` frames: learned positions, and attention of the usual scale."""

    frames: int
    columns: int
    bands: int
    special: torch.Tensor  # [class tokens, dim], their positions
    positions: torch.Tensor  # [columns, bands, dim], of the patches
    state: dict[str, torch.Tensor]  # of the rest of the backbone, in timm's names, and `kernel` [dim, 16 (t), 16 (f)]
    about: dict[str, Any]  # the metadata of a file with these weights


def fixed(source: Source, seconds: float | None) -> Fixed:
    """The backbone at one length: the recipe's, or that of a sound of so many seconds.

    Raises ExportError where there is none, or the backbone is no vision transformer, or its norms stand elsewhere.
    """
    vit = source.backbone
    if not isinstance(vit, VisionTransformer):
        raise ExportError(f"The backbone {vit.model.backbone} is no vision transformer: --to safetensors holds it.")
    if vit.model.norm == "post":
        raise ExportError(
            "The LayerNorms of this backbone come after each sum (model.norm=post), those of these classes before: "
            "--to onnx, torch and safetensors hold it."
        )
    frames = _frames(source, seconds)
    where = vit.layout(torch.tensor([frames]), (frames,))
    wide = columns(frames, vit.model.stride)
    special = torch.zeros(vit.special, vit.model.dim)
    if vit.model.positions == "learned":
        special = vit.pos_embed[0, : vit.special].detach()
        positions = grid_positions(vit.pos_embed.detach()[0, vit.special :], where, vit.model.table_like)
    else:
        positions = factorised_positions(vit.pos_embed_time.detach(), vit.pos_embed_freq.detach(), where)
    state = {name: value for name, value in vit.state_dict().items() if not name.startswith(("pos_embed", "attn_pool"))}
    state["kernel"] = state.pop("patch_embed.proj.weight").unflatten(1, (PATCH, PATCH))
    model = replace(vit.model, positions="learned", table_frames=-(-frames // PATCH) * PATCH, attention_scale=None)
    usual = (vit.model.dim // vit.model.heads) ** -0.5
    if vit.model.attention_scale is not None:
        for name in [name for name in state if ".attn.qkv." in name]:
            state[name] = state[name].clone()
            state[name][: vit.model.dim] *= vit.model.attention_scale / usual
    recipe = replace(source.at_length(frames), model=model)
    about = source.about | {"model": asdict(model), "recipe": portable(recipe)}
    return Fixed(frames, wide, vit.bands, special, positions.unflatten(0, (wide, vit.bands)), state, about)


def _frames(source: Source, seconds: float | None) -> int:
    recipe = source.recipe
    if seconds is not None:
        return frames_within(seconds, recipe)
    if recipe.stage != "finetune":
        return recipe.model.table_frames
    frames = frames_of_all(evaluation_policy(recipe))
    if frames is None:
        raise ExportError(
            "This model hears clips of any length, and this format is for one: say which with --seconds, such as "
            "--seconds 10. --to onnx, torch and safetensors hold all lengths."
        )
    return frames
