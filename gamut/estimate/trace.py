"""Follows every call of a step on fake tensors: what it costs, where it comes from, and what memory it holds.

The tensors have a device, a dtype and a shape, and no values. Those of a GPU need none: torch runs the project's own
code on them, forward and backward, and this mode stands in between and keeps the account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gamut.estimate.answers import MASKED, Answers, frame_here, is_mask, place_of
from gamut.estimate.calls import (
    COLUMNS,
    NOTHING,
    Call,
    bytes_of,
    flops_of,
    kind_of,
    launches_of,
    name_of,
    size,
    tensors,
)
from gamut.estimate.fakes import fake_tensors
from gamut.estimate.memory import BLOCK, Memory
from gamut.estimate.told import Told

# What is compiled: parts of a block and of the log-mel, some rows of a loss, and some blocks of a mask.
PARTS = {
    "before": "models/vit.py",
    "after": "models/vit.py",
    "distil_rows": "pretrain/losses.py",
    "draw_blocks": "pretrain/masking.py",
    "_lay_chunk": "pretrain/masking.py",
    "_mixed": "audio/waveform.py",
    "_means": "audio/waveform.py",
    "_framed": "audio/logmel.py",
    "_power": "audio/logmel.py",
    "_log": "audio/logmel.py",
    "_normalised": "audio/logmel.py",
}
DEEP = 16  # frames from a call to its part, at most: those of torch's modules lie between


class Trace(TorchDispatchMode):
    """See the module. `calls`: in order. `phase` and `holding` are set by whoever drives the step: what is being done,
    and what for memory is allocated that nothing else is known of."""

    def __init__(
        self,
        device: torch.device,
        answers: Answers,
        deterministic: bool,
        outputs: frozenset[int],
        once: frozenset[CodeType] = frozenset(),
        parts: bool = False,
    ) -> None:
        """outputs: widths of logits; once: the code of functions that keep what they gave; parts: whether to note which
        part of a block a call is of."""
        super().__init__()
        self.device = device
        self.answers = answers
        self.deterministic = deterministic and device.type == "cuda"
        self.outputs = outputs
        self.once, self.parts = once, parts
        self.calls: list[Call] = []
        self.copied = Counter[str]()  # bytes from host to device, by whether the host waits
        self.memory = Memory(BLOCK if device.type == "cuda" else 1)
        self.phase = "build"
        self.holding = "weights"
        self._places: dict[int, tuple[str, str]] = {}  # of the autograd node with a number
        self.told = Told()
        self._pairs: dict[int, float] = {}  # by the piece of memory of the offsets of a packed row

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return self.told.of(args[0])
        if self.device.type == "cuda" and str(kwargs.get("device")) == "meta":  # by C++, which was told so of a tensor
            kwargs = {**kwargs, "device": self.device}
        name = name_of(func)
        frame = None
        place, region, backward = self._place()
        if place is None:
            frame = frame_here()
            place, region = place_of(frame), _region(frame) if self.parts else ""
            self._places[torch.autograd._get_sequence_nr() - 1] = (place, region)
            if frame is not None and frame.f_code in self.once:
                with self._as("once"):
                    return self._followed(func, name, args, kwargs, place, region, backward, frame)
        return self._followed(func, name, args, kwargs, place, region, backward, frame)

    def _followed(
        self,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict,
        place: str,
        region: str,
        backward: bool,
        frame: FrameType | None,
    ) -> Any:
        out = self.answers.reply(func, name, args, kwargs, place)
        self.told.after(args, out)
        self._account(func, name, args, kwargs, out, place, region, backward, frame)
        return out

    @contextmanager
    def _as(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @contextmanager
    def hold(self, kind: str) -> Iterator[None]:
        """What is allocated within is of that kind."""
        before, self.holding = self.holding, kind
        try:
            yield
        finally:
            self.holding = before

    def _place(self) -> tuple[str | None, str, bool]:
        """Where the node of the backward that runs now was made in the forward; (None, "", False) outside of one."""
        node = torch._C._current_autograd_node()
        if node is None or torch.is_grad_enabled():  # a forward, be it one that a backward computes again
            return None, "", False
        return *self._places.get(node._sequence_nr(), ("backward", "")), True

    def lists(self, tensor: torch.Tensor) -> list:
        """`tensor.tolist()`."""
        place = place_of(frame_here())
        if tensor.device == self.device and self.device.type == "cuda":
            self._wait(place, "tolist")
        return self.answers.listed(tensor, place)

    def _wait(self, place: str, name: str) -> None:
        self.calls.append(Call(name, "memory", 0.0, 0.0, 0, False, place, self.phase, wait=True))

    def _account(
        self,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict,
        out: Any,
        place: str,
        region: str,
        backward: bool,
        frame: FrameType | None,
    ) -> None:
        mine = self.device.type
        given, made = tensors((args, kwargs)), tensors(out)
        here = [tensor for tensor in given if tensor.device.type == mine and isinstance(tensor, torch.Tensor)]
        there = [tensor for tensor in made if tensor.device.type == mine]
        if name == "_local_scalar_dense":
            if mine == "cuda" and here:
                self._wait(place, name)
            return
        if not here and not there:
            return
        reads = tuple((self.memory.see(tensor, self._holding(tensor))[0], size(tensor)) for tensor in here)
        seen = [self.memory.see(tensor, self._holding(tensor)) for tensor in there]
        fresh = any(new for _, new in seen)
        writes = tuple((number, size(tensor)) for (number, _), tensor in zip(seen, there))
        if name in NOTHING or not (fresh or func._schema.is_mutable or not there):
            return
        crossing = name in ("_to_copy", "copy_") and mine == "cuda"
        if crossing and given and any(tensor.device.type != mine for tensor in (*given, *made)):
            self._cross(name, args, kwargs, given, made, place)
            return
        pairs = self._pairs_of(name, args, frame)
        flops = flops_of(func, args, kwargs, out, pairs)
        moved = bytes_of(name, here, there, self.deterministic)
        half = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in here)
        # torch converts all of it first, except from bf16 to float32 on a GPU.
        direct = mine == "cuda" and half and kwargs.get("dtype") == torch.float32
        if name == "sum" and here and not direct and kwargs.get("dtype") not in (None, here[0].dtype):
            converted = here[0].numel() * kwargs["dtype"].itemsize
            self.memory.brief(converted, "activations")
            moved += 2.0 * converted
        if (
            name == "sum"
            and there
            and here[0].ndim > 1
            and 0 in [dim % here[0].ndim for dim in (args[1:] or [()])[0] or ()]
        ):
            name = COLUMNS
        if name in ("clone", "copy_") and not all(tensor.is_contiguous() for tensor in (*here, *there)):
            name = f"{name} strided"
        waits = mine == "cuda" and (name == "nonzero" or (name in MASKED and any(map(is_mask, args[1]))))
        self.calls.append(
            Call(
                name,
                kind_of(name, flops),
                flops,
                moved,
                launches_of(name, args, self.deterministic) + 4 * (waits and name != "nonzero"),
                half,
                place,
                self.phase,
                wait=waits,
                reads=reads,
                writes=writes,
                region=region,
                backward=backward,
            )
        )

    def _cross(self, name: str, args: tuple, kwargs: dict, given: list, made: list, place: str) -> None:
        """A copy between host and device. The host waits for one that it needs at once, or that is not pinned."""
        source = given[-1] if name == "copy_" else given[0]
        async_ = bool(kwargs.get("non_blocking")) or (name == "copy_" and len(args) > 2 and bool(args[2]))
        count = size(source)
        up = source.device.type != self.device.type
        if up and self.phase not in ("build", "once"):
            self.copied["waited for" if not async_ else "beside"] += count
        self.calls.append(
            Call(
                "copy to device" if up else "copy to host",
                "copy",
                0.0,
                float(count),
                1,
                False,
                place,
                self.phase,
                wait=not async_,
            )
        )

    def _holding(self, tensor: torch.Tensor) -> str:
        if self.holding == "activations" and tensor.ndim >= 2 and tensor.shape[-1] in self.outputs:
            return "logits"
        return self.holding

    def _pairs_of(self, name: str, args: tuple, frame: FrameType | None) -> float | None:
        """Queries x keys, summed over the segments of a packed row: the layout in the caller's frame has lengths as
        Python numbers; the backward finds them by the offsets that the forward had."""
        if name == "_varlen_attn":
            offsets = args[3]
            pairs = float(len(args[0])) * float(args[6]) if len(args) > 6 and isinstance(args[6], int) else 0.0
            while frame is not None and "query_lengths" not in frame.f_locals:
                frame = frame.f_back
            if frame is not None:
                lengths = zip(frame.f_locals["query_lengths"], frame.f_locals["where"].lengths)
                pairs = float(sum(queries * keys for queries, keys in lengths))
            self._pairs[self.memory.see(offsets, self.holding)[0]] = pairs
            return pairs
        if name == "_varlen_attn_backward":
            for one in args:
                if isinstance(one, torch.Tensor) and one.dtype == torch.int32:
                    return self._pairs.get(self.memory.see(one, self.holding)[0])
        return None

    def communicate(self, name: str, count: float) -> None:
        """A collective over so many bytes of this rank's."""
        self.calls.append(Call(name, "communication", 0.0, float(count), 1, False, "engine", self.phase))


def _region(frame: FrameType | None) -> str:
    """Which part of which block a call is of, of those that `compute.compile` compiles; else ""."""
    for _ in range(DEEP):
        if frame is None:
            break
        code = frame.f_code
        if code.co_name in PARTS and code.co_filename.endswith(PARTS[code.co_name]):
            return f"{code.co_name} {id(frame.f_locals.get('self'))}"
        frame = frame.f_back
    return ""


@contextmanager
def tracing(trace: Trace) -> Iterator[FakeTensorMode]:
    """Within it every tensor is fake, and `trace` follows."""
    # torch makes its backward's threads at the first one, one for each GPU that it is told of; then no process may be
    # forked any more. So that comes before the GPUs that are not there.
    torch.zeros(1, requires_grad=True).sum().backward()
    with ExitStack() as stack:
        fake = stack.enter_context(fake_tensors())
        stack.enter_context(_lists(trace))
        stack.enter_context(trace)
        stack.enter_context(trace.told.listening())
        yield fake


@contextmanager
def _lists(trace: Trace) -> Iterator[None]:
    """`tolist` of a fake tensor asks the trace: by itself it would ask for each number."""
    real = FakeTensor.tolist
    FakeTensor.tolist = lambda tensor: trace.lists(tensor)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        FakeTensor.tolist = real  # type: ignore[method-assign]
