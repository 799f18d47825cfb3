"""How long all ranks stand still for a checkpoint of a model and its teacher: two ranks on the CPU, ZeRO-1.

    python -m bench.saving [--million 86] [--precision bf16] [--times 3]

`standing` is what a step waits for, `published` until the checkpoint is whole and named `latest`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

RANKS = 2
WIDTH = 1024


def measure(rank: int, port: int, folder: str, million: float, precision: str, times: int) -> None:
    """One rank: a step, a checkpoint, and so on; rank 0 writes what it saw to FOLDER/result.json."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    import torch
    from torch import nn

    from gamut.recipe import schema
    from gamut.train import world as worlds
    from gamut.train.checkpoint import Keeper
    from gamut.train.loop import make_engine
    from gamut.train.objective import Objective
    from gamut.train.state import State

    class Layers(Objective):
        def __init__(self) -> None:
            layers = max(1, round(million * 1e6 / WIDTH**2))
            self.model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
            self.teacher = [layer.weight.detach().clone() for layer in self.model]

        def extra_state(self) -> dict[str, torch.Tensor]:
            return {f"teacher.{n}": weight for n, weight in enumerate(self.teacher)}

        def prepare(self, *_: Any) -> Any:
            raise NotImplementedError

        loss = prepare

    world = worlds.start(schema.Run(threads=1))
    recipe = schema.Recipe(
        precision=precision, step=schema.Step(packs=RANKS, clips=1), deepspeed={"zero_optimization": {"stage": 1}}
    )
    objective = Layers()
    engine = make_engine(objective, recipe, world, 1)
    keeper = Keeper(Path(folder) / "checkpoints", recipe, world, {}, engine, objective)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    seen = []
    for step in range(1, times + 1):
        with engine.micro_step(last=True) as module:
            engine.backward(module(torch.ones(1, WIDTH, dtype=kind)).float().square().mean())
        engine.set_schedule(1e-4, 0.0)
        engine.apply()
        world.barrier()
        began = time.perf_counter()
        keeper.save(State(step=step))
        world.barrier()
        standing = time.perf_counter() - began
        if hasattr(keeper, "finish"):
            keeper.finish()
        world.barrier()
        seen.append((standing, time.perf_counter() - began))
    if world.first:
        newest = keeper.checkpoints.saved()[0]
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        (Path(folder) / "result.json").write_text(json.dumps({"seen": seen, "bytes": size, "torch": torch.__version__}))
    worlds.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=float, default=86.0, help="parameters, in millions (86: ViT-B, 22: ViT-S)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            multiprocessing.get_context("spawn").Process(
                target=measure, args=(rank, port, folder, options.million, options.precision, options.times)
            )
            for rank in range(RANKS)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        found = json.loads((Path(folder) / "result.json").read_text())
    standing, published = (statistics.median(times) for times in zip(*found["seen"], strict=True))
    print(
        f"{options.million:.0f} M parameters, {options.precision}, {RANKS} ranks, torch {found['torch']}: "
        f"{found['bytes'] / 1e9:.2f} GB, standing {standing:.2f} s, published after {published:.2f} s"
    )


if __name__ == "__main__":
    main()
