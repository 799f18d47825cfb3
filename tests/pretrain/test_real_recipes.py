"""The recipes for AudioSet, on a small set in its layout and on an index of many clips: what the dry run says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench import stand_in
from gamut.recipe.find import list_recipes
from gamut.recipe.load import load_recipe
from gamut.shards.__main__ import main as shards
from gamut.train.schedule import Schedule
from pretrain.run import main

CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/0bt9lr,"Dog"\n'
TABLES = {"balanced_train": 6, "unbalanced_train": 20, "eval": 8}  # clips
TABLES_OF_ALL = stand_in.TABLES[:2]


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).normal(scale=2000, size=16000).astype(np.int16)
    soundfile.write(path, wave, 16000, subtype="PCM_16")


@pytest.fixture(scope="module")
def audioset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 6 balanced, 20 unbalanced and 8 evaluation clips of AudioSet."""
    src, dst = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "audioset"
    (src / "class_labels_indices.csv").write_text(CLASSES)
    number = 0
    for table, clips in TABLES.items():
        lines = ["# Segments csv", "# num_ytids", "# YTID, start_seconds, end_seconds, positive_labels"]
        for _ in range(clips):
            video = f"clip{number:07d}"
            noise(src / table / f"{video}.wav", number)
            lines.append(f'{video}, 0.000, 10.000, "{("/m/09x0r", "/m/0bt9lr")[number % 2]}"')
            number += 1
        (src / f"{table}_segments.csv").write_text("\n".join(lines) + "\n")
    assert shards(["convert", "audioset", str(src), str(dst), "--workers", "1"]) == 0
    return dst


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """The table that a dry run prints: {"clips an epoch": "26", ...}."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patched:  # as a launcher's, which leaves the forecast to that
        patched.setenv("WORLD_SIZE", "1")
        assert main([*words, "--dry-run"]) == 0
    rows = re.findall(r"^│ (.+?) +│ (.+?) +│$", capsys.readouterr().out, re.MULTILINE)
    return dict(rows)


ON_AUDIOSET = [name for name in list_recipes("pretrain") if load_recipe("pretrain", name).dataset == "audioset"]


@pytest.mark.parametrize("name", [name for name in ON_AUDIOSET if name != "asit"])
def test_no_recipe_hears_the_evaluation_clips(name: str, audioset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dry_run(capsys, name, f"data={audioset}", "init=", "step.packs=2", "probe.every_epochs=0")
    assert found["clips an epoch"] == "26"


def test_another_split_or_none_can_be_asked_for(audioset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, clips in (
        (["subset.split=[as-20k]"], "6"),
        (["subset.split=[as-20k,evaluation]"], "14"),
        (["subset={}"], "34"),
    ):
        assert dry_run(capsys, "asit_b", f"data={audioset}", "step.packs=2", *words)["clips an epoch"] == clips


def test_steps_of_a_set_in_blocks_are_exact_or_said_to_be_a_forecast(
    audioset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["asit_b", f"data={audioset}", "subset={}", "step.packs=1", "epochs=10", "plan.block=1"]
    by_clips = dry_run(capsys, *words)
    assert by_clips["clips an epoch"] == "34"
    assert by_clips["planned in blocks"].startswith("6;")
    assert by_clips["steps"] == "7 an epoch, 70 in 10 epochs"
    by_tokens = dry_run(capsys, *words, "step.clips=null", "step.tokens=2048", "step.max_clips=2")
    found = re.fullmatch(r"about 17 an epoch \((\d+) to (\d+)\), .*", by_tokens["steps"])
    assert found is not None
    assert int(found[1]) <= 17 <= int(found[2])
    assert dry_run(capsys, *words[:-1])["steps"] == by_clips["steps"]


def test_a_set_without_splits_is_heard_whole_and_one_with_others_is_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        noise(tmp_path / "sounds" / "ab"[number % 2] / f"{number}.wav", number)
    folder = tmp_path / "folder"
    assert shards(["convert", "folder", str(tmp_path / "sounds"), str(folder), "--workers", "1"]) == 0
    assert dry_run(capsys, "asit_s", f"data={folder}", "step.packs=2")["clips an epoch"] == "4"

    table = tmp_path / "sounds" / "clips.csv"
    lines = [f"{'ab'[n % 2]}/{n}.wav,{('train', 'test')[n // 3]}" for n in range(4)]
    table.write_text("path,split\n" + "\n".join(lines) + "\n")
    split = tmp_path / "split"
    assert shards(["convert", "csv", str(table), str(split), "--workers", "1"]) == 0
    assert main(["asit_s", f"data={split}", "--dry-run"]) == 2
    assert "has no value 'as-2m'; its values are named test, train" in capsys.readouterr().err
    found = dry_run(capsys, "asit_s", f"data={split}", "subset.split=[train]", "step.packs=2")
    assert found["clips an epoch"] == "3"


@pytest.mark.parametrize(
    ("name", "clips", "ranks", "peak", "warmup"),
    [
        ("asit_b", 160, (4, 8, 16, 32), 3.125e-4, 0.25),
        ("asit_s", 160, (4, 8, 16, 32), 3.125e-4, 0.25),
        ("asit_b_4096", 4096, (8, 16, 32, 64), 1.58e-3, 0.124),
        ("asit_s_4096", 4096, (8, 16, 32, 64), 1.58e-3, 0.124),
    ],
)
def test_the_runs_on_all_of_audioset(name: str, clips: int, ranks: tuple[int, ...], peak: float, warmup: float) -> None:
    """40 epochs of the 2,063,949 clips of its training tables."""
    recipe = load_recipe("pretrain", name)
    assert (recipe.epochs, recipe.precision) == (40, "bf16")
    assert recipe.step.packs * (recipe.step.clips or 0) == clips
    schedule = Schedule.of(recipe.optim, recipe.epochs, sum(TABLES_OF_ALL), -(-sum(TABLES_OF_ALL) // clips))
    assert schedule.peak == pytest.approx(peak, rel=2e-3)
    assert schedule.warmup == pytest.approx(warmup, abs=1e-3)
    assert not schedule.notes
    assert recipe.loader.packs_per_forward == "auto"
    assert all(recipe.step.packs % size == 0 for size in ranks)


def test_a_dry_run_on_a_set_without_audio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.write(tmp_path / "set", (300, 1900, 50))
    words = [f"data={tmp_path}/set", "step.packs=4", "epochs=10"]
    found = dry_run(capsys, "asit_b_4096", *words, "optim.warmup_steps=70")
    assert found["clips an epoch"] == "2,200"
    assert found["steps"] == "35 an epoch, 350 in 10 epochs"
    assert found["warm-up"] == "70 steps, 2 epochs"
    assert found["peak learning rate"] == f"{3.125e-4 * (2200 / 35 / 160) ** 0.5:.3g}"
