"""A `python` that starts in no time: forked from a process that has torch, DeepSpeed and our modules imported.

Most of what a short test of a command takes is importing. `python()` is the path of a program for `subprocess` to run
in place of `sys.executable`; what it runs has the arguments, environment, folder and streams that it was given, and its
status. What must be seen to start from nothing, to be killed, or to have its launcher above it, takes the real one.
"""

from __future__ import annotations

import array
import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
IMPORTS = (
    "gamut.train.unused",  # before DeepSpeed
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # which DeepSpeed imports when it makes an optimiser
    "soundfile",
    "webdataset",
    "matplotlib.figure",
    "gamut.audio.logmel",
    "gamut.embed.load",
    "gamut.features.extract",
    "gamut.probe.command",
    "gamut.shards.convert.run",
    "gamut.train.loop",
    "gamut.train.zero",
    "finetune.work",
    "pretrain.work",
)
LONGEST = 1 << 20  # bytes of a request
# In the environment: what is run starts its own commands so, too. Not those that must be its children, as probes are.
INSIDE = "WARM_INSIDE"
# Read when torch or DeepSpeed is imported: a request that says otherwise gets a Python of its own.
FIXED = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PROGRAM = """#!{python} -ISu
import array, json, os, socket, sys
asked = json.dumps(dict(words=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    server.sendall(asked)
    status = server.recv(1)
os._exit(status[0] if status else 70)
"""


@functools.cache
def python() -> str:
    """The path of the program; its server is begun at the first call and ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address, program = Path(folder.name, "socket"), Path(folder.name, "python")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(address)],
        cwd=ROOT, env=os.environ | FIXED, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdin is not None
    assert server.stdout.readline() == b"ready\n"
    for tool in Path(sys.executable).parent.iterdir():  # what is looked for beside a Python: ninja, deepspeed
        if not tool.name.startswith("python"):
            Path(folder.name, tool.name).symlink_to(tool)
    program.write_text(PROGRAM.format(python=sys.executable, address=str(address)))
    program.chmod(0o700)

    def end() -> None:
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return str(program)


def serve(address: str) -> None:
    """Fork for every connection, until standard input closes."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # else every collection walks through all that, and copies its pages
    gc.unfreeze = lambda: None
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            child = os.fork()
            if child == 0:
                listening.close()
                _answer(connection, str(Path(address).with_name("python")))
            connection.close()
            os.waitpid(child, 0)


def _answer(connection: socket.socket, program: str) -> NoReturn:
    """In a child that ends at once: run what is asked in a child of that, which ends with the asker."""
    if os.fork():
        os._exit(0)
    header, parts, *_ = connection.recvmsg(4, socket.CMSG_SPACE(12))
    streams = array.array("i", parts[0][2])
    asked = b""
    while len(asked) < int.from_bytes(header, "big"):
        asked += connection.recv(LONGEST)
    child = os.fork()
    if child == 0:
        connection.close()
        for stream, own in enumerate(streams):
            os.dup2(own, stream)
            os.close(own)
        _run(program, **json.loads(asked))
    for own in streams:
        os.close(own)
    os.closerange(0, 3)

    def watch() -> None:
        if not connection.recv(1):  # the asker has been killed
            os.kill(child, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _run(program: str, words: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    words = words[words[:1] == ["-u"] :]
    kind = words[0] if words else ""
    of_its_own = any(environment.get(name, value) != value for name, value in FIXED.items())
    if of_its_own or (kind != "-m" and not kind.endswith(".py")):
        os.execv(sys.executable, [sys.executable, *words])  # noqa: S606
    if INSIDE in environment:
        sys.executable = program
    end_with(lambda: _as_python(words))


def end_with(work: Callable[[], int | None]) -> NoReturn:
    """Do the work of a forked child and end the process as a Python of its own would have ended."""
    status: Any = 1
    try:
        status = int(work() or 0)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _as_python(words: list[str]) -> None:
    """What `python WORDS` does, of a script or a module, with the paths that it would have had."""
    paths = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    kind, *rest = words
    if kind == "-m":
        sys.path[0:1] = [os.getcwd(), *paths]
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0:1] = [str(Path(kind).resolve().parent), *paths]
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    # Not by sys.stdin, whose lock a child would inherit as it is held, and wait for as soon as it closes its own.
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
    serve(sys.argv[1])
