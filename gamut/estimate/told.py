"""What C++ is told of the device of a fake tensor, so that torch runs a backward on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

from gamut.estimate.calls import tensors

META = torch.device("meta")


class Told:
    """torch's autograd looks for the streams of the device that it notes of each result, and of a GPU that is not there
    it finds none: it is told `meta`, whose work it does at once. Everybody else (autocast) is told the truth.

    C++ asks through the dispatcher, and does not say who asks. Autograd does in the backward; of what a call has just
    put out; and of a parameter, when it makes the node at which its gradient arrives, which is to happen in `noting`.
    All others ask of the arguments before a call.
    """

    def __init__(self) -> None:
        self._backwards = 0  # how many run, one within the other
        self._functions = 0  # and how many autograd functions that are written in Python
        self._noting = False
        self._fresh: list[int] = []  # results of the last call that autograd will ask of
        self._nodes: list[Any] = []  # of the inputs of blocks that are computed twice

    def of(self, tensor: Any) -> torch.device:
        """The answer."""
        if tensor.fake_device.type != "cuda":
            return tensor.fake_device
        learning = torch.is_grad_enabled()
        if self._noting or (self._functions and learning) or (self._backwards and not learning):
            return META
        if id(tensor) in self._fresh:
            self._fresh.remove(id(tensor))
            return META
        return tensor.fake_device

    def after(self, args: tuple, out: Any) -> None:
        """A call has put this out."""
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in tensors(args))
        self._fresh = [id(one) for one in tensors(out)] if learns else []

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within it hooks may be put on parameters, and nodes made for them; no autocast runs."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def leaves(self, parameters: Iterable[torch.Tensor]) -> list[Any]:
        """The nodes at which the parameters' gradients arrive, to be kept until the backward has run."""
        with self.noting():
            return [torch.autograd.graph.get_gradient_edge(one).node for one in parameters]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it torch says when a backward runs, or a function of autograd that is written in Python, and the
        inputs of what is computed twice get their nodes at once."""
        real, apply = torch.autograd.backward, torch.autograd.Function.__dict__["apply"]
        detach = torch.utils.checkpoint.detach_variable

        def backward(*args: Any, **kwargs: Any) -> None:
            self._backwards += 1
            try:
                with torch.no_grad():
                    real(*args, **kwargs)
            finally:
                self._backwards -= 1
                self._nodes.clear()

        def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
            self._functions += 1
            try:
                return apply.__func__(cls, *args, **kwargs)
            finally:
                self._functions -= 1

        def detached(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            found = detach(inputs)
            self._nodes += self.leaves(one for one in tensors(found) if one.requires_grad)
            return found

        torch.autograd.backward = backward
        torch.autograd.Function.apply = classmethod(applied)  # type: ignore[assignment]
        torch.utils.checkpoint.detach_variable = detached
        try:
            yield
        finally:
            torch.autograd.backward = real
            torch.autograd.Function.apply = apply  # type: ignore[method-assign]
            torch.utils.checkpoint.detach_variable = detach
