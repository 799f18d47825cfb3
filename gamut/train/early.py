"""The step after this one: loaded, brought to the device and prepared while the device is in this one's backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gamut.data.batch import PackedBatch
from gamut.train.objective import Moment
from gamut.train.step import Asks, Beside, Ready


class Stream:
    """Of a GPU, beside the one that trains. On a CPU there is one stream only, and all happens at once."""

    def __init__(self, device: torch.device) -> None:
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._mark = torch.cuda.Event() if device.type == "cuda" else None

    def mark(self) -> None:
        """What is run from now on comes after all that the training stream was given so far, and waits for no more."""
        if self._mark is not None:
            self._mark.record()

    def run(self, prepare: Callable[[], Ready]) -> Ready:
        if self._beside is None or self._mark is None:
            return prepare()
        self._beside.wait_event(self._mark)
        with torch.cuda.stream(self._beside):
            ready = prepare()
            ready.total = ready.total.to("cpu", non_blocking=True)  # into pinned memory
            ready.done = torch.cuda.Event()
            ready.done.record()
        for tensor in tensors_in(ready.prepared, set()):
            if tensor.is_cuda:  # its memory is free for others only once the training stream is through with it
                tensor.record_stream(torch.cuda.current_stream())
        return ready


def tensors_in(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """All tensors that a value holds, within whatever."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one, seen)
    elif isinstance(value, Mapping) or hasattr(value, "__dict__"):
        for one in (value if isinstance(value, Mapping) else vars(value)).values():
            yield from tensors_in(one, seen)


@dataclass(frozen=True)
class Coming:
    """A step that is to be taken: the `number`-th of its epoch, from 0."""

    number: int
    batches: list[PackedBatch]
    at: Moment
    waited: float  # seconds, for its micro-batches
    ready: Ready | None  # where it was prepared early


class Steps(Beside):
    """The steps of an epoch, one by one. With a stream each is loaded and prepared while the one before is trained, and
    without when its turn comes: `prepare` depends on the clips and the moment alone, so the numbers are the same."""

    def __init__(
        self,
        loader: Iterable[tuple[int, list[PackedBatch]]],
        moment: Callable[[int], Moment],
        prepare: Callable[[list[PackedBatch], Moment, Asks], Ready],
        leaves_out: Callable[[int], bool],
        stream: Stream | None,
    ) -> None:
        """moment: of a step of the epoch; prepare: what is done with one early, given what the ranks agreed on in the
        step before it; leaves_out: whether a step of the run is not to be trained on."""
        self._loader = iter(loader)
        self._moment, self._prepare, self._leaves_out, self._stream = moment, prepare, leaves_out, stream
        self._next: Coming | None = None

    def take(self) -> Coming | None:
        """The next step; None where there is none."""
        coming, self._next = self._next or self._load(None), None
        return coming

    def backward_begins(self) -> None:
        if self._stream is not None:
            self._stream.mark()

    def backward_runs(self, agreed: Asks) -> None:
        if self._stream is not None and not agreed.stop:
            self._next = self._load(agreed)

    def _load(self, agreed: Asks | None) -> Coming | None:
        since = time.perf_counter()
        number, batches = next(self._loader, (-1, []))
        if number < 0:
            return None
        waited, at = time.perf_counter() - since, self._moment(number)
        ready = None
        if self._stream is not None and agreed is not None and not self._leaves_out(at.step):
            ready = self._stream.run(lambda: self._prepare(batches, at, agreed))
        return Coming(number, batches, at, waited, ready)
