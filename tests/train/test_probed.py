"""Probes and pictures where no rank holds the weights, of clips that have several labels each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from probe_cases import hung, pretrained
from ranks import Ranks
from safetensors.torch import load_file

from gamut.evaluate.metrics import mean_average_precision
from gamut.evaluate.probe import knn
from gamut.models.vit import VisionTransformer
from gamut.probe.features import Encoder, FrontEnd, extract, whole_clips
from gamut.probe.fit import fit, join
from gamut.probe.labelled import labelled
from gamut.recipe.load import load_recipe
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.track.metrics import History

SMALL = ["subset={}", "front.mean=-6", "front.std=5", "model.dim=32", "model.depth=2", "model.heads=2", "epochs=2"]
SMALL += ["model.table_frames=48", "views.frames=48", "step.packs=4", "step.clips=3", "loader.workers=0"]
SMALL += ["asit.hidden=32", "asit.bottleneck=16", "asit.prototypes=24", "optim.lr=3e-3", "track.mlflow=off"]
SMALL += ["probe.every_epochs=2", "probe.neighbours=5", "track.picture_epochs=2"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 clips of 0.7 s in 3 folds: a low tone, a high one and noise, each there or not, one at least."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "several"
    random, time = np.random.default_rng(0), np.arange(11_200) / 16_000
    lines = ["path,labels,fold"]
    for number in range(36):
        there = [number % 7 + 1 >> bit & 1 for bit in range(3)]
        parts = [
            np.sin(2 * np.pi * random.uniform(200, 300) * time),
            np.sin(2 * np.pi * random.uniform(2e3, 3e3) * time),
        ]
        wave = sum(on * part for on, part in zip(there, [*parts, random.normal(size=len(time))])) * 0.1
        soundfile.write(source / f"{number}.wav", wave, 16_000, subtype="PCM_16")
        labels = ";".join(name for name, on in zip(("low", "high", "noise"), there) if on)
        lines.append(f"{number}.wav,{labels},{number % 3 + 1}")
    (source / "clips.csv").write_text("\n".join(lines) + "\n")
    assert shards(["convert", "csv", str(source / "clips.csv"), str(folder), "--workers", "1"]) == 0
    return folder


@pytest.mark.parametrize(
    ("size", "stage"), [(2, 3), pytest.param(1, 3, marks=pytest.mark.long), pytest.param(2, 1, marks=pytest.mark.long)]
)
def test_clips_of_several_labels_are_probed_while_weights_are_cut(
    several: Path, tmp_path: Path, size: int, stage: int
) -> None:
    words = [f"data={several}", f"run.folder={tmp_path}", "run.name=run", *SMALL]
    words.append(f"deepspeed.zero_optimization.stage={stage}")
    ranks = Ranks(size, pretrained, ["asit_tiny", *words], timeout_seconds=600.0)
    assert ranks.wait(600.0) == [0] * size, ranks.log()
    assert "3 classes of" in ranks.log()
    assert "no pictures" not in ranks.log()
    run = tmp_path / "run"
    history = History.read(run / "metrics.jsonl")
    assert "probe/failures" not in history.points
    of_clips = {f"{name}-{clip}" for name in ("masks", "reconstruction", "attention") for clip in (0, 1)}
    assert set(history.figures) == {*of_clips, "embedding"}

    recipe = load_recipe("pretrain", "asit_tiny", words)
    clips, _ = labelled(recipe, Index.open(several))
    assert clips is not None
    assert set(clips.target.sum(1)) == {1, 2, 3}
    latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    vit, prefix = VisionTransformer(recipe.model, recipe.seed), "teacher.backbone."
    encode = Encoder(vit, FrontEnd(-6.0, 5.0, recipe.front.mode), "fp32", torch.device("cpu"))
    for step, weights in ((0, None), (6, load_file(latest / "objective.safetensors"))):
        if weights is not None:
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            vit.load_state_dict(own)
        share = extract(encode, clips.index, whole_clips(clips.clips, recipe), with_logmel=not step)
        found = join([share.arrays()], clips.clips.row, clips.target, clips.fold)
        expected = fit(*found, recipe.probe.neighbours)
        for name, value in expected.items():
            steps, values = history.series(name)
            assert values[steps.index(step)] == pytest.approx(value, abs=1e-3), (step, name)
        # It is the mean average precision over classes: here of the nearest neighbours, fold by fold.
        vectors, target, fold = found
        scores = [
            mean_average_precision(
                target[fold == number],
                knn(vectors["mean"][fold != number], target[fold != number], vectors["mean"][fold == number], k=5),
            )
            for number in range(3)
        ]
        assert expected["probe/knn/mean"] == pytest.approx(np.mean(scores))


@pytest.mark.long
def test_a_rank_that_hangs_in_a_probe_says_so_and_all_end(several: Path, tmp_path: Path) -> None:
    words = [f"data={several}", f"run.folder={tmp_path}", "run.name=run", *SMALL, "track.picture_epochs=0"]
    ranks = Ranks(2, hung, ["asit_tiny", *words], timeout_seconds=60.0)
    assert not any(isinstance(answer, int) for answer in ranks.wait(120.0))
    assert "Timeout: nothing has moved for 5 s in rank 1" in ranks.log()
    assert "which is at: a probe." in ranks.log()
