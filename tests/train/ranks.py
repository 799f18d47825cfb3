"""Worlds of real ranks for tests: processes forked from one that has the imports done."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from gamut.recipe import schema
from gamut.train import world as worlds

FOLDER = Path(__file__).parent


def server() -> multiprocessing.context.ForkServerContext:
    """The context whose server has torch, DeepSpeed and the toy problem imported: a rank of it starts in no time."""
    paths = [str(FOLDER), str(FOLDER.parents[1])]
    known = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, known])
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    # The second one is imported by DeepSpeed when it makes an optimiser: 4 s of torch's compiler.
    late = "deepspeed.runtime.zero.muon.muon_optimizer"
    # The last one imports scikit-learn and matplotlib, which fine-tuning needs late.
    context.set_forkserver_preload(["deepspeed", late, "ranks", "toy", "gamut.train.loop", "finetune.scoring"])
    return context


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _rank(rank: int, size: int, port: int, out: str, work: Callable[..., Any], arguments: tuple, setup: dict) -> None:
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(f"{out}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    gc.freeze()  # what the server imported: else every collection walks through it and copies its pages
    gc.unfreeze = lambda: None
    try:
        world = worlds.start(schema.Run(**{"threads": 1, "timeout_seconds": 60.0} | setup))
        answer = work(world, *arguments)
    except BaseException as error:  # the test looks at it
        traceback.print_exc()
        answer = error
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{out}.{rank}.part", "wb") as file:
        file.write(ForkingPickler.dumps(answer))
    os.rename(f"{out}.{rank}.part", f"{out}.{rank}")
    os._exit(0)


class Ranks:
    """A world of `size` ranks that runs `work(world, *arguments)` (an importable function) on each."""

    def __init__(self, size: int, work: Callable[..., Any], *arguments: Any, **setup: Any) -> None:
        self.size = size
        folder = tempfile.mkdtemp(prefix="gamut-ranks-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.out = os.path.join(folder, "rank")
        context, port = server(), free_port()
        self.processes = [
            context.Process(target=_rank, args=(rank, size, port, self.out, work, arguments, setup), daemon=True)
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 120.0) -> list[Any]:
        """Each rank's answer: what its work returned or raised, None for one that was killed or died."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, until - time.monotonic()))
        hung = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        assert not hung, f"ranks {hung} did not end:\n{self.log()}"
        return [self._answer(rank) for rank in range(self.size)]

    def _answer(self, rank: int) -> Any:
        path = Path(f"{self.out}.{rank}")
        return ForkingPickler.loads(path.read_bytes()) if path.exists() else None

    def log(self) -> str:
        return "\n".join(Path(f"{self.out}.{r}.log").read_text() for r in range(self.size))


def run(size: int, work: Callable[..., Any], *arguments: Any, **setup: Any) -> list[Any]:
    """Answers of all ranks, none of which may have raised or died, within so many seconds (120)."""
    seconds = setup.pop("seconds", 120.0)
    ranks = Ranks(size, work, *arguments, **setup)
    answers = ranks.wait(seconds)
    for rank, answer in enumerate(answers):
        assert answer is not None, f"rank {rank} died\n{ranks.log()}"
        assert not isinstance(answer, BaseException), f"rank {rank}: {answer}\n{ranks.log()}"
    return answers
