"""Heads through the command that people type: Whisper-AT's recipes, the same training at any world, no silent gaps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads import require_features
from finetune.run import main
from gamut.data.batch import Hole
from gamut.errors import FeatureError, RecipeError
from gamut.features import FeatureCache, write_cache
from gamut.models.tagger import Tagger, open_tagger
from gamut.models.weights import load_weights, save_weights
from gamut.recipe import schema
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import training_policy
from gamut.shards import Index
from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.run import convert
from launchers.corpus import CLASSES, synthesise
from tests.close import assert_close
from tests.train.ranks import run

from .tuning import tune

# Whisper-AT, section 3 and its published runs: head dimension, learning rate, draws an epoch, loss, training split.
RECIPES = {
    "whisper_at": (None, 1e-4, None, "bce", ["as-20k"]),
    "whisper_at_tltr512": (512, 2e-4, None, "bce", ["as-20k"]),
    "whisper_at_as2m": (None, 5e-5, 195_000, "bce", ["as-2m"]),
    "whisper_at_tltr512_as2m": (512, 1e-4, 195_000, "bce", ["as-2m"]),
    "whisper_at_tltr512_esc50": (512, 5e-4, None, "ce", None),
}
SMALL = ["epochs=5", "finetune.average_from=4", "finetune.evaluate_epochs=5", "head.dim=8", "track.mlflow=off"]
SMALL += ["run.threads=1", "step.packs=2", "step.clips=4", "optim.lr=5e-3", "folds.test=[[1]]", "loader.workers=0"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_says_what_the_paper_says(name: str) -> None:
    recipe, (dim, lr, draws, loss, train) = load_recipe("finetune", name), RECIPES[name]
    policy, optim, tuned = training_policy(recipe), recipe.optim, recipe.finetune
    assert (recipe.head.kind, recipe.head.dim, recipe.head.time_heads, recipe.head.layer_heads) == ("tl_tr", dim, 1, 8)
    assert (recipe.epochs, policy.packs * (policy.clips or 0), policy.draws) == (30, 48, draws)
    assert (optim.name, optim.lr, optim.lr_base_batch, optim.betas) == ("adam", lr, 0, (0.95, 0.999))
    assert (optim.weight_decay, optim.weight_decay_end) == (5e-7, 5e-7)
    assert (optim.schedule, optim.gamma, optim.gamma_from, optim.gamma_every) == ("gamma", 0.75, 15, 5)
    assert (policy.cached, policy.mixup, recipe.augment.time_mask) == (True, 0.5, 10)
    assert (tuned.loss, tuned.label_smoothing, tuned.average_from) == (loss, 0.1, 16)
    assert recipe.plan.weights == ("balanced" if loss == "bce" else "")
    assert recipe.folds.train == train


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("step.clips=null step.tokens=512", "set step.clips"),
        ("augment.frequency_mask=8", "works on sound"),
        ("augment.drop_tokens=0.1", "works on sound"),
        ("head.kind=mlp", "last_mlp, wa_mlp"),
    ],
)
def test_what_cannot_be_is_refused(word: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("finetune", "whisper_at", word.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, np.ndarray, Path]:
    """A shard set, features whose second layer tells the classes, and the cache of them."""
    folder = tmp_path_factory.mktemp("heads")
    convert("esc50", Esc50().list(synthesise(folder / "corpus", 60, seconds=0.2)), folder / "shards")
    index = Index.open(folder / "shards")
    random = np.random.default_rng(0)
    classes = np.array([int(index.label_ids(row)[0]) for row in range(len(index))])
    x = random.normal(size=(len(index), 3, 25, 16))
    x[:, 1] += random.normal(size=(len(CLASSES), 16))[classes][:, None]
    write_cache(folder / "cache", x, index.clip_id, keys=index.keys(), index=index.fingerprint)
    return index, x, folder / "cache"


def words(made: tuple[Index, np.ndarray, Path], runs: Path, *more: str) -> list[str]:
    line = ["whisper_at_esc10", f"data={made[0].folder}", f"features={made[2]}", f"run.folder={runs}", *SMALL]
    return [*line, *more]


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_a_head_learns_alike_at_any_world(made: tuple[Index, np.ndarray, Path], tmp_path: Path) -> None:
    for size in (1, 2):
        assert run(size, tune, words(made, tmp_path, f"run.name=of{size}")) == [0] * size
    rounds = [tmp_path / f"of{size}" / "test-1-seed-0" for size in (1, 2)]
    one, two = (losses(folder) for folder in rounds)
    assert len(one) == 5 * 6  # 48 clips in steps of 8, the last of them whole
    assert one == pytest.approx(two, rel=2e-5)
    assert np.mean(one[-6:]) < np.mean(one[:6]) - 0.1
    result = json.loads((rounds[0] / "result.json").read_text())
    assert result["score"] > 0.5
    records = [json.loads(line) for line in (rounds[1] / "metrics.jsonl").read_text().splitlines()]
    step = next(record for record in records if "bytes_per_second" in record)
    assert step["bytes_per_second"] / step["clips_per_second"] == pytest.approx(3 * 25 * 16 * 2)
    assert {"wait_share", "mixup/partner_holes", "train/accuracy"} <= set(step)
    state, note = load_weights(rounds[0] / "best.safetensors")
    assert note["head"]["dim"] == 8
    assert note["encoder"]["labels"] == list(CLASSES)
    head = open_tagger(rounds[0], layers=3)
    assert torch.equal(head.state_dict()["layer_tr.mlp.0.weight"], state["layer_tr.mlp.0.weight"])
    with np.load(rounds[0] / "scores.npz") as scores:  # the weights that are kept give the scores that are told
        found = head(torch.from_numpy(made[1][scores["row"]]).half().float()).detach().numpy()
        assert_close(found, scores["logits"], 1e-4)


def test_a_head_starts_from_another(made: tuple[Index, np.ndarray, Path], tmp_path: Path, capfd) -> None:
    theirs = Tagger(schema.Head("tl_tr", 8), 3, 16, 527, seed=5)
    save_weights(tmp_path / "public.safetensors", {f"at_model.{k}": v for k, v in theirs.state_dict().items()}, {})
    line = words(made, tmp_path, "epochs=1", "finetune.average_from=1", f"init={tmp_path / 'public.safetensors'}")
    [status] = run(1, tune, line)
    assert status == 0
    assert (tmp_path / "whisper_at_esc10" / "summary.json").exists()
    assert "## Classes" in (tmp_path / "whisper_at_esc10" / "report.md").read_text()


def test_a_cache_of_other_clips_is_refused_before_training(
    made: tuple[Index, np.ndarray, Path], tmp_path: Path, capsys
) -> None:
    index, x, _ = made
    ids, keys = np.asarray(index.clip_id), index.keys()
    write_cache(tmp_path / "other", x, ids, keys=keys, index="another")
    assert main([*words(made, tmp_path), f"features={tmp_path / 'other'}"]) == 2
    assert "index another" in capsys.readouterr().err
    assert main([*words(made, tmp_path), f"features={tmp_path / 'absent'}"]) == 2
    assert "no cache of features" in capsys.readouterr().err


def test_clips_that_the_cache_lacks_stop_the_run_and_holes_are_counted(
    made: tuple[Index, np.ndarray, Path], tmp_path: Path
) -> None:
    index, x, _ = made
    ids, keys = np.asarray(index.clip_id), index.keys()
    folds = np.asarray(index.columns["fold"])
    part = np.flatnonzero(np.arange(len(index)) != np.flatnonzero(folds == 2)[0])
    write_cache(
        tmp_path / "part", x[part], ids[part], rows=part, keys=[keys[row] for row in part], index=index.fingerprint
    )
    [answer] = run(1, tune, [*words(made, tmp_path, "run.name=part"), f"features={tmp_path / 'part'}"])
    assert answer == 2  # a sentence, no stack trace
    gone = int(np.flatnonzero(folds == 3)[0])
    hole = Hole(gone, keys[gone], "checksum")
    rest = np.arange(len(index)) != gone
    write_cache(tmp_path / "hole", x[rest], ids, rows=np.arange(len(index)), keys=keys, index=index.fingerprint,
                holes=[hole])  # fmt: skip
    line = [*words(made, tmp_path, "run.name=hole"), f"features={tmp_path / 'hole'}", "loader.max_holes=0.1"]
    assert run(1, tune, line) == [0]
    cache = FeatureCache(tmp_path / "hole")
    require_features(cache, index, index.table())
    with pytest.raises(FeatureError, match=f"no features of 1 of 60 clips to be scored, such as {keys[gone]}"):
        require_features(cache, index, index.table(), scored=True)
    records = [json.loads(text) for text in (tmp_path / "hole/test-1-seed-0/metrics.jsonl").read_text().splitlines()]
    assert max(record.get("holes", 0) for record in records) == 5  # one an epoch
