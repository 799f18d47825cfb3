"""What the optimiser treats alike: parameter groups with their scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gamut.recipe import schema


def parameter_groups(model: nn.Module, own: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Groups {params, lr_scale, weight_decay_scale}: the objective's own, or decay and no decay.

    Not decayed are biases and 1-D parameters (DINO, ASiT). Frozen parameters and empty groups are left out.

    Raises ValueError where a trainable parameter is in no group, or in two.
    """
    if own is None:
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (others if parameter.ndim <= 1 or name.endswith("bias") else decayed).append(parameter)
        own = [{"params": decayed}, {"params": others, "weight_decay_scale": 0.0}]
    groups = []
    for group in own:
        kept = [parameter for parameter in group["params"] if parameter.requires_grad]
        if kept:
            scales = {"lr_scale": 1.0, "weight_decay_scale": 1.0} | {k: v for k, v in group.items() if k != "params"}
            groups.append({"params": kept} | scales)
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for number, name in names.items() if number not in set(seen)]
    if missing or len(set(seen)) != len(seen) or set(seen) - set(names):
        raise ValueError(f"the objective's parameter groups are not a partition of the model's parameters: {missing}")
    return groups


def adam(optim: schema.Optim) -> type[torch.optim.Adam]:
    """Adam, whose weight decay is part of the gradient (AST, ElasticAST), or AdamW (Loshchilov and Hutter)."""
    return torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW


def adam_options(optim: schema.Optim) -> dict[str, Any]:
    """What either is made with; learning rate and weight decay are set before every step."""
    return {"betas": optim.betas, "eps": optim.eps, "weight_decay": 0.0}
