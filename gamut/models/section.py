"""What a public checkpoint is of, told by its tensors: the model section that a recipe would have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gamut.errors import CheckpointError, RecipeError, nearest
from gamut.models.folder import config_beside
from gamut.models.names import EAT_KERNELS, ELASTIC_KERNEL, KERNEL, State, our_names
from gamut.models.weights import backbone_prefix
from gamut.numbers import PATCH, bands, frames_of
from gamut.recipe import schema
from gamut.recipe.check import check_model

HEAD_WIDTH = 64  # dimensions of an attention head in every ViT-Ti, -S, -B and -L, and in all but the largest Dasheng
CLASSIFIER = "head.linear.weight"


def section_of(raw: State, path: Path, given: Mapping[str, Any]) -> tuple[schema.Model, bool, int]:
    """(the model section of the vision transformer of spectrograms in a file, whether its patches are (frequency, time)
    as AST's are, how many classes its classifier tells apart, 0 where it has none).

    raw: its tensors under their own names. given: keys of the section, by name, that the tensors do not tell or tell
    otherwise. Raises CheckpointError where there is no such model, and RecipeError where a key must be given.
    """
    state = our_names(raw)
    prefix = backbone_prefix(state, "teacher.backbone.", path)
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if KERNEL not in own or "blocks.0.mlp.fc1.weight" not in own:
        raise CheckpointError(f"{path} has no vision transformer that can be told by its tensors alone: name its run.")
    kernel = own[KERNEL]
    if kernel.ndim == 4 and (kernel.shape[1] > 1 or kernel.shape[2:] != (PATCH, PATCH)):
        kind = "images" if kernel.shape[1] > 1 else f"patches of {kernel.shape[2]}x{kernel.shape[3]}"
        raise CheckpointError(
            f"{path} is a ViT of {kind}, not of 16x16 patches of a spectrogram: train from it (init)."
        )
    config, dim = config_beside(path), len(kernel)
    frequency_first = prefix.split(".")[-2:] == ["v", ""]
    elastic = any(name.endswith(ELASTIC_KERNEL) for name in raw)
    told: dict[str, Any] = {
        "dim": dim,
        "depth": len({name.split(".")[1] for name in own if name.startswith("blocks.")}),
        "mlp_ratio": len(own["blocks.0.mlp.fc1.weight"]) / dim,
        "positions": "learned" if "pos_embed" in own else "factorised",
        "table_like": "ast" if frequency_first else "asit",
        "distilled": "dist_token" in own,
        "pooling": "attention" if "attn_pool.query" in own else "cls" if "cls_token" in own else "mean",
        "norm": "post" if any(name.endswith(EAT_KERNELS) for name in raw) else "pre",
        "drop_path": 0.0,
        "head_eps": config.get("layer_norm_eps", 1e-5 if frequency_first else 1e-6),
    }
    if elastic:
        told |= {"attention_scale": 1.0}  # of the published code (docs/elastic.md)
    if "num_attention_heads" in config or dim % HEAD_WIDTH == 0:
        told["heads"] = config.get("num_attention_heads", dim // HEAD_WIDTH)
    if "pos_embed" in own:
        special = sum(name in own for name in ("cls_token", "dist_token"))
        cells = math.prod(own["pos_embed"].shape[:-1]) - special
        stride = given.get("stride") or config.get("time_stride") or (_stride(cells) if frequency_first else PATCH)
        if stride is not None:
            told |= {"stride": stride, "table_frames": _whole(frames_of(cells // bands(stride), stride))}
    elif "pos_embed_time" in own:
        told["table_frames"] = len(own["pos_embed_time"]) * PATCH
    unknown = [name for name in given if name not in schema.Model.__dataclass_fields__]
    if unknown:
        names = list(schema.Model.__dataclass_fields__)
        raise RecipeError(f"There is no key {unknown[0]!r} in a model section{nearest(unknown[0], names)}.")
    told |= given
    for key, example in (("heads", 12), ("stride", 10)):
        if key not in told and (key != "stride" or "pos_embed" in own):
            raise RecipeError(f"{path} does not tell the model's {key}: say it, such as model={{'{key}': {example}}}.")
    model = replace(schema.Model(), **told)
    check_model(model)
    above = "".join(prefix.removesuffix(".").rpartition(".")[:2])
    head = state.get(above + CLASSIFIER)
    return model, frequency_first, 0 if head is None else len(head)


def _stride(cells: int) -> int | None:
    """Of the patches of AST's table: 16 where it has whole columns of 8 bands, 10 of 12; None where it may be
    either."""
    fits = [stride for stride in (16, 10) if cells > 0 and cells % bands(stride) == 0]
    return fits[0] if len(fits) == 1 else None


def _whole(frames: int) -> int:
    """Up to a multiple of 16: AST's table of 101 columns, 1,016 frames, is that of 1,024."""
    return -(-frames // PATCH) * PATCH
