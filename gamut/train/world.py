"""The ranks of a run: who this process is, and how it talks to the others."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.utils.deterministic

from gamut.accelerator import CHOICE, accelerator
from gamut.errors import MachineError, RunError
from gamut.processes import watch_launcher
from gamut.recipe import schema
from gamut.train.build import build

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the ranks of its run."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    threads: int  # torch threads of this rank

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a small float64 tensor, as a new tensor on the device."""
        total = values.to(self.device, torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, value: object) -> list:
        """Every rank's value (pickled by torch: small, and only between our own ranks), in rank order."""
        if self.size == 1:
            return [value]
        gathered: list = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def agree(self, error: Exception | None, what: str) -> None:
        """Raise on every rank if any rank has an error, so that none waits for a rank that has given up.

        Raises the error itself where it happened, and elsewhere RunError, or MachineError where it is one, naming the
        rank and the message.
        """
        kind = MachineError if isinstance(error, MachineError) else RunError
        messages = self.gather(None if error is None else (str(error), kind))
        if error is not None:
            raise error
        for rank, told in enumerate(messages):
            if told is not None:
                message, kind = told
                raise kind(f"Rank {rank} could not {what}: {message}")


def declared() -> tuple[int, int]:
    """(ranks, nodes) that the environment speaks of, for showing what they would do; starts nothing."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return size, max(1, size // int(os.environ.get("LOCAL_WORLD_SIZE", str(size))))


def start(run: schema.Run) -> World:
    """Join the ranks of this run: process group, device, threads, determinism. Call it once, before any model is made.

    Under a launcher (deepspeed, torchrun, ours) RANK, WORLD_SIZE and the rest come from the environment; a plain
    `python run.py` is a world of one. The process ends when its launcher is gone.

    Raises RunError where the environment says that there are several ranks but not where they meet, and where there
    are GPUs that torch cannot use.
    """
    watch_launcher()
    _complete_environment()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    os.environ[CHOICE] = accelerator()

    import gamut.train.unused  # noqa: F401  # before DeepSpeed

    # isort: split
    import deepspeed  # here: it reads the environment when it is imported

    deepspeed.utils.logger.setLevel(logging.WARNING)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA here: we know
    build()
    on_cpu = os.environ[CHOICE] == "cpu"
    device = torch.device("cpu") if on_cpu else torch.device("cuda", local_rank)
    if not on_cpu:
        if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # ragged batches would leave gaps between fixed segments
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(device)
    if on_cpu:
        bound_kernel_caches()
    threads = run.threads or max(1, len(os.sched_getaffinity(0)) // local_size)
    torch.set_num_threads(threads)
    make_deterministic(on_cpu or run.deterministic)
    if not dist.is_initialized():
        timeout = timedelta(seconds=run.timeout_seconds)
        with quiet():
            deepspeed.init_distributed(auto_mpi_discovery=False, timeout=timeout, verbose=False)
    return World(rank, size, local_rank, local_size, device, threads)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what DeepSpeed prints for its developers (memory at every stage of its own start) off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def make_deterministic(wanted: bool) -> None:
    """Choose deterministic kernels; an operation that has none raises."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What use_deterministic_algorithms does, but for importing torch's compiler to tell it, too (gamut.compiler does).
    torch.set_deterministic_debug_mode("error" if wanted else "default")
    # On by default in this mode: it writes NaN into every torch.empty, gigabytes a step in DeepSpeed's buckets.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def bound_kernel_caches() -> None:
    """Keep bf16 on the CPU from growing without end: oneDNN and torch keep the kernels of the last 1,024 shapes each,
    with their buffers, and a ragged batch has a new shape in every step (5 MB each for a linear layer of 192 x 768).
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")


def stop() -> None:
    """Leave the process group. A world of several ranks does so together."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _complete_environment() -> None:
    environment = os.environ
    size = int(environment.get("WORLD_SIZE", "1"))
    if size > 1 and not all(name in environment for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
        raise RunError(
            f"WORLD_SIZE is {size}, but RANK, MASTER_ADDR or MASTER_PORT is not set: start the run with `deepspeed`, "
            "`torchrun` or launchers/slurm.py, or unset WORLD_SIZE for a single process."
        )
    environment.setdefault("WORLD_SIZE", "1")
    environment.setdefault("RANK", "0")
    environment.setdefault("LOCAL_RANK", "0" if size == 1 else environment["RANK"])
    environment.setdefault("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", str(size)))
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in environment:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment["MASTER_PORT"] = str(free.getsockname()[1])
