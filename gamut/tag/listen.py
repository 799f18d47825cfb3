"""One pass: what transformers' Whisper encodes while it writes text is seen by the tags too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gamut.models.whisper import Whisper

Window = Callable[[int, int, list[torch.Tensor]], None]  # (recording in the batch, its first step, blocks [steps, D])


class Listening:
    """While `generate` runs: hands every window to `window` when its encoder pass has been made, once.

    `generate` encodes a window again for every language detection and every temperature that it falls back to; here it
    gets what the first pass gave. Pass `progress` as its `monitor_progress`: it tells which windows are meant.
    """

    def __init__(self, whisper: Whisper, recordings: int, window: Window) -> None:
        self._whisper, self._window = whisper, window
        self._at = [(recording, 0) for recording in range(recordings)]  # (recording, first frame), of each row
        self._mel: torch.Tensor | None = None  # of the last pass
        self._last: Any = None
        self.passes = 0  # windows that were encoded

    def progress(self, seek: torch.Tensor) -> None:
        """(first frame, frames) of every recording, int64 [B, 2]; those that are through are left out of the batch."""
        self._at = [(row, int(first)) for row, (first, frames) in enumerate(seek.tolist()) if first < frames]

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within it the encoder listens."""
        encoder = self._whisper.encoder
        whole = encoder.forward
        encoder.forward = functools.partial(self._forward, whole)
        try:
            yield
        finally:
            del encoder.forward  # the method of its class again

    def _forward(self, whole: Callable[..., Any], input_features: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        known = self._known(input_features)
        if known is not None:
            return type(self._last)(last_hidden_state=self._last.last_hidden_state[known])
        outputs: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        blocks: Any = self._whisper.encoder.layers
        handles = [block.register_forward_hook(keep) for block in blocks]
        try:
            self._last = whole(input_features, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        self._mel = input_features
        self.passes += len(input_features)
        for row, (recording, frame) in enumerate(self._at):
            self._window(recording, frame // 2, [output[row] for output in outputs])
        return self._last

    def _known(self, mel: torch.Tensor) -> torch.Tensor | None:
        """Which rows of the last pass these windows are; None where one of them was not in it."""
        if self._mel is None:
            return None
        rows = [next((row for row, old in enumerate(self._mel) if torch.equal(old, one)), None) for one in mel]
        found = [row for row in rows if row is not None]
        return torch.tensor(found, device=mel.device) if len(found) == len(mel) else None
