"""Two ranks on this machine: whether they connect and compute a correct sum."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from gamut import accelerator
from gamut.commands import ROOT
from gamut.errors import RunError
from launchers.health import BROKEN, WARNING, Check

_SECONDS = 120.0
MEBIBYTES = 32  # what is reduced to find a rate


def look() -> list[Check]:
    """The name and the ports of this machine, and an all-reduce of two ranks over gloo, or NCCL where there are two
    GPUs."""
    return [_name(), _meet()]


def _name() -> Check:
    name = socket.gethostname()
    remedy = "Put it into /etc/hosts with the address that other nodes reach it by."
    try:
        addresses = sorted({entry[4][0] for entry in socket.getaddrinfo(name, None, socket.AF_INET)})
    except OSError as error:
        return Check("host name", WARNING, f"{name} has no address: {error}", remedy)
    loop = shutil.which("sbatch") is not None and all(str(address).startswith("127.") for address in addresses)
    return Check.of(
        "host name", f"{name}, {addresses[0]}", f"{name} is {addresses[0]} to itself" if loop else None, remedy, WARNING
    )


def _meet() -> Check:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = "nccl" if _gpus() >= 2 else "gloo"
    name = f"all-reduce, 2 ranks, {backend}"
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "launchers.health.ranks", backend]
    ranks: list[subprocess.Popen[str]] = []
    for number in range(2):
        place = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = os.environ | place | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    end = time.monotonic() + _SECONDS
    said = []
    try:
        for rank in ranks:
            out, complaint = rank.communicate(timeout=max(0.1, end - time.monotonic()))
            if rank.returncode:
                last = (complaint.strip().splitlines() or [f"ended with {rank.returncode}"])[-1]
                return Check(name, BROKEN, last[:200], _remedy(backend))
            said.append(out.strip())
    except subprocess.TimeoutExpired:
        return Check(name, BROKEN, f"no end after {_SECONDS:g} s", _remedy(backend))
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return Check.of(name, said[0], None, "")


def _remedy(backend: str) -> str:
    more = "NCCL_DEBUG=INFO shows where it stops; NCCL_SOCKET_IFNAME sets the interface." if backend == "nccl" else ""
    return f"Check firewalls between processes, and the interface in GLOO_SOCKET_IFNAME. {more}".strip()


def _gpus() -> int:
    import torch

    try:
        return torch.cuda.device_count() if accelerator.accelerator() == "cuda" else 0
    except RunError:
        return 0


def _rank(backend: str) -> None:
    """One of the two: sums that must be exact, then a rate."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    dist.init_process_group(backend, timeout=timedelta(seconds=_SECONDS / 2))
    rank = dist.get_rank()
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    values = torch.full((MEBIBYTES * 2**18,), float(rank + 1), device=device)
    dist.all_reduce(values)  # sums, and opens the connections
    if not bool((values == 3).all()):
        raise SystemExit("the sum is wrong")
    since = time.perf_counter()
    dist.all_reduce(values)
    float(values[0])  # waits for a GPU
    taken = time.perf_counter() - since
    print(f"exact, {values.numel() * 4 / taken / 1e9:.1f} GB/s" if rank == 0 else "")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    _rank(sys.argv[1])
