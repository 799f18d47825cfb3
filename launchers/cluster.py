"""What a job requests from SLURM, with the settings of a cluster."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gamut.errors import RecipeError, nearest
from gamut.recipe.find import CONFIGS, list_names, named, show
from gamut.recipe.names import describe, hints
from gamut.recipe.text import parse_yaml
from gamut.settings import at_least, bounded, key, problems


@dataclass(frozen=True)
class Cluster:
    """configs/clusters/NAME.yaml; command-line options replace single values. One task uses one GPU."""

    nodes: int = bounded(1, at_least(1))
    gpus: int = key(1, "a node, and tasks a node; 0: a job without GPUs", at_least(0))
    cpu_tasks: int = key(1, "tasks a node where gpus is 0", at_least(1))
    cpus_per_task: int = bounded(8, at_least(1))
    memory_gb: int | None = None  # a node; None: the partition's default
    time: str = "24:00:00"  # minutes, HH:MM:SS or D-HH:MM:SS
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    signal_seconds: int = key(
        90, "how long before the end the job is warned: enough for one step and a checkpoint", at_least(1)
    )
    failures: int = key(
        3,
        "after a lost node, a killed rank or a failed network the job goes back to the queue, so often without a new "
        "checkpoint between; 0: never",
        at_least(0),
    )
    setup: list[str] = field(default_factory=list)  # shell lines before the job, such as `module load cuda`
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def tasks_per_node(self) -> int:
        return self.gpus or self.cpu_tasks

    @property
    def tasks(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.tasks_per_node


def load_cluster(name: str | None, changes: dict[str, Any], configs: Path = CONFIGS) -> Cluster:
    """The cluster `configs/clusters/NAME.yaml` (or the defaults) with `changes` applied, those that are not None.

    Raises RecipeError naming the file, the key and the nearest valid name for whatever is wrong in it.
    """
    config = OmegaConf.structured(Cluster)
    OmegaConf.set_readonly(config, False)
    if name is not None:
        path = Path(name) if name.endswith(".yaml") else named("clusters", name, configs)
        if path is None or not path.is_file():
            missing = path or configs / "clusters" / f"{name}.yaml"
            raise RecipeError(
                f"There is no cluster file {show(missing)}{nearest(name, list_names('clusters', configs))}."
            )
        values = parse_yaml(path.read_text(encoding="utf-8"), show(path)) or {}
        if not isinstance(values, dict):
            raise RecipeError(f"The cluster file {show(path)} must consist of `key: value` lines.")
        _assign(config, values, f"in {show(path)}")
    _assign(config, {name: value for name, value in changes.items() if value is not None}, "on the command line")
    cluster = cast(Cluster, OmegaConf.to_object(config))
    for name, problem in problems(cluster):
        raise RecipeError(f"{name} {problem}.")
    if 60 * minutes(cluster.time) < 2 * cluster.signal_seconds:
        raise RecipeError(
            f"The time limit {cluster.time} leaves no time to train: the job is warned {cluster.signal_seconds} s "
            "before it (signal_seconds), in which it saves a checkpoint, and as long again is to go by before that. "
            f"Give it at least {-(-2 * cluster.signal_seconds // 60)} minutes with --time, or lower signal_seconds in "
            "the cluster's file if a step and a checkpoint take less."
        )
    return cluster


def _assign(config: Any, values: dict[str, Any], where: str) -> None:
    known = [f.name for f in dataclasses.fields(Cluster)]
    for name, value in values.items():
        if name not in known:
            raise RecipeError(f"Unknown key {name} {where}{nearest(str(name), known)}.")
        if name == "time" and isinstance(value, int):
            value = str(value)
        try:
            OmegaConf.update(config, name, value, merge=False)
        except OmegaConfBaseException:
            kind = {"setup": "a list of shell lines", "environment": "a mapping of names to texts"}.get(name)
            raise RecipeError(
                f"{name} {where} must be {kind or describe(hints(Cluster)[name])}, not {value!r}."
            ) from None


def minutes(time: str) -> int:
    """A time limit in whole minutes, rounded up, from any of SLURM's notations. Raises RecipeError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?", time.strip())
    if not match:
        raise RecipeError(f"The time limit {time!r} must be minutes, HH:MM:SS or D-HH:MM:SS.")
    days, first, second, third = match.groups()
    if days is not None:
        parts = int(first) * 60 + int(second or 0) + int(third or 0) / 60
    elif third is not None:
        parts = int(first) * 60 + int(second) + int(third) / 60
    else:
        parts = int(first) + int(second or 0) / 60
    total = int(days or 0) * 1440 + -int(-parts // 1)
    if total < 1:
        raise RecipeError(f"The time limit {time!r} is less than a minute.")
    return total
