"""The command line that every stage shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from gamut.errors import RecipeError, ShardError
from gamut.recipe.cli import parse, require_data
from gamut.recipe.find import list_recipes


@pytest.mark.parametrize("rank", [["--local_rank=1"], ["--local_rank", "1"], ["--local-rank=1"]])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_local_rank_anywhere(rank: list[str], place: int) -> None:
    words = ["asit_tiny", "optim.lr=1e-3", "--dry-run"]
    command = parse("pretrain", [*words[:place], *rank, *words[place:]])
    assert command.local_rank == 1
    assert command.dry_run
    assert command.overrides == ("optim.lr=1e-3",)
    assert command.recipe.optim.lr == 1e-3
    assert command.name == "asit_tiny"


def test_top_level_overrides() -> None:
    command = parse("finetune", ["esc50", "init=runs/asit_b", "data=/shards"])
    assert (command.recipe.init, command.recipe.data) == ("runs/asit_b", "/shards")
    assert not command.dry_run
    assert command.local_rank is None


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["optim.lr=3"], 2), (["--help"], 0), (["esc50", "-h"], 0)])
def test_without_a_recipe_they_are_listed(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("finetune", argv)
    assert caught.value.code == status
    shown = capsys.readouterr()
    text = shown.err if status else shown.out
    assert "example: deepspeed" in text
    for name in list_recipes("finetune"):
        assert name in text


def test_only_one_rank_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("finetune", ["--local_rank=1"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["esc50", "init"], ["'init'", "key=value"]),
        (["esc50", "--dry_run"], ["--dry_run", "--dry-run"]),
        (["--local_rank", "esc50"], ["--local_rank"]),
        (["esc5"], ["esc50"]),
    ],
)
def test_mistakes(argv: list[str], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse("finetune", argv)
    for word in words:
        assert word in str(caught.value)


def test_missing_shards_come_with_the_command_that_makes_them(tmp_path: Path) -> None:
    missing = parse("finetune", ["esc50", f"data={tmp_path}/none"]).recipe
    with pytest.raises(ShardError, match=r"python -m gamut.shards convert esc50 SRC .*none"):
        require_data(missing)
    assert require_data(parse("finetune", ["esc50", f"data={tmp_path}"]).recipe) == tmp_path
