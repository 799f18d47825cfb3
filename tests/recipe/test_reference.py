"""docs/recipes.md is the schema, in words."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path

import pytest

from gamut.recipe.names import RENAMED, hints, keys
from gamut.recipe.reference import reference
from gamut.recipe.schema import Recipe
from gamut.settings import about

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
SECTIONS = [Recipe, *(hint for hint in hints(Recipe).values() if is_dataclass(hint))]


def test_the_document_is_what_the_schema_says() -> None:
    """Where it is not: python -m gamut.recipe.reference > docs/recipes.md"""
    assert DOCUMENT.read_text() == reference()


def test_every_key_has_a_row() -> None:
    rows = [line.split("`")[1] for line in reference().splitlines() if line.startswith("| `")]
    assert set(keys()) <= set(rows)


@pytest.mark.parametrize("cls", SECTIONS)
def test_every_key_says_what_it_means(cls: type) -> None:
    for name, known in about(cls).items():
        assert known.meaning or is_dataclass(hints(cls)[name]), name
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "the dataclass's own"


def test_keys_that_were_renamed_are_there_and_their_earlier_names_are_not() -> None:
    known = set(keys()) | set(hints(Recipe))
    for old, new in RENAMED.items():
        assert new in known
        assert old not in known
