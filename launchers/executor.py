"""The SLURM executor that every submission uses."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from submitit.core.utils import CommandFunction, DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmExecutor

from gamut.commands import IN_CLONE, ROOT
from gamut.errors import RunError
from gamut.runs.slurm import SCRIPT
from launchers.cluster import Cluster, minutes


class Executor(SlurmExecutor):
    """submitit's executor, which can also show its script where there is no SLURM.

    failures: how often the job goes back to the queue after a failure of machines; None: its script only runs the
    ranks, and a failure is left to whoever submitted them.
    """

    failures: int | None = None

    @classmethod
    def affinity(cls) -> int:
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m launchers.task {shlex.quote(str(self.folder))}"

    def script(self, jobs: int | None = None) -> str:
        """The text that `submit` hands to sbatch; jobs: of an array."""
        if jobs is not None:
            self.parameters["map_count"] = jobs
        return self._make_submission_file_text(self._submitit_command_str, "")

    def follow(self, job: str) -> None:
        """Have what is submitted next wait until `job` has ended well; SLURM cancels it once that cannot be."""
        more = {**self.parameters.get("additional_parameters", {}), "kill-on-invalid-dep": "yes"}
        self.update_parameters(dependency=f"afterok:{job}", additional_parameters=more)

    def submit_apart(self, jobs: Sequence[Callable[[], int]], places: Sequence[Path]) -> str:
        """Submit an array whose jobs write into folders of their own, and return its number.

        places: the folders; `self.folder` names them by `%a`, a job's number in the array. submitit's own arrays write
        into one folder.
        """
        file = JobPaths.get_first_id_independent_folder(self.folder) / "submission.sh"
        file.write_text(self.script(len(jobs)))
        number = self._get_job_id_from_submission_command(
            CommandFunction(self._make_submission_command(file), verbose=False)()
        )
        for index, (job, place) in enumerate(zip(jobs, places, strict=True)):
            delayed = DelayedSubmission(job)
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            shutil.copyfile(file, place / f"{number}_{index}{SCRIPT}")
            delayed.dump(place / f"{number}_{index}_submitted.pkl")  # the job waits for it
        return number

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        text = super()._make_submission_file_text(command, uid)
        if self.failures is None:
            return text
        words = [*shlex.split(self.python), "-u", "-m", "launchers.batch", str(self.folder), str(self.failures)]
        return text.replace("\nsrun ", f"\nexec {shlex.join(words)} \\\nsrun ", 1)


def require_sbatch() -> None:
    """Raise RunError where there is no SLURM to submit to."""
    if shutil.which("sbatch") is None:
        raise RunError("There is no sbatch on this machine: submit from a login node of the cluster, or use --local.")


def executor_in(folder: Path, name: str, cluster: Cluster) -> Executor:
    """An executor of jobs called `name` that writes into `folder` and requests what `cluster` says."""
    made = Executor(folder=folder, max_num_timeout=100)  # a requeued job resumes where it stopped, any number of times
    environment = {**_path(), **cluster.environment}
    made.update_parameters(
        job_name=name,
        nodes=cluster.nodes,
        ntasks_per_node=cluster.tasks_per_node,
        gpus_per_node=cluster.gpus or None,
        cpus_per_task=cluster.cpus_per_task,
        mem=None if cluster.memory_gb is None else f"{cluster.memory_gb}GB",
        time=minutes(cluster.time),
        partition=cluster.partition,
        account=cluster.account,
        qos=cluster.qos,
        constraint=cluster.constraint,
        exclusive=cluster.exclusive or None,
        signal_delay_s=cluster.signal_seconds,
        stderr_to_stdout=True,
        wckey=None,
        setup=[*cluster.setup, *(f"export {key}={shlex.quote(value)}" for key, value in environment.items())],
        additional_parameters={"requeue": True},
        # srun does not take --cpus-per-task from sbatch; one dead rank ends the job, as the others wait for it
        srun_args=[f"--cpus-per-task={cluster.cpus_per_task}", "--kill-on-bad-exit=1"],
    )
    return made


def _path() -> dict[str, str]:
    """PYTHONPATH for the jobs: the clone, if that is what runs, and the user's own entries (plugins)."""
    theirs = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    places = dict.fromkeys([str(ROOT), *theirs] if IN_CLONE else theirs)
    return {"PYTHONPATH": os.pathsep.join(places)} if places else {}
