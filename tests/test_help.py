"""Help answers at once: what takes long to import comes when it is needed. Modules are counted, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gamut.commands import COMMANDS, ROOT

# Loading one of these takes as long as all the rest, or is only done to work.
HEAVY = {"torch", "torchaudio", "deepspeed", "transformers", "mlflow", "matplotlib", "sklearn", "scipy", "pandas"}
HEAVY |= {"webdataset", "fairscale", "submitit", "boto3", "h5py"}
MOST = 600  # modules; torch alone is more than a thousand
SUBCOMMANDS = ["shards convert", "shards index", "shards verify", "shards stats", "shards show", "features extract"]
SUBCOMMANDS += ["features verify", "features info", "analyse layers", "analyse noise", "submit convert"]
SUBCOMMANDS += ["submit features", "runs list", "runs prune"]
LOADED = """
import json, sys
try:
    from launchers.console import main
    sys.argv = ["gamut", *sys.argv[1:]]
    main()
except SystemExit:
    pass
print("\\n" + json.dumps([name.partition(".")[0] for name in sys.modules]))
"""


@pytest.mark.parametrize("words", ["", *COMMANDS, *SUBCOMMANDS])
def test_help_loads_little(words: str) -> None:
    line = [sys.executable, "-c", LOADED, *words.split(), "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    told, _, loaded = done.stdout.rstrip().rpartition("\n")
    assert f"usage: gamut {words}".rstrip() in told, done.stderr
    assert "python -m gamut" not in told
    assert ".py" not in told.replace("setup.py", "")
    modules = json.loads(loaded)
    assert not HEAVY & {*modules}
    assert len(modules) < MOST


@pytest.mark.parametrize(
    "words",
    ["pretrain/run.py own", "launchers/doctor.py", "launchers/corpus.py x", "finetune/sweep.py", "-m gamut.tag x"],
)
def test_a_python_without_the_requirements_is_told_which_to_take(words: str) -> None:
    line = [sys.executable, "-S", *words.split()]  # without site-packages
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sys.executable} has no numpy, ")
    assert "source .venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr
