"""What a step asks its tensors for: numbers that a fake tensor does not have. Taken from a real pass on the CPU."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gamut.commands import ROOT
from gamut.estimate.calls import name_of

ROOMS = tuple(f"{ROOT}/{room}/" for room in ("pretrain", "finetune", "gamut"))
OWN = f"{ROOT}/gamut/estimate/"

# Calls whose result has a size that only values decide, and the place of the argument that has the values.
COUNTED = {"nonzero": 0, "repeat_interleave": 0, "masked_select": 1}
MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")  # by a mask, too


def frame_here() -> FrameType | None:
    """The innermost frame that is the project's own, this room aside."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOMS) and not file.startswith(OWN):
            return frame
        frame = frame.f_back
    return None


def place_of(frame: FrameType | None) -> str:
    """`pretrain/asit.py:152`."""
    if frame is None:
        return "?"
    return f"{frame.f_code.co_filename[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"


class Answers:
    """By place in the source and kind of question, in the order asked. A question beyond the last gets the last
    answer again. A size that nobody asked for is the most that it can be, and `guessed` counts it."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], deque[Any]] = defaultdict(deque)
        self.guessed: dict[str, int] = defaultdict(int)

    def add(self, place: str, question: str, answer: Any) -> None:
        self._of[place, question].append(answer)

    def take(self, place: str, question: str) -> Any | None:
        found = self._of.get((place, question))
        if not found:
            return None
        return found.popleft() if len(found) > 1 else found[0]

    def count(self, place: str, question: str, numbers: int) -> int:
        """How many of so many numbers: the share that there was in the real pass."""
        found = self.take(place, question)
        if found is None:
            self.guessed[place] += 1
            return numbers
        count, of = found
        return count if of == numbers else round(count / max(of, 1) * numbers)

    def reply(self, func: Any, name: str, args: tuple, kwargs: dict, place: str) -> Any:
        """What torch gives; where that depends on values, what the real pass had there."""
        if name == "_local_scalar_dense":
            try:
                return func(*args, **kwargs)  # a small constant has its value
            except Exception:
                found = self.take(place, name)
                return (args[0].dtype.is_floating_point and 1.0) or 1 if found is None else found
        if name in COUNTED and kwargs.get("output_size") is None:
            of = args[min(COUNTED[name], len(args) - 1)]
            repeats = getattr(of, "constant", None) if name == "repeat_interleave" else None  # numbers of the host's
            count = self.count(place, name, of.numel()) if repeats is None else int(repeats.sum())
            if name == "nonzero":
                return torch.empty(count, of.ndim, dtype=torch.int64, device=of.device)
            return torch.empty(count, dtype=args[0].dtype, device=of.device)
        if name in MASKED and any(is_mask(one) for one in args[1]):
            places: list = []
            for one in args[1]:
                if not is_mask(one):
                    places.append(one)
                    continue
                count = self.count(place, "mask", one.numel())
                places += [torch.empty(count, dtype=torch.int64, device=one.device)] * one.ndim
            return func(args[0], places, *args[2:], **kwargs)
        return func(*args, **kwargs)

    def listed(self, tensor: torch.Tensor, place: str) -> Any:
        """`tolist` of a tensor without values."""
        constant = getattr(tensor, "constant", None)  # a small tensor that was made of numbers has them
        if constant is not None:
            return constant.tolist()
        found = self.take(place, "tolist")
        return _zeros(tensor) if found is None else found


def is_mask(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)


def _zeros(tensor: torch.Tensor) -> Any:
    """A list, or a number, of zeros in a tensor's shape: the sums of a step in which nothing is amiss."""
    zero: Any = 0.0 if tensor.dtype.is_floating_point else 0
    for length in reversed(tensor.shape):
        zero = [zero] * length
    return zero


class Listen(TorchDispatchMode):
    """Notes, while real tensors are computed with, what is asked of their values."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = name_of(func)
        if name == "_local_scalar_dense":
            self.answers.add(place_of(frame_here()), name, out)
        elif name in COUNTED:
            of = args[min(COUNTED[name], len(args) - 1)]
            self.answers.add(place_of(frame_here()), name, (len(out), of.numel()))
        elif name == "index":
            for mask in args[1]:
                if mask is not None and mask.dtype == torch.bool:
                    self.answers.add(place_of(frame_here()), "mask", (int(mask.count_nonzero()), mask.numel()))
        return out


class Lists(TorchFunctionMode):
    """`tolist`, which torch does not tell a dispatch mode of."""

    def __init__(self, answer: Callable[[torch.Tensor], list]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.tolist:
            return self.answer(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def listening(answers: Answers) -> Iterator[None]:
    """Within it every question that the project's code asks a tensor is answered as ever, and noted."""

    def noted(tensor: torch.Tensor) -> list:
        with torch._C.DisableTorchFunction():
            found = tensor.tolist()
        answers.add(place_of(frame_here()), "tolist", found)
        return found

    with Lists(noted), Listen(answers):
        yield
