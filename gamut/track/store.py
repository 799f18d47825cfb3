"""Where MLflow keeps what it is fed, and how it has to behave."""

from __future__ import annotations

import logging
import os
import urllib.parse
from pathlib import Path

from gamut.recipe.schema import Recipe

_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph"}


def store_uri(recipe: Recipe) -> str | None:
    """Where the recipe's metrics go: an SQLite file in the runs folder, a server, or None for `track.mlflow=off`."""
    if recipe.track.mlflow == "off":
        return None
    if recipe.track.mlflow == "auto":
        return f"sqlite:///{Path(recipe.run.folder).resolve() / 'mlflow.db'}"
    return recipe.track.mlflow


def public(uri: str) -> str:
    """A URI without the user and password that it may hold."""
    parts = urllib.parse.urlsplit(uri)
    return uri if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def quiet() -> None:
    """Settings before MLflow is imported: no telemetry, no pickles, short tries (we have our own patience)."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that a file lies on, or would; None where it is local."""
    place, kind = Path("/"), ""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    for point, system in mounts:
        if path.is_relative_to(point) and Path(point).is_relative_to(place):
            place, kind = Path(point), system
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def warn_of_network(database: Path) -> None:
    """SQLite's locks are not to be trusted on a network file system."""
    kind = network_file_system(database)
    if kind is not None:
        print(
            f"warning: MLflow's file {database} is on a network file system ({kind}), where two runs at once may "
            "damage it. Name a server with track.mlflow=http://..., or a local folder with track.mlflow=sqlite:///...",
            flush=True,
        )
