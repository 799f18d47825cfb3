"""Checkpoints that a run keeps for good, one every so many epochs: `checkpoints/kept.json`, folder -> epochs done."""

from __future__ import annotations

import json
from pathlib import Path

from gamut import files
from gamut.errors import CheckpointError

NOTES = "kept.json"


def due(epochs_done: int, epochs: int, every: float) -> bool:
    """Whether this is the end of an epoch that counts: of every `every`th and of the last; 0: of none."""
    return every > 0 and (epochs_done % max(1, round(every)) == 0 or epochs_done == epochs)


def note(folder: Path, name: str, epochs_done: int) -> None:
    """Keep the checkpoint `name` of `folder`; written before the checkpoint is, so that none is ever missed.

    Raises OSError as the system does.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_json(folder / NOTES, noted(folder) | {name: epochs_done})


def noted(folder: Path) -> dict[str, int]:
    """Every checkpoint that was to be kept, also one that was never finished. Raises CheckpointError where the note is
    damaged: what to remove could not be told then."""
    path = folder / NOTES
    try:
        return {str(name): int(epochs) for name, epochs in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}, which says what checkpoints are kept, cannot be read: {error}. Write it anew, such as "
            '{"step-00000100": 10} for the checkpoint after epoch 10, or remove it to keep only those to come.'
        ) from error


def kept(folder: Path) -> dict[int, Path]:
    """epochs done -> checkpoint folder, in order, of those that are there."""
    found = {epochs: folder / name for name, epochs in noted(folder).items() if (folder / name).is_dir()}
    return dict(sorted(found.items()))
