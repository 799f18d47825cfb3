"""Promises broken one by one, in a copy of this repository: the test beside each must fail. `python -m tests.promises`.

A line is (file, what stands there, what takes its place, the tests that must notice). One that nobody notices, or that
does not fit the source any more, is an error. A whole pass takes some minutes of a core.
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
    with tempfile.TemporaryDirectory(prefix="gamut-mutations-") as folder:
        copy = Path(folder) / "copy"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(copy), "HEAD"], cwd=ROOT, check=True)
        try:
            alive = 0
            for file, old, new, tests in MUTATIONS:
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
