"""Where MLflow keeps what it is fed, how it has to behave, and what is found or made there."""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.parse
from pathlib import Path
from typing import Any

from gamut.files import TEMPORARY, network_file_system, sync
from gamut.recipe.schema import Recipe

SQLITE = "sqlite:///"  # a URI of a file begins so


def store_uri(recipe: Recipe) -> str | None:
    """Where the recipe's metrics go: an SQLite file in the runs folder, a server, or None for `track.mlflow=off`."""
    if recipe.track.mlflow == "off":
        return None
    if recipe.track.mlflow == "auto":
        return f"{SQLITE}{Path(recipe.run.folder).resolve() / 'mlflow.db'}"
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


def warn_of_network(database: Path) -> None:
    """SQLite's locks are not to be trusted on a network file system."""
    kind = network_file_system(database)
    if kind is not None:
        print(
            f"warning: MLflow's file {database} is on a network file system ({kind}), where two runs at once may "
            "damage it. Name a server with track.mlflow=http://..., or a local folder with track.mlflow=sqlite:///...",
            flush=True,
        )


def connect(uri: str) -> Any:
    """A client of the store. Raises whatever MLflow raises."""
    quiet()
    from mlflow.tracking import MlflowClient

    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE))
        warn_of_network(database)
        with contextlib.suppress(OSError):  # MLflow says what is wrong with the place
            _make(database)
    return MlflowClient(tracking_uri=uri)


def _make(database: Path) -> None:
    """Make MLflow's file, unless it is there: whole or not at all, since MLflow cannot go on with one that a kill left
    half made. Of processes that make it at once the first one's stays."""
    from mlflow.tracking import MlflowClient

    if database.exists():
        return
    made = database.with_name(f"{database.name}.{os.getpid()}{TEMPORARY}")
    with contextlib.suppress(FileNotFoundError):
        made.unlink()  # of a process of this number that was killed
    try:
        os.close(os.open(made, os.O_CREAT | os.O_CLOEXEC, 0o600))  # recipes and results are not for everyone
        MlflowClient(tracking_uri=f"{SQLITE}{made}").search_experiments(max_results=1)
        sync(made)
        with contextlib.suppress(FileExistsError):
            os.link(made, database)
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.unlink()


def experiment_id(client: Any, uri: str, name: str) -> str:
    """Of the experiment of this name, which is made where there is none; a file's artifacts lie beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    artifacts = Path(uri.removeprefix(SQLITE)).parent / "mlflow-artifacts"
    if uri.startswith(SQLITE):
        artifacts.mkdir(mode=0o700, exist_ok=True)
    return str(client.create_experiment(name, artifact_location=artifacts.as_uri() if uri.startswith(SQLITE) else None))


def tagged_run(client: Any, experiment: str, name: str, tags: dict[str, str], **more: str) -> Any:
    """The run that has these tags; where there is none it is made, with `more` tags too."""
    query = " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items())
    found = client.search_runs([experiment], filter_string=query, max_results=1)
    return found[0] if found else client.create_run(experiment, run_name=name, tags=tags | more)


def _quoted(value: str) -> str:
    return value.replace("'", "''")
