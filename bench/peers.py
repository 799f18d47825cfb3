"""Peers that run in processes of their own, some in environments of their own, in turn with ours.

    python bench/peers.py                 make all environments: of peers whose requirements clash with ours, and of
                                          those that bench/large.py has besides
    python bench/peers.py mosaic          only that one

An environment lies in bench/.peers/NAME and sees the one that makes it beneath it, so that torch is not installed
again. A peer's process (bench/peer.py) prepares its data once and then runs a round whenever it is told, so that peers
and ours can take turns; it says how much CPU time each round took.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = {
    "mosaic": ["mosaicml-streaming==0.13.0"],
    "energon": ["megatron-energon==7.4.1"],
    "lhotse": ["lhotse==1.33.0"],
    "litdata": ["litdata==0.2.76"],
}


@dataclass
class Round:
    """What a peer's round came to."""

    units: float  # clips or bytes
    seconds: float  # of CPU time, all threads


class Peer:
    """A peer's process. `work` names a function of bench/peer.py, `data` what it works on.

    >>> with Peer("kaldi_native_fbank", "clips.npy") as peer:      # doctest: +SKIP
    ...     peer.round().units / peer.round().seconds
    """

    def __init__(self, work: str, data: Path, environment: str | None = None) -> None:
        self.problem = ""
        python = HERE / ".peers" / environment / "bin" / "python" if environment else Path(sys.executable)
        if not python.exists():
            self.problem = f"not installed: python bench/peers.py {environment}"
            return
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (not a pipe, which would fill up and stop the peer)
        self._process = subprocess.Popen(
            [str(python), str(HERE / "peer.py"), work, str(data)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | threads,
        )  # fmt: skip
        self._answer()  # it is ready, or says why not

    def round(self) -> Round | None:
        """Run a round; None where the peer does not work here, `problem` says why."""
        if self.problem:
            return None
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Round(**answer) if answer else None

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()
        errors = re.findall(r"^\S*(?:Error|Exception): .*", said, re.MULTILINE)
        self.problem = errors[-1][:150] if errors else f"it ended with status {self._process.wait()}"
        return {}

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.wait()


def install(name: str) -> None:
    """Make the environment of a peer."""
    folder = HERE / ".peers" / name
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "beneath.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, *ENVIRONMENTS[name]], check=True)
    print(f"{name}: {folder}")


def main() -> None:
    names = sys.argv[1:] or list(ENVIRONMENTS)
    unknown = [name for name in names if name not in ENVIRONMENTS]
    if unknown:
        raise SystemExit(f"There is no peer {unknown[0]}; there are {', '.join(ENVIRONMENTS)}.\n{__doc__}")
    for name in names:
        install(name)


if __name__ == "__main__":
    main()
