"""SLURM: whether a cluster file's job fits, and is warned, requeued and declared lost in time."""

from __future__ import annotations

import re
import shutil

from gamut.runs.slurm import says
from launchers.cluster import Cluster, minutes
from launchers.health import BROKEN, FINE, WARNING, Check

LOST = 120  # seconds after which a silent node should count as lost; SLURM's default is 300


def look(cluster: Cluster, name: str | None) -> list[Check]:
    """SLURM's settings compared with `cluster`; name: of its file, None for the defaults."""
    if shutil.which("sbatch") is None:
        if name is None:
            return [Check("SLURM", FINE, "not here: runs start with --local, deepspeed or torchrun")]
        return [Check("SLURM", BROKEN, "no sbatch on PATH", "Submit from a login node of the cluster.")]
    version = says("sbatch", "--version").stdout.strip()
    settings = facts(says("scontrol", "show", "config").stdout)
    if not settings:
        remedy = "`scontrol ping` shows which controller does not answer. Outside a cluster this does not matter."
        state = WARNING if name is None else BROKEN
        return [Check("SLURM", state, f"{version or 'sbatch'} is here, but no controller answers scontrol", remedy)]
    checks = [Check("SLURM", FINE, version), _requeue(settings), _lost(settings), _kill_wait(settings, cluster)]
    partition = _partition(cluster)
    if isinstance(partition, Check):
        return [*checks, partition]
    return [*checks, _fits(partition, cluster), _preemption(settings, partition, cluster)]


def facts(text: str) -> dict[str, str]:
    """What scontrol prints, `Name = value` a line or `Name=value` words: name -> value."""
    if " = " in text:
        pairs = [line.partition(" = ") for line in text.splitlines()]
        return {name.strip(): value.strip() for name, equals, value in pairs if equals}
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def seconds(text: str) -> int:
    """`30 sec`, `30`: 30. UNLIMITED: a year and more. Anything else: 0."""
    if text.upper().startswith(("UNLIMITED", "INFINITE")):
        return 10**9
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _requeue(settings: dict[str, str]) -> Check:
    off = settings.get("JobRequeue") == "0"
    return Check.of(
        "SLURM, requeue",
        "JobRequeue=1",
        "JobRequeue=0: only jobs submitted with --requeue go back to the queue" if off else None,
        "Gamut submits its jobs with it; your other jobs may not be.",
        WARNING,
    )


def _lost(settings: dict[str, str]) -> Check:
    limit = seconds(settings.get("SlurmdTimeout", "0"))
    never = limit == 0
    slow = f"SlurmdTimeout={limit}: a dead node is only noticed after {limit} s" if limit > LOST else None
    return Check.of(
        "SLURM, lost nodes",
        f"SlurmdTimeout={limit}",
        "SlurmdTimeout=0: a dead node is never noticed" if never else slow,
        f"Set {LOST} s or less (slurm.conf): a job is requeued without a dead node only after this time.",
        WARNING,
    )


def _kill_wait(settings: dict[str, str], cluster: Cluster) -> Check:
    wait = seconds(settings.get("KillWait", "0"))
    found = f"KillWait={wait}, warned {cluster.signal_seconds} s before the end"
    short = (
        f"KillWait={wait}, and a warning of {cluster.signal_seconds} s" if wait + cluster.signal_seconds < 60 else None
    )
    return Check.of(
        "SLURM, time limit",
        found,
        short,
        "One step and one checkpoint must fit: raise signal_seconds in the cluster file.",
        WARNING,
    )


def _partition(cluster: Cluster) -> dict[str, str] | Check:
    lines = [facts(line) for line in says("scontrol", "show", "partition", "-o").stdout.splitlines()]
    named = [line for line in lines if line.get("PartitionName") == cluster.partition]
    default = [line for line in lines if line.get("Default") == "YES"]
    if cluster.partition is not None and not named:
        names = ", ".join(line.get("PartitionName", "?") for line in lines)
        return Check("partition", BROKEN, f"there is no {cluster.partition}", f"Name one of these: {names}.")
    if cluster.partition is None and not default:
        return Check("partition", BROKEN, "SLURM has no default partition", "Name one: partition in the cluster file.")
    return (named or default)[0]


def _fits(partition: dict[str, str], cluster: Cluster) -> Check:
    name = f"partition {partition['PartitionName']}"
    longest, asked = partition.get("MaxTime", "UNLIMITED"), minutes(cluster.time)
    longest_minutes = 10**9 if seconds(longest) == 10**9 else minutes(longest)
    nodes, state = int(partition.get("TotalNodes", "0")), partition.get("State", "UP")
    problems = []
    if state != "UP":
        problems.append(f"it is {state}")
    if asked > longest_minutes:
        problems.append(f"{cluster.time} is requested, {longest} is the limit")
    if cluster.nodes > nodes:
        problems.append(f"{cluster.nodes} nodes are requested, it has {nodes}")
    tres = partition.get("TRES", "")
    if cluster.gpus and "gres/gpu" in tres:
        gpus = int(re.search(r"gres/gpu=(\d+)", tres)[1])  # type: ignore[index]
        if cluster.gpus * cluster.nodes > gpus:
            problems.append(f"{cluster.gpus * cluster.nodes} GPUs are requested, it has {gpus}")
    elif cluster.gpus and "AccountingStorageTRES" not in tres and "gpu" not in says("sinfo", "-h", "-o", "%G").stdout:
        problems.append(f"{cluster.gpus} GPUs a node are requested, but no node has any")
    found = f"{nodes} nodes, at most {longest}"
    return Check.of(name, found, "; ".join(problems) or None, "Change the cluster file, or give options to submit.")


def _preemption(settings: dict[str, str], partition: dict[str, str], cluster: Cluster) -> Check:
    mode = partition.get("PreemptMode", settings.get("PreemptMode", "OFF")).upper()
    grace = seconds(partition.get("GraceTime", "0"))
    name = "SLURM, preemption"
    if settings.get("PreemptType", "").endswith("none") or mode == "OFF":
        return Check(name, FINE, "jobs in this partition are not preempted")
    if "REQUEUE" not in mode:
        return Check(
            name, WARNING, f"PreemptMode={mode}: a preempted job does not go back to the queue", "Submit it again then."
        )
    signal = "preempt_send_user_signal" in settings.get("SlurmctldParameters", "")
    if not signal:
        remedy = "Set SlurmctldParameters=preempt_send_user_signal (slurm.conf), or work since a checkpoint is lost."
        return Check(name, WARNING, f"PreemptMode={mode}, and jobs are not warned", remedy)
    needed = min(cluster.signal_seconds, 60)
    problem = None if grace >= needed else f"GraceTime={grace}: a preempted job has {grace} s to save"
    return Check.of(
        name, f"PreemptMode={mode}, warned {grace} s ahead", problem, f"GraceTime={needed} or more.", WARNING
    )
