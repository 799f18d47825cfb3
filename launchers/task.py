"""What srun starts in every task: submitit, with a reader of pickles that finds our jobs and nothing else.

Where a pickle is read it may call whatever it names. Those of our jobs name two classes with a path (`launchers.job`,
`launchers.arrays`), and any that names more has been tampered with.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from submitit.core import utils
from submitit.core.submission import submitit_main

from gamut.errors import RunError

FOUND = (("submitit.core.utils", "DelayedSubmission"), ("launchers.job", "Job"), ("launchers.arrays", "Share"))


class _OurJobs(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in FOUND:
            raise RunError(f"it names {module}.{name}, which is none of ours")
        return super().find_class(module, name)


def read_job(path: str | Path) -> Any:
    """What `Executor.submit` wrote. Raises RunError where it is something else, or another user can have written it."""
    for place in (Path(path), Path(path).parent):
        about = place.stat()
        if about.st_uid != os.geteuid() or about.st_mode & 0o002:
            raise RunError(f"{place} belongs to another user, or others may write into it: nothing in it is run.")
    try:
        with open(path, "rb") as file:
            return _OurJobs(file).load()
    except Exception as error:  # a pickle that is damaged raises almost anything
        raise RunError(f"{path} is no job of ours and is not run ({error}). Submit it again.") from error


if __name__ == "__main__":
    utils.pickle_load = read_job  # type: ignore[assignment]
    submitit_main()
