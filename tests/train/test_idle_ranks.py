"""Ranks without a pack, and a CPU without bf16, are refused or spoken of wherever a run is started from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gamut.errors import RecipeError
from gamut.recipe.load import load_recipe
from gamut.train.session import open_session
from gamut.train.world import World


class Opened(Exception):
    """The session looked at its index: nothing was refused."""


class Unread:
    @property
    def tars(self) -> Any:
        raise Opened


def begin(packs: int, ranks: int, device: str, rank: int = 0, precision: str = "fp32") -> None:
    recipe = load_recipe("pretrain", "asit_tiny", (f"step.packs={packs}", f"precision={precision}"))
    world = World(rank, ranks, rank, ranks, torch.device(device), 1)
    nothing: Any = Unread()
    with open_session(recipe, world, nothing, nothing, 1):
        pass


@pytest.mark.parametrize("rank", [0, 63])
def test_gpus_that_never_have_a_pack_are_refused_on_every_rank(rank: int) -> None:
    with pytest.raises(RecipeError, match=r"has 32 packs \(step.packs\), so only 32 of 64 ranks ever have a pack"):
        begin(32, 64, "cuda", rank)


def test_ranks_that_are_idle_for_long_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    for packs, ranks, device, said in (
        (33, 32, "cuda", "48% of the time of 32 ranks goes by without a pack"),
        (1, 2, "cpu", "only 1 of 2 ranks ever have a pack"),
    ):
        with pytest.raises(Opened):
            begin(packs, ranks, device)
        assert f"warning: A step has {packs} packs (step.packs), so {said}" in capsys.readouterr().out
        with pytest.raises(Opened):
            begin(packs, ranks, device, rank=1)
        assert not capsys.readouterr().out


def test_ranks_that_all_have_packs_are_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Opened):
        begin(64, 16, "cuda")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("has", [False, True])
def test_a_cpu_that_has_no_bf16_is_spoken_of_once(
    has: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    for device, precision, rank in (("cpu", "fp32", 0), ("cuda", "bf16", 0), ("cpu", "bf16", 1), ("cpu", "bf16", 0)):
        assert "bf16" not in capsys.readouterr().out
        with pytest.raises(Opened):
            begin(2, 2, device, rank, precision)
    assert ("warning: This CPU has no bf16" in capsys.readouterr().out) == (not has)
