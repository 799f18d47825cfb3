"""A process must not outlive those that started it, and must not die for those that it may outlive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gamut.commands import ROOT
from gamut.processes import DEEPSPEED, LAUNCHER, Process, ancestors
from gamut.shards.__main__ import main as convert
from launchers.corpus import synthesise

LEAF = """
import sys, time
from gamut.processes import watch_ancestors
watch_ancestors(every=0.1)
print("ready", flush=True)
time.sleep(60)
"""
# Starts the next stage of the line and waits for it, as launchers do. {session} decides whether it is one job.
STAGE = """
import subprocess, sys
args = sys.argv[1:]
print("pid", __import__("os").getpid(), flush=True)
subprocess.run(args, start_new_session={session})
"""


def _start(*stages: str) -> tuple[subprocess.Popen, list[int], Process]:
    """(the outermost process, pids of the stages from the outside in, the leaf)."""
    command: list[str] = [sys.executable, "-c", LEAF]
    for stage in reversed(stages):
        command = [sys.executable, "-c", stage, *command]
    outer = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may themselves run under nohup
    )
    assert outer.stdout is not None
    pids = []
    for line in outer.stdout:
        if line.startswith("ready"):
            break
        pids.append(int(line.split()[1]))
    pid = pids[-1]
    while True:  # the last of the line that has no child
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            break
        pid = int(children[0])
    leaf = Process.of(pid)
    assert leaf is not None
    return outer, pids, leaf


def test_a_killed_launcher_takes_the_whole_line_along(gone) -> None:
    stage = STAGE.format(session=False)
    for kill in (0, 1):  # the launcher, whose child lives on, and the direct parent
        outer, pids, leaf = _start(stage, stage)
        assert leaf.alive()
        os.kill(pids[kill], signal.SIGKILL)  # `outer` is not waited for: a zombie counts as gone
        assert gone(leaf, 10)
        outer.kill()
        outer.wait()


def test_a_job_outlives_the_shell_it_was_started_from(gone) -> None:
    outer, pids, leaf = _start(STAGE.format(session=True), STAGE.format(session=False))
    os.kill(pids[0], signal.SIGKILL)  # like the login shell of a job under nohup: another process group
    outer.wait()
    assert not gone(leaf, 1.5)
    os.kill(pids[1], signal.SIGKILL)
    assert gone(leaf, 10)


def test_under_nohup_a_job_outlives_a_script_too(gone) -> None:
    """A shell without job control starts everything in its own process group."""
    under_nohup = STAGE.format(session=False).replace("args = sys.argv[1:]", "args = ['nohup', *sys.argv[1:]]")
    outer, pids, leaf = _start(under_nohup, STAGE.format(session=False))
    os.kill(pids[0], signal.SIGKILL)
    outer.wait()
    assert not gone(leaf, 1.5)
    os.kill(pids[1], signal.SIGKILL)
    assert gone(leaf, 10)


def test_the_line_can_be_given_its_top() -> None:
    parent = os.getppid()
    assert [process.pid for process in ancestors(parent)] == [parent]
    assert ancestors()[0].pid == parent
    assert all(process.alive() and process.pid > 1 for process in ancestors())


def test_a_process_is_more_than_its_pid(gone) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    process = Process.of(child.pid)
    assert process is not None
    assert process.alive()
    assert not Process(child.pid, process.started + 1).alive()  # another process that has the same pid
    child.kill()
    assert gone(process, 5)  # before it is waited for
    child.wait()
    assert not process.alive()


def test_a_rank_whose_launcher_ended_before_its_first_line_ends_at_once() -> None:
    """Its parent is the machine's first process by then, as that of a rank in a container may be from the beginning."""
    launcher = subprocess.Popen(["sleep", "60"])
    named = Process.of(launcher.pid)
    assert named is not None
    rank = "import time; from gamut.processes import watch_launcher; watch_launcher(); time.sleep(0.3); print('lives')"
    environment = os.environ | {"RANK": "0", LAUNCHER: f"{named.pid} {named.started}"}
    for ended in (False, True):
        if ended:
            launcher.kill()
            launcher.wait()
        done = subprocess.run(
            [sys.executable, "-c", rank], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == ((113, "") if ended else (0, "lives\n"))
        assert (f"its ancestor {named.pid} is gone" in done.stderr) == ended


@pytest.mark.parametrize("name", ["deepspeed.launcher.launch", "sh"])
def test_a_rank_of_deepspeed_without_its_launcher_above_ends_at_once(name: str) -> None:
    """DeepSpeed's own command says its number to nobody: it is found by its name, by whatever is between."""
    rank = "from gamut.processes import watch_launcher; watch_launcher(); print('lives')"
    environment = {key: value for key, value in os.environ.items() if key != LAUNCHER} | {"RANK": "0", DEEPSPEED: "0"}
    words = ["sh", "-c", 'sh -c \'"$@"; exit $?\' sh "$@"; exit $?', name, sys.executable, "-c", rank]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == ((113, "") if name == "sh" else (0, "lives\n")), done.stderr
    assert ("ancestor DeepSpeed's launcher is gone" in done.stderr) == (name == "sh")


@pytest.mark.parametrize(
    "words",
    [["tag", "/no", "x.wav"], ["embed", "/no", "x.wav", "--out", "x.npz"], ["serve", "/no"], ["pretrain", "esc10"]],
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(words: list[str], tmp_path: Path) -> None:
    """It is said before torch is imported, which reads it once."""
    code = """
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print(os.environ["OMP_WAIT_POLICY"], flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
from importlib import import_module
from gamut.commands import COMMANDS
import_module(COMMANDS[sys.argv[1]][0]).main(sys.argv[2:])
"""
    (tmp_path / "x.wav").write_bytes(b"no sound")
    more = ["--port", "0"] if words[0] == "serve" else []
    if words[0] == "pretrain":  # which opens the shards first
        synthesise(tmp_path / "corpus", 4, seconds=0.2)
        assert convert(["convert", "esc50", str(tmp_path / "corpus"), str(tmp_path / "set"), "--workers", "1"]) == 0
        more = [f"data={tmp_path / 'set'}"]
    for environment, told in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        bare = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | environment
        done = subprocess.run(
            [sys.executable, "-c", code, *words, *more], cwd=tmp_path, text=True, capture_output=True, check=False,
            env=bare | {"PYTHONPATH": str(ROOT)}, timeout=120,
        )  # fmt: skip
        assert done.stdout.split() == [told], done.stderr
