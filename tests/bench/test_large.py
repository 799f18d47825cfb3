"""`bench/large.py` on 2,000 items: ours, and whichever peers are installed beside it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest

from bench import large
from bench.library import LIBRARIES, shuffled

ITEMS = 2_000


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(LIBRARIES[name].package)
    except importlib.metadata.PackageNotFoundError:
        return name == "gamut"
    return True


def test_each_draws_all_goes_on_where_it_was_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large, "PEERS", tmp_path / "none")
    large.main(["--clips", str(ITEMS), "--folder", str(tmp_path)])
    told = capsys.readouterr().out
    for name, library in LIBRARIES.items():
        if not installed(name):
            assert f"{library.package}: left out, not installed: python bench/peers.py {name}" in told
            continue
        found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / str(ITEMS)).glob(f"{name}-*.json")}
        assert found[f"{name}-first"]["distinct"] == ITEMS
        assert found[f"{name}-build"]["bytes"]
        if library.resumes == "no":
            assert f"{name}-resume" not in found
        else:
            assert found[f"{name}-save"]["depth"] > 0
            assert found[f"{name}-resume"]["same"]

    monkeypatch.delattr(large, "work")  # all is known: a run that was killed goes on, and this one has nothing to do
    large.main(["--clips", str(ITEMS), "--folder", str(tmp_path), "--only", "gamut"])
    assert "gamut" in capsys.readouterr().out


def test_neighbours() -> None:
    order = np.random.default_rng(0).permutation(20_000)
    correlation, distance = shuffled(order, len(order))
    assert abs(correlation) < 0.03
    assert distance == pytest.approx(1 / 3, abs=0.01)
    assert shuffled(np.arange(1000), 1000) == pytest.approx((1.0, 0.001))
