"""A parameter that may be cut over the ranks (ZeRO-3): this rank's partition of it, the whole of it, and filling it.

For code outside the engines that must read or move weights: a teacher that follows its student, a checkpoint. A
parameter that no engine has cut is its own only partition. DeepSpeed reads the environment when it is imported, so it
is imported only where a parameter is cut: an objective may be imported before the ranks have started.
"""

from __future__ import annotations

import torch
from torch import nn


def is_cut(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id")


def shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole."""
    return torch.Size(parameter.ds_shape) if is_cut(parameter) else parameter.shape  # type: ignore[attr-defined]


def partition(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds: flat, padded at the end so that all ranks hold as much; the parameter itself if uncut."""
    return parameter.ds_tensor if is_cut(parameter) else parameter.data  # type: ignore[attr-defined]


def share(parameter: torch.Tensor) -> slice:
    """Which numbers of the flattened whole this rank holds, without padding."""
    rank = torch.distributed.get_rank()
    size, numel = parameter.ds_tensor.numel(), parameter.ds_numel  # type: ignore[attr-defined]
    return slice(min(rank * size, numel), min((rank + 1) * size, numel))


@torch.no_grad()
def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of the whole in CPU memory. All ranks call it together where the parameter is cut."""
    if not is_cut(parameter):
        return parameter.detach().to("cpu", copy=True)
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # type: ignore[attr-defined]
        return parameter.detach().to("cpu", copy=True)
    with GatheredParameters([parameter]):
        return parameter.detach().to("cpu", copy=True)


def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """`module.state_dict()` with every parameter whole, in CPU memory. All ranks call it together."""
    parameters = dict(module.named_parameters())
    return {name: whole(parameters.get(name, value)) for name, value in module.state_dict().items()}


@torch.no_grad()
def fill(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole value into the parameter, or its share into this rank's partition of it (padding becomes 0)."""
    if not is_cut(parameter):
        parameter.copy_(value)
        return
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    assert parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE, "a gathered copy would not change"  # type: ignore[attr-defined]
    mine = value.reshape(-1)[share(parameter)]
    partition(parameter).zero_()
    partition(parameter)[: len(mine)].copy_(mine)


def shapes(module: nn.Module) -> dict[str, list[int]]:
    """Shape of each whole parameter by name."""
    return {name: list(shape(parameter)) for name, parameter in module.named_parameters()}
