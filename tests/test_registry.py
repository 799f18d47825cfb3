"""Registries: entries by name, the package's own and those of modules outside of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gamut import registry
from gamut.errors import RecipeError
from gamut.registry import Registry, RegistryError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process that has loaded no plugins yet, and afterwards has none of the test's modules."""
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


shapes: Registry[object] = Registry("shape", {"fraction": "fractions:Fraction", "lazy": "no_such_module:Thing"})


def plugin(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text(f"from tests.test_registry import shapes\n{text}\n")
    monkeypatch.setenv(registry.VARIABLE, name)


@pytest.fixture
def kinds() -> Iterator[Registry[object]]:
    before = dict(shapes._entries), dict(shapes._places)
    yield shapes
    shapes._entries, shapes._places = before


def test_a_built_in_entry_is_imported_when_it_is_asked_for(kinds: Registry[object]) -> None:
    from fractions import Fraction

    assert list(kinds) == ["fraction", "lazy"]  # the latter's module does not even exist
    assert kinds["fraction"] is Fraction


def test_an_unknown_name_is_told_the_nearest_and_all_there_are(kinds: Registry[object]) -> None:
    with pytest.raises(RecipeError, match=r"no shape 'fractoin'; the nearest .* fraction. There are: fraction, lazy"):
        kinds["fractoin"]


def test_a_clash_names_both_places(kinds: Registry[object]) -> None:
    kinds.add("square", 1)
    with pytest.raises(RegistryError, match=r"'square': .*test_registry.py:\d+ and .*test_registry.py:\d+"):
        kinds.add("square", 2)
    with pytest.raises(RegistryError, match=r"'fraction': fractions:Fraction and .*test_registry.py:\d+"):
        kinds.register("fraction")(int)
    assert kinds["square"] == 1


def test_the_environment_names_modules_that_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: Registry[object]
) -> None:
    plugin(tmp_path, "outside", "shapes.add('circle', 'round')\nassert 'fraction' in shapes", monkeypatch)
    assert "circle" in kinds
    assert kinds["circle"] == "round"


def test_an_installed_package_registers_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: Registry[object]
) -> None:
    plugin(tmp_path, "installed", "shapes.add('cube', 3)", monkeypatch)
    monkeypatch.delenv(registry.VARIABLE)
    about = tmp_path / "installed-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[gamut.plugins]\nmine = installed\n")
    assert kinds["cube"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "plugin broken, named by GAMUT_PLUGINS, cannot be imported: ZeroDivisionError"),
        ("import no_such_thing", "plugin broken, .* needs the module no_such_thing"),
        (
            "shapes.add('fraction', 1)",
            "plugin broken, .* cannot be imported. There are two entries for the shape 'fraction'",
        ),
    ],
)
def test_a_plugin_that_fails_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: Registry[object]
) -> None:
    plugin(tmp_path, "broken", text, monkeypatch)
    for _ in range(2):  # it is no better the second time
        with pytest.raises(RegistryError, match=message):
            kinds["fraction"]


def test_a_plugin_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, kinds: Registry[object]) -> None:
    monkeypatch.setenv(registry.VARIABLE, "nowhere")
    with pytest.raises(RegistryError, match=r"plugin nowhere, .*no such module.*PYTHONPATH"):
        list(kinds)
