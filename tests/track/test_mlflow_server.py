"""A real MLflow server is slow, hangs, is killed, and its database locked, and the run is killed too: no step waits for
it, and afterwards it has every point once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gamut.track.__main__ import main
from gamut.track.metrics import History
from tests.track.test_mlflow import shown

pytestmark = pytest.mark.long

STALL = 1.0  # seconds that no step may take longer than the slowest one does without MLflow


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Proxy:
    """Hands on what it gets, each piece after `delay` seconds."""

    def __init__(self, port: int) -> None:
        self.port, self.delay = port, 0.0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self.listening.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                client.close()
                continue
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._hand_on, args=(source, target), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(1 << 16):
                time.sleep(self.delay)
                target.sendall(data)


@contextlib.contextmanager
def served(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    with open(folder / "server.log", "ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Run:
    """`tracked.py` in a process of its own."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        folder.mkdir(exist_ok=True)

    def start(self) -> subprocess.Popen:
        metrics = self.folder / "one" / "metrics.jsonl"
        first = int(History.read(metrics).settled) + 1 if metrics.exists() else 1
        script = Path(__file__).with_name("tracked.py")
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, str(script), str(self.folder), self.uri, str(first)], stdout=log, stderr=log
            )

    def times(self) -> list[float]:
        file = self.folder / "times"
        return [float(line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []

    def go_on(self, process: subprocess.Popen, steps: int, seconds: float = 0.0) -> None:
        """Wait for so many steps more, and so many seconds."""
        before, end = len(self.times()), time.monotonic() + 120.0
        time.sleep(seconds)
        while len(self.times()) < before + steps:
            assert process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)

    def finish(self, process: subprocess.Popen) -> None:
        (self.folder / "stop").touch()
        assert process.wait(180) == 0, (self.folder / "log").read_text()


def test_whatever_befalls_the_server_no_step_waits_and_every_point_is_there_once(tmp_path: Path) -> None:
    port = free_port()
    proxy = Proxy(port)
    without = Run(tmp_path / "without", "off")
    alone = without.start()
    run = Run(tmp_path / "run", proxy.uri)
    with served(tmp_path, port) as server:
        process = run.start()
        until = time.monotonic() + 120
        while not (run.folder / "one" / "mlflow.json").exists():
            assert time.monotonic() < until, (run.folder / "log").read_text()
            time.sleep(0.2)
        run.go_on(process, 100, 2.0)
        proxy.delay = 3.0
        run.go_on(process, 100, 8.0)
        proxy.delay = 0.0
        lock = sqlite3.connect(tmp_path / "server.db", timeout=60.0)
        lock.execute("BEGIN EXCLUSIVE")
        run.go_on(process, 100, 10.0)
        lock.rollback()
        lock.close()
        os.killpg(server.pid, signal.SIGSTOP)
        run.go_on(process, 100, 15.0)
        os.killpg(server.pid, signal.SIGCONT)
        run.go_on(process, 50, 1.0)
        process.kill()
        process.wait()
        process = run.start()
        run.go_on(process, 100, 5.0)
    run.go_on(process, 100, 8.0)  # the server is gone
    with served(tmp_path, port):
        without.finish(alone)
        run.finish(process)
        said = (run.folder / "log").read_text()
        assert "does not take metrics" in said
        assert main(["feed", str(run.folder / "one")]) == 0  # whatever the end had no patience for
        parent, children, points = shown(f"http://127.0.0.1:{port}")
    last = History.read(run.folder / "one" / "metrics.jsonl").series("loss")[0][-1]
    assert set(points) == {(key, step) for key in ("loss", "lr", "clips/s") for step in range(1, last + 1)}
    assert [child.info.status for child in children] == ["KILLED", "FINISHED"]
    assert parent.info.status == "FINISHED"
    slowest, usual = max(run.times()), max(without.times())
    print(f"{len(run.times())} steps, the slowest {slowest:.2f} s; without MLflow {usual:.2f} s")
    assert slowest < usual + STALL
