"""What the documents name must be there: files of this repository, and links between the pages."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

import pytest

from gamut.commands import COMMANDS
from gamut.recipe.find import list_recipes
from gamut.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])
RECIPES = {name: stage for stage in ("pretrain", "finetune") for name in list_recipes(stage)}
TOPS = ("gamut", "pretrain", "finetune", "launchers", "configs", "tests", "bench", "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    named = {
        path
        for path in re.findall(rf"\b((?:{'|'.join(TOPS)})/[\w./-]*\w/?)", text)
        if not re.search(r"\.\.\.|\b[A-Z]{3,}\b", path)
    }  # NAME
    wrong = [path for path in named if path.endswith((".py", ".md", ".yaml", "/")) and not (ROOT / path).exists()]
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    wrong += [link for link in links if not (page.parent / link).exists()]
    assert not wrong, f"{page.name} names what is not there: {sorted(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(r"\b(tests/[\w/]+\.py)::(\w+)", page.read_text()))
    wrong = [f"{file}::{test}" for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text()]
    assert not wrong, f"{page.name} names tests that are not there: {sorted(wrong)}"


def test_every_promise_has_its_row() -> None:
    rows = re.findall(r"^\| (F\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.M)
    assert rows == [f"F{number}" for number in range(1, 23)]


def test_every_yes_of_the_comparison_names_a_test() -> None:
    text = (ROOT / "docs" / "comparison.md").read_text()
    table = re.search(r"^\| \| what shows it \|\n\| --- \| --- \|\n((?:\|.*\n)+)", text, re.M)
    assert table is not None
    rows = table[1].splitlines()
    assert len(rows) > 10
    assert not [row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+`", row)]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_a_page_with_commands_of_the_clone_gives_their_installed_form(page: Path) -> None:
    text = page.read_text()
    blocks = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    for name, (module, _) in COMMANDS.items():
        module = module.removesuffix(".__main__")
        typed = f"-m {module} " if module.startswith("gamut.") else f"{module.replace('.', '/')}.py "
        if typed in blocks:
            assert f"`gamut {name}`" in text, f"{page.name} shows `{typed}` without `gamut {name}`"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_a_table_of_keys_says_what_the_recipes_have(page: Path) -> None:
    """A table that begins with `key` has recipes' names in code as the heads of its columns."""
    for table in re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.M):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        columns = {at: name.strip("`") for at, name in enumerate(head) if at and name.startswith("`")}
        if head[0] != "key" or not set(columns.values()) <= RECIPES.keys():
            continue
        for key, *_ in rows:
            assert key.startswith("`"), f"{page.name}: {key} is no key"
        for at, name in columns.items():
            recipe = load_recipe(RECIPES[name], name)
            for row in rows:
                value = attrgetter(row[0].strip("`"))(recipe)
                written = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
                assert row[at] == written, f"{page.name}: {row[0]} of {name}"
