"""The short form of `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import SHARES, Soak, SoakError


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path) -> None:
    said: list[str] = []
    with Soak(tmp_path, 2, 5, said.append, SHARES | {"cold": 0.0}) as soak:
        soak.quiet()
        soak.run()
        soak.compare()
        assert sum(soak.killed.values()) == 2, said
        assert soak.attempts >= 4
        latest = tmp_path / "runs" / "quiet" / "checkpoints" / "latest"
        latest.write_text(min(latest.parent.glob("step-*")).name)
        with pytest.raises(SoakError):
            soak.compare()
    assert any(line.startswith("effective training time") for line in said)
