"""Promises broken one by one, in a copy of this repository: the test beside each must fail. `python -m tests.promises`.

A line is (file, what stands there, what takes its place, the tests that must notice). One that nobody notices, or that
does not fit the source any more, is an error. A whole pass takes some minutes of a core; words behind it choose files.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MUTATIONS = [
    ("gamut/files.py", "                os.fsync(file.fileno())\n", "", "tests/test_files.py"),
    ("gamut/files.py", "        os.fsync(descriptor)\n", "        pass\n", "tests/test_files.py"),
    ("gamut/files.py", "            sync(path.parent)\n", "", "tests/test_files.py"),
    ("gamut/files.py", "    sync(source)\n    hook", "    hook", "tests/test_files.py"),
    ("gamut/files.py", "    sync(target.parent)\n", "", "tests/test_files.py"),
    ("gamut/files.py", "temporary.unlink(missing_ok=True)", "pass", "tests/test_files.py"),
    ("gamut/files.py", "fcntl.LOCK_SH if shared else fcntl.LOCK_EX", "fcntl.LOCK_SH", "tests/test_files.py"),
    ("gamut/files.py", "            take(descriptor, fcntl.LOCK_UN)\n", "            pass\n", "tests/test_files.py"),
    ("gamut/track/tracker.py", "        self._file.sync()\n", "", "tests/track/test_metrics.py"),
    ("gamut/track/metrics.py", "        self._cut_torn_line()\n", "", "tests/track/test_metrics.py"),
    (
        "gamut/track/metrics.py",
        "            os.ftruncate(self._descriptor, size)",
        "            pass",
        "tests/track/test_metrics.py",
    ),
    (
        "gamut/train/holes.py",
        "            os.truncate(self.path, end)\n",
        "            pass\n",
        "tests/train/test_holes.py",
    ),
    ("gamut/train/holes.py", "self.this_epoch > self.share", "self.total > self.share", "tests/train/test_holes.py"),
    ("gamut/train/holes.py", "line.step > step or", "line.step >= step or", "tests/train/test_holes.py"),
    ("gamut/train/holes.py", "if line.epoch == state.epoch]", "]", "tests/train/test_holes.py"),
    (
        "gamut/track/checkpoints.py",
        "    if hashlib.sha256(data).hexdigest() != entry",
        "    if False and entry",
        "tests/train/test_checkpoint.py::test_any_damage_to_any_file_is_caught_and_the_one_before_is_taken",
    ),
    (
        "gamut/track/checkpoints.py",
        "key=step_of, reverse=True",
        "key=step_of",
        "tests/train/test_checkpoint.py::test_any_damage_to_any_file_is_caught_and_the_one_before_is_taken",
    ),
    (
        "gamut/train/restore.py",
        "            set_aside(bad)\n",
        "            pass\n",
        "tests/train/test_checkpoint.py::test_any_damage_to_any_file_is_caught_and_the_one_before_is_taken",
    ),
    (
        "gamut/train/restore.py",
        '    torch.set_rng_state(randomness["cpu"])\n',
        "",
        "tests/train/test_resume.py::test_a_resumed_run_draws_what_it_would_have_drawn",
    ),
    (
        "gamut/train/checkpoint.py",
        "        if left >= size:\n",
        "        if True:\n",
        "tests/train/test_checkpoint.py::test_a_disk_that_fills_in_mid_run",
    ),
    (
        "gamut/preemption.py",
        "        if self._depth:\n            return\n",
        "",
        "tests/finetune/test_preempted.py",
    ),
    (
        "gamut/train/loop.py",
        "Asks(self.session.preemption.asked,",
        "Asks(False,",
        "tests/train/test_guards.py::test_a_signal_on_one_rank_saves_on_all",
    ),
    ("finetune/evaluation.py", "if PREEMPTION.asked:", "if False:", "tests/finetune/test_preempted.py"),
    (
        "finetune/work.py",
        "any(world.gather(PREEMPTION.asked))",
        "any(world.gather(False))",
        "tests/finetune/test_preempted.py",
    ),
    (
        "gamut/track/feed.py",
        "        if doubted:\n            for key",
        "        if False:\n            for key",
        "tests/track/test_mlflow.py::test_cut_off_at_every_call",
    ),
    (
        "gamut/track/feed.py",
        "            marks.doubt()\n",
        "",
        "tests/track/test_mlflow.py::test_cut_off_at_every_call",
    ),
    (
        "gamut/track/feed.py",
        "if marks.steps.get(key, -1) < step <= settled",
        "if marks.steps.get(key, -1) < step",
        "tests/track",
    ),
    (
        "gamut/processes.py",
        "        _end_without(launcher.pid, 113)",
        "        pass",
        "tests/test_processes.py::test_a_rank_whose_launcher_ended_before_its_first_line_ends_at_once",
    ),
    (
        "gamut/processes.py",
        "    watch_ancestors()\n    launcher",
        "    launcher",
        "tests/launchers/test_orphans.py::test_a_launcher_killed_while_its_ranks_still_import",
    ),
    (
        "gamut/data/loader.py",
        "    signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n",
        "",
        "tests/data/test_loader_faults.py::test_workers_leave_signals_to_their_rank",
    ),
    (
        "gamut/data/loader.py",
        "    watch_ancestors(parent=parent)\n",
        "",
        "tests/data/test_loader_faults.py::test_workers_do_not_outlive_a_killed_rank",
    ),
    (
        "gamut/train/session.py",
        "        if not held:\n",
        "        if False:\n",
        "tests/train/test_guards.py::test_a_run_folder_has_one_writer",
    ),
    (
        "launchers/batch.py",
        "signal.signal(number, signal.SIG_IGN)",
        "pass",
        "tests/launchers/test_batch.py::test_what_is_asked_of_slurm_outlives_the_signal_of_a_requeue",
    ),
]


def survives(copy: Path, file: str, old: str, new: str, tests: str) -> bool:
    """Whether the tests pass although `old` stands no more in `file`."""
    path = copy / file
    text = path.read_text()
    if text.count(old) != 1:
        sys.exit(f"{file} has {text.count(old)} times {old!r}")
    path.write_text(text.replace(old, new))
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", tests], cwd=copy, capture_output=True, text=True)
    path.write_text(text)
    if done.returncode not in (0, 1):
        sys.exit(f"{tests} did not run: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.returncode == 0


def main() -> int:
    chosen = [line for line in MUTATIONS if any(word in line[0] for word in sys.argv[1:] or [""])]
    with tempfile.TemporaryDirectory(prefix="gamut-mutations-") as folder:
        copy = Path(folder) / "copy"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(copy), "HEAD"], cwd=ROOT, check=True)
        try:
            alive = 0
            for file, old, new, tests in chosen:
                lives = survives(copy, file, old, new, tests)
                alive += lives
                print(
                    "SURVIVES" if lives else "noticed",
                    file,
                    repr(old.strip()),
                    "->",
                    repr(new.strip()),
                    tests,
                    flush=True,
                )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(copy)], cwd=ROOT, check=True)
    return min(alive, 1)


if __name__ == "__main__":
    sys.exit(main())
