"""`loader.packs_per_forward` of a run: as many packs as fit, where it is auto and there are GPUs.

What fits is asked of a program of its own, for which there are none: an account changes how torch sees devices, and
must not in a process that trains.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from gamut.accelerator import CHOICE
from gamut.commands import ROOT
from gamut.estimate.rates import GIGA, SHEETS, TERA
from gamut.files import write_bytes
from gamut.recipe.resolved import resolved_yaml
from gamut.recipe.schema import AUTO, Recipe
from gamut.train.session import Forward
from gamut.train.world import World

PATIENCE = 600.0  # seconds


@dataclass(frozen=True)
class Fit:
    """`packs` of one forward, and the bytes of a GPU that are in use with them."""

    packs: int
    bytes: float
    room: float  # bytes that may be in use
    flops: float  # of a token in a step

    def said(self) -> str:
        used = f"{self.bytes / GIGA:,.1f} GB of the {self.room / GIGA:,.1f} that may be used"
        if self.bytes <= self.room:
            return f"loader.packs_per_forward: auto is {self.packs} ({used})"
        return (
            f"warning: by the account not even one pack fits in a forward ({used}). compute.activations=recompute "
            "needs less; so do smaller packs (step.clips, step.tokens), and ZeRO over more GPUs"
        )


def forward_of(recipe: Recipe, world: World) -> Forward:
    """`loader.packs_per_forward` of a run, the same on all ranks: where it is auto and they are on GPUs, what fits in
    the smallest of these, and then with what it costs. Every rank calls it; the first prints what it came to."""
    if recipe.loader.packs_per_forward != AUTO or (mine := memory_of(world.device)) is None:
        return Forward(recipe.loader.per_forward)
    memory = min(world.gather(mine))
    found = world.broadcast(_asked(recipe, world.size, memory) if world.first else None)
    if found is None:
        return Forward(1)
    return Forward(found.packs, found.flops / peak if (peak := peak_of(world.device)) else 0.0)


def peak_of(device: torch.device) -> float | None:
    """FLOP/s of a GPU in bf16, by its name; None for one whose data sheet is not known, and for a CPU."""
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    return next((sheet.half * TERA for known, sheet in SHEETS.items() if known in name), None)


def memory_of(device: torch.device) -> int | None:
    """Bytes that a GPU has; None of a CPU, whose memory is not this process's alone."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None


def _asked(recipe: Recipe, ranks: int, memory: float) -> Fit | None:
    """What the program says; None where it says nothing, which is printed with the reason."""
    print("loader.packs_per_forward: auto: looking for what fits ...", flush=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", CHOICE: "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        write_bytes(file, resolved_yaml(recipe).encode())
        words = [sys.executable, "-m", "gamut.estimate.fit", str(file), str(ranks), str(memory)]
        try:
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
            found = Fit(**json.loads(done.stdout))
        except (subprocess.TimeoutExpired, ValueError, TypeError) as error:
            reason = f"it took over {PATIENCE:g} s" if isinstance(error, subprocess.TimeoutExpired) else done.stderr
            print(
                "warning: loader.packs_per_forward: auto is 1, since there is no account of this recipe "
                f"({(reason.strip().splitlines() or ['it said nothing'])[-1][:300]}). Give it a number.",
                flush=True,
            )
            return None
    print(found.said(), flush=True)
    return found
