"""`python -m gamut.track feed RUN`: bring a run's metrics to MLflow, for one that ended while MLflow was down."""

from __future__ import annotations

from pathlib import Path

from gamut.commands import command, parser_of
from gamut.errors import RunError
from gamut.track.feed import Feed
from gamut.track.run import RunFolder
from gamut.track.store import public, store_uri


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of(
        "track",
        "Bring a run's metrics.jsonl to MLflow. Doing it twice changes nothing.",
        "example: python -m gamut.track feed runs/asit_tiny",
    )
    parser.add_argument("action", choices=["feed"])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--uri", help="another MLflow store than the recipe's, such as http://127.0.0.1:5000")
    options = parser.parse_args(argv)
    folder = RunFolder.last(options.run)
    recipe = folder.recipe
    uri = options.uri or store_uri(recipe)
    if uri is None:
        raise RunError("The run's recipe says track.mlflow: off; name a store with --uri.")
    try:
        holder = folder.holder()
    except OSError as error:
        holder = str(error)
    if holder:
        raise RunError(f"The run at {folder.path} is being written ({holder}), and feeds MLflow itself.")
    try:
        Feed(folder, recipe, uri).now(dead=True)
    except Exception as error:  # MLflow raises what it likes; the person wants a sentence
        raise RunError(f"MLflow at {public(uri)} did not take the metrics: {error}") from error
    print(f"{folder.path} is in MLflow at {public(uri)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
