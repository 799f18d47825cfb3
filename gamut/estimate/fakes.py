"""What must be told that its tensors are fake, or that there is a GPU, while a step is followed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import CodeType
from typing import Any

import torch
import torch.utils.deterministic
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gamut.data.batch import PackedBatch

ROOMS = ("gamut.", "pretrain.", "finetune.")


def fake_tensors() -> FakeTensorMode:
    """A mode within which every tensor is fake."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    fake.__deepcopy__ = lambda memo: fake  # type: ignore[attr-defined]  # else a copied module has a mode of its own
    return fake


def as_fake(fake: FakeTensorMode, batch: PackedBatch) -> PackedBatch:
    """The same batch without values, on the CPU."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    fakes: dict[str, Any] = {
        name: fake.from_tensor(value) for name, value in values.items() if isinstance(value, torch.Tensor)
    }
    return replace(batch, **fakes)


@contextlib.contextmanager
def surroundings(deterministic: bool, gpu: bool) -> Iterator[None]:
    """All that is here, at once. deterministic: whether the run takes deterministic kernels alone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch's, of fake tensors
        for one in (forgetting(), converting(), choosing(deterministic), capabilities(gpu)):
            stack.enter_context(one)
        yield


def kept() -> list[Any]:
    """The project's functions that keep what they gave (tables of the log-mel)."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(ROOMS)]
    return [
        one for each in modules for one in list(vars(each).values()) if isinstance(one, functools._lru_cache_wrapper)
    ]


def codes_of_kept() -> frozenset[CodeType]:
    """What runs once a process, not every step."""
    return frozenset(one.__wrapped__.__code__ for one in kept() if hasattr(one.__wrapped__, "__code__"))


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """What these functions keep is made anew within, and forgotten after: it would be fake."""
    for one in kept():
        one.cache_clear()
    try:
        yield
    finally:
        for one in kept():
            one.cache_clear()


@contextlib.contextmanager
def converting() -> Iterator[None]:
    """Modules of fake tensors may be moved and converted: by itself torch would swap each parameter for the new one,
    which it refuses where anything else knows of the old."""
    real = nn.Module._apply

    def apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        made: dict[int, Any] = {}  # a parameter that two modules share stays one
        for module in self.modules():
            for name, old in module._parameters.items():
                if old is not None:
                    if id(old) not in made:
                        with torch.no_grad():
                            made[id(old)] = old, nn.Parameter(fn(old), old.requires_grad)
                    module._parameters[name] = made[id(old)][1]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = fn(buffer)
        return self

    nn.Module._apply = apply  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module._apply = real  # type: ignore[method-assign]


@contextlib.contextmanager
def choosing(deterministic: bool) -> Iterator[None]:
    """torch's setting as the run will have it: composite operations go other ways."""
    state = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), state.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)
    state.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        state.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextlib.contextmanager
def capabilities(gpu: bool) -> Iterator[None]:
    """A GPU that is not there has flash attention, and may compute in bf16."""
    answers = {
        (torch.cuda, "get_device_capability"): lambda device=None: (9, 0),
        (torch.cuda, "is_bf16_supported"): lambda *_, **__: True,
        (torch.cuda.amp.common, "amp_definitely_not_available"): lambda: False,
    }
    with contextlib.ExitStack() as stack:
        for (module, name), answer in answers.items() if gpu else ():
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, answer)
        yield
