"""What the machinery costs a step, in calls: seconds differ from machine to machine, calls do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gamut.commands import ROOT

# A head of a hundred parameters is trained in a process of its own; from the third epoch on its calls are counted.
COUNTED = """
import faulthandler, json, os, sys
from collections import Counter
from pathlib import Path
import numpy as np

from bench.machinery import SMALL, make
words = make(Path(sys.argv[1]), SMALL)
words += ["epochs=5", "finetune.average_from=2", "finetune.evaluate_epochs=5", "track.mlflow=off"]
from gamut.train import loop
plain, counted, steps = loop._Training._steps, Counter(), 0

def note(frame, event, argument):
    if event == "call":
        counted["calls"] += 1
    elif event == "c_call":
        counted["calls"] += 1
        counted[argument.__name__] += 1

def some(training, epoch):
    global steps
    if epoch.number < 2:
        return plain(training, epoch)
    steps += epoch.steps
    sys.setprofile(note)
    try:
        return plain(training, epoch)
    finally:
        sys.setprofile(None)

loop._Training._steps = some
from finetune.run import main
assert main(words) == 0
names = ("calls", "fsync", "write", "allreduce", "dump_traceback_later", "__array_finalize__", "fork")
loaded = [name for name in sys.argv[2:] if sys.modules.get(name)]
print("\\n" + json.dumps([{name: counted[name] / steps for name in names}, loaded]))
"""
UNUSED = [
    "mlflow",
    "torch._inductor.compile_fx",
    "sklearn",
    "transformers",
    "torchaudio",
    "fairscale",
    "boto3",
    "pandas",
]


def test_a_step_without_arithmetic_is_few_calls_and_a_run_loads_what_it_uses(tmp_path: Path) -> None:
    line = [sys.executable, "-c", COUNTED, str(tmp_path), *UNUSED]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert not done.returncode, done.stderr
    counted, loaded = json.loads(done.stdout.rpartition("\n\n")[2])
    assert counted["calls"] < 4050  # of Python and of C, a good third of them DeepSpeed's; there have been 4,500
    assert counted["allreduce"] <= 3  # DeepSpeed's own; ours need none in a world of one
    assert counted["write"] <= 3  # a line of metrics, one shown
    assert counted["fsync"] < 0.5
    assert counted["dump_traceback_later"] < 0.5  # each starts a thread
    assert not loaded
