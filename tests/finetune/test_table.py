"""Table I of ASiT: each of its six data sets, in its own layout, through the recipe of its name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from gamut.models.vit import VisionTransformer
from gamut.models.weights import load_weights, save_weights
from gamut.recipe import schema
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import evaluation_policy, training_policy
from gamut.shards import Index
from gamut.shards.convert.speechcommands import COMMANDS
from tests.shards.layouts import convert, sound
from tests.train.ranks import run

from .tuning import tune

MODEL = schema.Model(dim=16, depth=1, heads=2, table_frames=592)
SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "step.packs=2", "epochs=2", "loader.workers=0"]
SMALL += ["track.mlflow=off", "run.threads=1", "finetune.evaluate_epochs=1"]


@dataclass(frozen=True)
class Row:
    """A column of Table I, and what else the paper and AST say of the set."""

    frames: int
    masks: tuple[int, int]
    mean: float
    std: float
    loss: str = "ce"
    mixup: float = 0.0
    lr: float = 1e-3
    weights: str = ""
    random: bool = False


AUDIOSET = Row(992, (192, 48), -4.2677393, 4.5689974, "bce", 0.5)
TABLE = {
    "as2m": Row(992, (192, 48), -4.2677393, 4.5689974, "bce", 0.5, 1e-4, "balanced"),
    "as20k": AUDIOSET,
    "as20k_s": AUDIOSET,
    "esc50": Row(496, (96, 24), -6.6268077, 5.358466),
    "scv2": Row(96, (48, 48), -6.845978, 5.5654526),
    "scv1": Row(96, (48, 48), -6.702, 5.448),
    "sid": Row(992, (192, 48), -6.370, 3.074, random=True),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_recipe_says_what_the_table_says(name: str) -> None:
    recipe, row = load_recipe("finetune", name), TABLE[name]
    policy = training_policy(recipe)
    assert (recipe.epochs, policy.packs * (policy.clips or 0)) == (60, 64)
    assert (policy.crop_frames, recipe.model.table_frames, policy.random_crop) == (row.frames, row.frames, row.random)
    assert not evaluation_policy(recipe).random_crop
    assert (recipe.augment.time_mask, recipe.augment.frequency_mask) == row.masks
    assert (recipe.front.mean, recipe.front.std) == (row.mean, row.std)
    assert (recipe.finetune.loss, policy.mixup, recipe.plan.weights) == (row.loss, row.mixup, row.weights)
    assert (recipe.optim.lr, recipe.optim.lr_base_batch) == (row.lr, 0)
    size = (384, 12, 6) if name.endswith("_s") else (768, 12, 12)
    assert (recipe.model.dim, recipe.model.depth, recipe.model.heads) == size


def audioset(src: Path) -> None:
    classes = [f'{number},/m/{number:05d},"class {number}"' for number in range(3)]
    src.mkdir()
    (src / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *classes]))
    for table, clips in (("balanced_train", 4), ("unbalanced_train", 6), ("eval", 5)):
        rows = ["# YTID, start_seconds, end_seconds, positive_labels"]
        for number in range(clips):
            video = f"{table[:4]}__{number:05d}"
            mids = ",".join(f"/m/{label:05d}" for label in {number % 3, (number * number) % 3})
            rows.append(f'{video}, 0.000, 10.000, "{mids}"')
            sound(src / table / f"{video}.flac", 0.3, seed=number)
        (src / f"{table}_segments.csv").write_text("\n".join(rows) + "\n")


def esc50(src: Path) -> None:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for number in range(20):
        fold, target = number % 5 + 1, number // 5
        name = f"{fold}-{number}-A-{target}.wav"
        rows.append(f"{name},{fold},{target},class {target},False,{number},A")
        sound(src / "audio" / name, 0.3, rate=44100, seed=number)
    (src / "meta").mkdir()
    (src / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")


def words(src: Path, names: tuple[str, ...]) -> None:
    """Of four speakers one is in the list for validation, one in that for testing."""
    for word in names:
        for speaker in range(4):
            sound(src / word / f"{speaker:08x}_nohash_0.wav", 0.2, seed=speaker)
    for table, speaker in (("validation", 0), ("testing", 1)):
        (src / f"{table}_list.txt").write_text("".join(f"{word}/{speaker:08x}_nohash_0.wav\n" for word in names))
    sound(src / "_background_noise_" / "tap.wav", 1.5)


def voxceleb(src: Path) -> None:
    lines = []
    for speaker in (10001, 10270, 10309):
        for video, split in (("train_a", 1), ("train_b", 1), ("dev", 2), ("test", 3)):
            lines.append(f"{split} id{speaker}/{video}/00001.wav")
            sound(src / "wav" / f"id{speaker}" / video / "00001.wav", 0.3, seed=speaker + split)
    (src / "iden_split.txt").write_text("\n".join(lines) + "\n")


LAYOUTS = {
    "audioset": audioset,
    "esc50": esc50,
    "speechcommands-v2": lambda src: words(src, ("backward", "go", "no")),
    "speechcommands-v1": lambda src: words(src, (*COMMANDS, "bed")),
    "voxceleb1": voxceleb,
}
DATA = {
    "as2m": "audioset", "as20k": "audioset", "esc50": "esc50", "scv2": "speechcommands-v2",
    "scv1": "speechcommands-v1", "sid": "voxceleb1",
}  # fmt: skip
TRAINED = {"as2m": 10, "as20k": 4, "esc50": 16, "scv2": 6, "scv1": 24, "sid": 6}  # clips


@dataclass(frozen=True)
class Place:
    """Shard sets of all layouts, a pretrained backbone, and the runs."""

    folder: Path

    def line(self, name: str, *more: str) -> list[str]:
        arguments = [name, f"data={self.folder / DATA[name]}", f"init={self.folder / 'objective.safetensors'}"]
        return [*arguments, f"run.folder={self.folder / 'runs'}", *SMALL, *more]

    def scores(self, run_name: str) -> tuple[dict, dict[str, np.ndarray]]:
        """Of a recipe's run on one rank, which is trained where it has not been; or of another run."""
        if run_name in DATA and not (self.folder / "runs" / run_name).exists():
            fold = ["folds.test=[[1]]"] if run_name == "esc50" else []
            assert run(1, tune, self.line(run_name, *fold)) == [0]
        summary = json.loads((self.folder / "runs" / run_name / "summary.json").read_text())
        with np.load(summary["rounds"][0]["scores"], allow_pickle=False) as scores:
            return summary, dict(scores)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("table")
    for name, make in LAYOUTS.items():
        make(folder / f"{name}-source")
        dataset = name.removesuffix("-v1").removesuffix("-v2")
        assert convert(dataset, folder / f"{name}-source", folder / name) == 0
    teacher = VisionTransformer(MODEL, seed=5).state_dict()
    save_weights(folder / "objective.safetensors", {f"teacher.backbone.{n}": t for n, t in teacher.items()}, {})
    return Place(folder)


SHORT = ("as20k", "scv2")


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in DATA]
)
def test_it_trains_on_the_official_clips_and_scores_the_official_clips(tuned: Place, name: str) -> None:
    summary, scores = tuned.scores(name)
    index, recipe = Index.open(tuned.folder / DATA[name]), load_recipe("finetune", name)
    (result,) = summary["rounds"]
    keys = [index.key(row) for row in index.where({recipe.folds.column: recipe.folds.test[0]})]
    assert list(scores["key"]) == keys
    assert result["clips"] == len(keys)
    positive = scores["target"].sum(1)
    if recipe.finetune.loss == "ce":
        assert (positive == 1).all()
        expected = (scores["logits"].argmax(1) == scores["target"].argmax(1)).mean()
    else:
        assert positive.max() == 2
        expected = average_precision_score(scores["target"], scores["logits"], average="macro")
    assert (summary["metric"], summary["mean"]) == (
        "accuracy" if recipe.finetune.loss == "ce" else "mAP",
        pytest.approx(expected, abs=1e-12),
    )
    folder = Path(result["scores"]).parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert all(math.isfinite(line["loss"]) for line in steps)
    clips_a_step = 8
    assert len(steps) == 2 * -(-TRAINED[name] // clips_a_step)
    chosen_on = load_weights(folder / "best.safetensors")[1]["chosen_on"]
    if recipe.folds.validation:
        assert chosen_on == f"validation folds {recipe.folds.validation[0]}"
        assert result["selected"] == f"epoch {result['best']['epoch']:.0f}, chosen on validation"
        validated = [line["validation/accuracy"] for line in lines if "validation/accuracy" in line]
        assert len(validated) == 2
        assert result["best"]["score"] == max(validated)
        assert result["best"]["epoch"] == 1 + validated.index(max(validated))
    else:
        assert (chosen_on[:10], result["selected"]) == ("test folds", "last epoch")


@pytest.mark.parametrize("name", ["as20k", pytest.param("scv2", marks=pytest.mark.long)])
def test_the_score_is_the_same_at_any_number_of_ranks(tuned: Place, name: str) -> None:
    """With a learning rate of 0 both score the same model: every clip once, and the same logits to the last bit."""
    still = ["optim.lr=0", "optim.lr_end=0", "precision=fp32", "epochs=1", "loader.packs_per_forward=2"]
    for ranks in (1, 2):
        assert run(ranks, tune, tuned.line(name, *still, f"run.name={name}_{ranks}")) == [0] * ranks
    (one, scored), (two, again) = (tuned.scores(f"{name}_{ranks}") for ranks in (1, 2))
    assert list(scored["key"]) == list(again["key"])
    assert np.array_equal(scored["target"], again["target"])
    assert np.array_equal(scored["logits"], again["logits"])
    assert one["mean"] == two["mean"]
    assert one["rounds"][0]["metrics"] == two["rounds"][0]["metrics"]
