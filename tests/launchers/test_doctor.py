"""What is wrong with a machine or a cluster is seen, each by a fault put there."""

from __future__ import annotations

import errno
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gamut.commands import command
from launchers import doctor
from launchers.cluster import Cluster
from launchers.health import BROKEN, FINE, WARNING, Check, machine, places, ranks, slurm

if TYPE_CHECKING:
    from conftest import Slurm


def named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_this_machine_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--runs", str(tmp_path), "--data", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name in ("Python", "libraries", "driver", "runs, locks", "all-reduce, 2 ranks"):
        assert f"\nfine    {name}" in f"\n{said}"
    assert " 0 broken" in said
    assert not [*tmp_path.iterdir()]


def test_what_is_broken_is_said_with_its_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--runs", str(tmp_path), "--mlflow", "off", "--cluster", _cluster(tmp_path, "nowhere")]) == 1
    said = capsys.readouterr().out
    assert "broken  " in said
    assert "-> " in said


def test_a_cluster_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(doctor.main)(["--cluster", "nosuch"]) == 2
    assert "There is no cluster file" in capsys.readouterr().err


def test_libraries_that_are_missing_or_other(monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine.pins()
    monkeypatch.setattr(machine, "pins", lambda: there | {"numpy": "1.0"})
    check = machine._libraries()
    assert (check.state, check.remedy != "") == (WARNING, True)
    assert "(1.0)" in check.found
    monkeypatch.setattr(machine, "pins", lambda: there | {"no-such-library": "1.0"})
    check = machine._libraries()
    assert check.state == BROKEN
    assert "no-such-library" in check.found


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = machine._compilers()
    assert (check.state, check.found) == (BROKEN, "no g++")
    assert machine._ffmpeg().state == WARNING


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places.os, "fsync", fsync)
    check = named(places.look(tmp_path, tmp_path, "off"), "runs, writing")
    assert check.state == BROKEN
    assert "No space left on device" in check.found


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)  # root may write anywhere
    assert named(places.look(tmp_path, tmp_path, "off"), "runs").state == BROKEN


def test_locks_that_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(places.look(tmp_path, tmp_path, "off"), "runs, locks").state == FINE
    monkeypatch.setattr(places, "LOCKED", "pass")  # as on a file system that grants every lock
    assert named(places.look(tmp_path, tmp_path, "off"), "runs, locks").state == BROKEN


def test_shards_are_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "000000.tar").write_bytes(bytes(2**20))
    assert "MB/s by one reader" in named(places.look(tmp_path, tmp_path, "off"), "data, reading").found


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response_only(200 if self.path == "/health" else 404)
        self.send_header("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()


def test_mlflow_on_a_server_with_another_clock(tmp_path: Path, server: str) -> None:
    checks = places.look(tmp_path, tmp_path, server)
    assert named(checks, "MLflow").state == FINE
    clock = named(checks, "clock of MLflow's server")
    assert clock.state == WARNING
    assert "s behind" in clock.found


def test_mlflow_that_is_not_there(tmp_path: Path) -> None:
    check = named(places.look(tmp_path, tmp_path, "http://user:secret@127.0.0.1:9"), "MLflow")
    assert check.state == WARNING
    assert "secret" not in check.found


def test_mlflow_in_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 1000)
    assert named(places.look(tmp_path, tmp_path, "auto"), "MLflow").state == BROKEN


def test_ranks_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothere")
    check = ranks._meet()
    assert check.state == BROKEN
    assert "nothere" in check.found


def _cluster(folder: Path, partition: str) -> str:
    file = folder / "cluster.yaml"
    file.write_text(f"gpus: 0\npartition: {partition}\n")
    return str(file)


@pytest.mark.slurm
def test_a_real_slurm(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    checks = slurm_of(Cluster(gpus=0, partition="low"))
    assert [check.state for check in checks] == [FINE] * len(checks)
    assert named(checks, "SLURM, lost nodes").found == "SlurmdTimeout=30"
    assert named(checks, "SLURM, preemption").found == "PreemptMode=REQUEUE, warned 60 s ahead"
    nosuch = named(slurm_of(Cluster(gpus=0, partition="nosuch")), "partition")
    assert nosuch.remedy == "Name one of these: low, high, spare."
    fits = named(slurm_of(Cluster(gpus=8, nodes=3, partition="low")), "partition low")
    assert fits.state == BROKEN
    assert "3 nodes are requested, it has 2" in fits.found
    assert "no node has any" in fits.found
    assert "not preempted" in named(slurm_of(Cluster(gpus=0, partition="high")), "SLURM, preemption").found


def slurm_of(cluster: Cluster) -> list[Check]:
    return slurm.look(cluster, "mine")


SCONTROL = """#!/bin/sh
case "$2" in
config) cat <<END
JobRequeue              = {requeue}
KillWait                = {wait} sec
PreemptMode             = {mode}
PreemptType             = preempt/partition_prio
SlurmctldParameters     = {parameters}
SlurmdTimeout           = {lost} sec
END
;;
partition)
  printf "PartitionName=gpu Default=YES GraceTime={grace} MaxTime=1-00:00:00 State=UP TotalNodes=4 "
  printf "PreemptMode={mode} TRES=cpu=64,node=4,gres/gpu=16\\n" ;;
esac
"""
GOOD = {"requeue": "1", "wait": "30", "mode": "REQUEUE", "parameters": "preempt_send_user_signal", "lost": "60"}
GOOD |= {"grace": "90"}


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("SLURM, requeue", {"requeue": "0"}, "JobRequeue=0"),
        ("SLURM, lost nodes", {"lost": "300"}, "SlurmdTimeout=300"),
        ("SLURM, lost nodes", {"lost": "0"}, "never noticed"),
        ("SLURM, preemption", {"parameters": "(null)"}, "not warned"),
        ("SLURM, preemption", {"grace": "0"}, "GraceTime=0"),
        ("SLURM, preemption", {"mode": "CANCEL"}, "does not go back"),
    ],
)
def test_settings_that_lose_work(
    name: str, fault: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _fake(tmp_path, GOOD)
    assert {check.state for check in slurm_of(Cluster(gpus=4, nodes=4))} == {FINE}
    _fake(tmp_path, GOOD | fault)
    check = named(slurm_of(Cluster(gpus=4, nodes=4)), name)
    assert check.state == WARNING
    assert words in check.found
    assert check.remedy


def test_a_job_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _fake(tmp_path, GOOD)
    check = named(slurm_of(Cluster(gpus=8, nodes=4, time="2-00:00:00")), "partition gpu")
    assert check.state == BROKEN
    assert "32 GPUs are requested, it has 16" in check.found
    assert "2-00:00:00 is requested, 1-00:00:00 is the limit" in check.found


def test_no_controller_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _program(tmp_path / "sbatch", "#!/bin/sh\necho slurm 24.05\n")
    _program(tmp_path / "scontrol", "#!/bin/sh\nexit 1\n")
    assert slurm.look(Cluster(), "mine")[0].state == BROKEN
    assert slurm.look(Cluster(), None)[0].state == WARNING


def test_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *words, **more: None)
    assert slurm.look(Cluster(), None)[0].state == FINE
    assert slurm.look(Cluster(), "mine")[0].state == BROKEN


def _fake(folder: Path, settings: dict[str, str]) -> None:
    _program(folder / "sbatch", "#!/bin/sh\necho slurm 24.05\n")
    _program(folder / "scontrol", SCONTROL.format(**settings))


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
