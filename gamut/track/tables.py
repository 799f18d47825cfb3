"""Tables as Markdown, and files that appear whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamut.errors import RunError
from gamut.files import refusal, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(out: Path, name: str, table: str, content: dict[str, Any], pictures: dict[str, Figure]) -> None:
    """NAME.md, NAME.json and the pictures into the folder `out`. Raises RunError where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"{name}.md", table + "\n")
        write_text(out / f"{name}.json", json.dumps(content, indent=1))
        for file, figure in pictures.items():
            figure.savefig(out / f"{file}.png", dpi=110)
    except OSError as error:
        raise RunError(f"{refusal(error, out)} Give another folder with --out.") from error
    print(f"{table}\n\nwritten to {out}: {', '.join([f'{name}.md', f'{name}.json', *(f'{p}.png' for p in pictures)])}")
