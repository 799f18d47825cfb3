"""A trace of a few steps by torch's profiler: `track.trace_steps`."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gamut.files import write_bytes

FOLDER = "trace"
ROWS = 60  # of the table


class Trace:
    """Follows steps `first` to `last` of a run, counted as in metrics.jsonl, and leaves in its folder

    trace/FIRST-LAST.json.gz   for https://ui.perfetto.dev or chrome://tracing
    trace/FIRST-LAST.txt       the dearest operations

    An attempt that begins or ends among these steps traces those that it takes.
    """

    def __init__(self, steps: list[int], folder: Path, device: torch.device) -> None:
        """steps: [first, last], or [] for none."""
        self.first, self.last = steps or (0, -1)
        self.folder = folder / FOLDER
        self.device = device
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """`step` comes next."""
        if step > self.last:
            self.close()
        elif self._profile is None and step >= self.first:
            gpu = [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
            self._profile.start()

    def close(self) -> None:
        """Write what there is, if anything."""
        if self._profile is None:
            return
        found, self._profile = self._profile, None
        found.stop()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        name = self.folder / f"{self.first:07d}-{self.last:07d}"
        with tempfile.TemporaryDirectory() as scratch:
            plain = Path(scratch) / "trace.json"
            found.export_chrome_trace(str(plain))
            write_bytes(name.with_suffix(".json.gz"), gzip.compress(plain.read_bytes(), 5))
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        write_bytes(name.with_suffix(".txt"), table.encode())
        print(
            f"trace of steps {self.first} to {self.last}: {name}.json.gz (https://ui.perfetto.dev) and .txt", flush=True
        )
