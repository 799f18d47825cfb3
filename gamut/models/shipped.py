"""Models that come with the package, called by a name where a path could stand: folders of `gamut export`."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).with_name("shipped")  # in the wheel, too (setup.py)


def located(place: str | Path) -> Path:
    """The path that a person names. What is there in the current folder comes before a model of that name."""
    path = Path(place).expanduser()
    return path if path.exists() or path.name != str(place) or path.name not in shipped() else SHIPPED / path.name


def shipped() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(folder.name for folder in SHIPPED.glob("*") if (folder / "manifest.json").is_file()))
