"""What a long run would die of: memory that grows with every new shape of a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHAPES = """
import re, torch
from pathlib import Path
from gamut.train.world import bound_kernel_caches

def resident() -> float:
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3

bound_kernel_caches()
torch.set_num_threads(1)
layer = torch.nn.Linear(192, 768, dtype=torch.bfloat16)
seen = []
for rows in range(1000, 1060):
    layer(torch.ones(rows, 192, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    seen.append(resident())
print(seen[-1] - seen[39])
"""


def test_new_shapes_in_bf16_on_the_cpu_do_not_grow_the_process() -> None:
    grown = subprocess.run(
        [sys.executable, "-c", SHAPES], stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name},
    ).stdout  # fmt: skip
    assert float(grown) < 20  # MB in 20 shapes; unbounded, 5.5 each where the CPU computes in bf16
