"""How far MLflow has been fed."""

from __future__ import annotations

import json
from pathlib import Path

from gamut.files import write_text
from gamut.track.store import public


class Marks:
    """How far a run has been fed, in a small file: of each metric and figure the last step that MLflow has."""

    def __init__(self, path: Path, uri: str) -> None:
        self.path = path
        self.store = public(uri)
        self.run = ""
        self.steps: dict[str, int] = {}
        self.figures: dict[str, int] = {}
        self.tags: dict[str, str] = {}  # not kept on disk: setting one again changes nothing
        self.in_doubt = True

    def belong_to(self, run: str) -> None:
        """Take up the marks of MLflow's run `run`; without them (lost, or another store) all is in doubt."""
        self.run = run
        try:
            saved = json.loads(self.path.read_text())
            if saved["run"] == run:
                self.steps = {str(key): int(step) for key, step in saved["steps"].items()}
                self.figures = {str(key): int(step) for key, step in saved["figures"].items()}
                self.in_doubt = bool(saved["in_doubt"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self.steps, self.figures, self.in_doubt = {}, {}, True
        self.save()

    def doubt(self) -> None:
        """A batch is about to leave."""
        if not self.in_doubt:
            self.in_doubt = True
            self.save()

    def trust(self) -> None:
        """The batch has arrived."""
        self.in_doubt = False
        self.save()

    def save(self) -> None:
        record = {"store": self.store, "run": self.run, "in_doubt": self.in_doubt}
        write_text(self.path, json.dumps({**record, "steps": self.steps, "figures": self.figures}))
