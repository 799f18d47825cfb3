"""A launcher of ranks that starts in no time: forked from this process, which has all imports done.

Standard input has a line of JSON a run: {"module", "argv", "ranks", "log"}; the answers are lines too, the launcher's
pid when it has begun and its status when it has ended. It does what DeepSpeed's does: as soon as a rank fails it ends
the others and fails.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from gamut.processes import name_launcher
from tests.warm import IMPORTS, end_with


def serve() -> None:
    for name in (*IMPORTS, "gamut.shards.__main__", "pretrain.run"):
        importlib.import_module(name)
    gc.freeze()  # else every collection walks through all that, and copies its pages
    gc.unfreeze = lambda: None
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            end_with(lambda wanted=wanted: launch(wanted))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def launch(wanted: dict[str, Any]) -> int:
    os.setsid()
    name_launcher()
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (0, 1, 2):
        os.dup2(log if stream else os.open(os.devnull, os.O_RDONLY), stream)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = wanted["ranks"]
    ranks = set()
    for rank in range(size):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if (child := os.fork()) == 0:
            end_with(lambda: importlib.import_module(wanted["module"]).main(wanted["argv"]))
        ranks.add(child)
    failed = 0
    while ranks:
        child, status = os.wait()
        ranks.discard(child)
        if status and not failed:
            failed = os.waitstatus_to_exitcode(status)
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return failed if failed >= 0 else 1


if __name__ == "__main__":
    serve()
