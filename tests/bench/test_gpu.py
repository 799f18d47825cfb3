"""`make bench-gpu` on its smallest sizes, on the CPU: the same code, and what it does with a part that fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu.parts import LeftOut, Row, Setting
from bench.gpu.published import draw_mask, in_order
from gamut.commands import ROOT
from tests import warm


@pytest.mark.long
def test_every_part_runs_on_the_cpu(tmp_path: Path) -> None:
    """All but the kill and the resume, which tests/train has, and the tests that need a GPU."""
    wanted = [name for name in command.NAMES if name not in ("tests", "resume")]
    line = [warm.python(), "-m", "bench.gpu", "--device", "cpu", "--tiny", "--minutes", "20"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, "--out", str(tmp_path / "rows.md"), "--only", *wanted],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "left out" not in done.stdout
    rows = (tmp_path / "rows.md").read_text()
    assert {row.split("|")[1].strip() for row in rows.splitlines() if row.startswith("| ")} >= {*wanted}
    (step,) = (row for row in rows.splitlines() if "| ASiT tiny, 1 pack |" in row)
    *_, measured, _, forecast, ratio, _, _ = (cell.strip() for cell in step.split("|"))
    assert float(ratio) == pytest.approx(float(forecast) / float(measured), rel=0.02, abs=0.01)


def test_a_part_that_fails_is_named_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(setting: Setting) -> Iterator[Row]:
        yield Row("before", 1.0, "s")
        raise ValueError("two and two are five")

    def lacking(setting: Setting) -> Iterator[Row]:
        raise LeftOut("no such wheel")
        yield

    def fine(setting: Setting) -> Iterator[Row]:
        yield Row("after", 3.0, "clips/s", forecast=6.0)

    monkeypatch.setattr(command, "parts", lambda setting: {"tests": broken, "resume": lacking, "heads": fine})
    assert command.main(["--device", "cpu", "--tiny"]) == 1
    told = capsys.readouterr().out
    assert "FAILED: tests: two and two are five" in told
    assert "left out: resume: no such wheel" in told
    assert "| heads | after |  | 3 | clips/s | 6 | 2.00 |  |" in told
    assert "| tests | before |" in told
    monkeypatch.setattr(command, "parts", lambda setting: {"heads": fine})
    assert command.main(["--device", "cpu", "--tiny"]) == 0


def test_the_published_packing_and_masks() -> None:
    assert in_order([1000, 1000, 100, 2048, 1]) == [[0, 1], [2], [3], [4]]
    assert 0.7 <= draw_mask(592).float().mean().item() < 0.9


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err
