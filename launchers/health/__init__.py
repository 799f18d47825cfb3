"""What a run needs of a machine and of a cluster, checked one by one, and the line of the report for each."""

from __future__ import annotations

from dataclasses import dataclass

FINE, WARNING, BROKEN = "fine", "warning", "broken"


@dataclass(frozen=True)
class Check:
    """One line of the report. remedy: what to do, wherever it is not fine."""

    name: str
    state: str  # FINE, WARNING: a run works but less well, BROKEN: it does not
    found: str
    remedy: str = ""

    @classmethod
    def of(cls, name: str, found: str, problem: str | None, remedy: str, state: str = BROKEN) -> Check:
        """Fine without a `problem`; else `state`, with the problem and the remedy."""
        return cls(name, FINE, found) if problem is None else cls(name, state, problem, remedy)
