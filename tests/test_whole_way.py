"""From audio files to a fine-tuned classifier through the commands that people type."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gamut.shards import Index
from gamut.track.metrics import History
from launchers.corpus import CLASSES, synthesise

from . import warm
from .servers import http_server

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["epochs=3", "step.packs=4", "step.clips=3", "loader.packs_per_forward=2", "loader.workers=1", "run.threads=1"]
SMALL += [
    "model.dim=48",
    "model.depth=2",
    "asit.hidden=32",
    "asit.bottleneck=16",
    "asit.prototypes=32",
    "optim.lr=3e-3",
]


def command(*words: str, ranks: int = 0, ok: int = 0, timeout: float = 900) -> str:
    """Run `python WORDS` (or `deepspeed WORDS` on several ranks) in the repository; returns what it printed."""
    line = [warm.python(), *words] if not ranks else deepspeed_line(ranks, *words)
    done = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == ok, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def deepspeed_line(ranks: int, *words: str) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_gpus", str(ranks), "--master_port", str(port), *words]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"DS_ACCELERATOR": "cpu", "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def history(folder: Path) -> dict[int, dict[str, float]]:
    """Metrics by step; the last attempt of a step wins."""
    steps: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "step" in record and "loss" in record:
            steps[record["step"]] = record
    return steps


def tensors(folder: Path, name: str) -> dict[str, np.ndarray]:
    latest = (folder / "checkpoints" / "latest").read_text().strip()
    return load_file(folder / "checkpoints" / latest / name)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole_way")
    synthesise(folder / "corpus", 60, seconds=1.2)
    command("-m", "gamut.shards", "convert", "esc50", str(folder / "corpus"), str(folder / "shards"))
    command("-m", "gamut.shards", "stats", str(folder / "shards"))
    return folder / "shards"


def arguments(shards: Path, runs: Path, name: str, *more: str) -> list[str]:
    line = ["pretrain/run.py", "demo", f"data={shards}", f"run.folder={runs}", f"run.name={name}", *SMALL]
    unseen = ["track.mlflow=off", "track.picture_epochs=0", "probe.every_epochs=0"]
    return [*line, "subset.fold=[1,2,3,4,5]", *unseen, *more]


@pytest.fixture(scope="session")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, and that is probed, drawn and in MLflow: its equals are not."""
    runs = tmp_path_factory.mktemp("runs")
    seen = ("track.mlflow=auto", "track.picture_epochs=10")
    printed = command(*arguments(shards, runs, "reference", "probe.every_epochs=2", *seen))
    assert "probe: 6 classes of" in printed
    assert "60 clips scored in 5 folds" in printed
    assert re.search(r"the last probe: k-NN .*%.*\(mean\).*; linear .*%.*\(logmel\)", printed)
    return runs / "reference"


@pytest.mark.parametrize("refused", ["two", pytest.param("all", marks=pytest.mark.long)])
def test_a_run_goes_on_with_what_may_change_and_with_nothing_else(
    shards: Path, reference: Path, tmp_path: Path, refused: str
) -> None:
    """The table of docs/training.md: from the same checkpoint to the same weights, or a sentence."""
    folder = tmp_path / "again"
    command(*arguments(shards, tmp_path, "again", "checkpoint.every_epochs=1"))
    shutil.rmtree(folder / "checkpoints" / "step-00000015")
    line = arguments(shutil.copytree(shards, tmp_path / "moved"), tmp_path, "again")
    refusals = (
        (
            "engine=oss",
            "engine: 'deepspeed' -> 'oss'), which decides its numbers. To go on with it, set engine=deepspeed.",
        ),
        (f"init={reference}", f"init: '' -> '{reference}'), which decides its numbers. To go on with it, set init=. "),
        ("deepspeed.zero_optimization.stage=2", "To go on with it, set deepspeed.zero_optimization.stage=1."),
        ("precision=bf16", "To go on with it, set precision=fp32."),
        ("subset.fold=[1,2]", "To go on with it, set subset.fold=[1,2,3,4,5]."),
    )
    for change, said in refusals[: 2 if refused == "two" else None]:
        printed = command(*line, change, ok=2)
        assert said in printed
        assert f"init={folder} starts it from this one's weights" in printed
    assert not (folder / "checkpoints" / "step-00000015").exists()
    free = ["deepspeed.zero_optimization.reduce_bucket_size=5000", "deepspeed.zero_optimization.overlap_comm=false"]
    free += ["deepspeed.wall_clock_breakdown=true", "loader.workers=0", "loader.prefetch=1", "checkpoint.keep=9"]
    free += ["guard.policy=stop", "compute.activations=recompute", "dataset=folder", "remote.tries=2"]
    assert "finished" in command(*line, *free)
    for name in ("model.safetensors", "objective.safetensors"):
        expected = tensors(reference, name)
        for key, value in tensors(folder, name).items():
            assert value.tobytes() == expected[key].tobytes(), (name, key)


def test_the_corpus_became_shards(shards: Path) -> None:
    index = Index.open(shards)
    assert len(index) == 60
    assert index.labels == CLASSES
    assert index.statistics() is not None


def test_pretraining_logs_checkpoints_and_draws(reference: Path) -> None:
    steps = history(reference)
    assert sorted(steps) == list(range(1, 16))  # 60 clips, 12 a step, 3 epochs
    wanted = {
        "loss", "loss/reconstruction", "loss/local", "loss/global", "lr", "weight_decay", "teacher/momentum",
        "teacher/entropy", "gradient_norm", "clips_per_second", "tokens_per_second", "padding_share", "wait_share",
    }  # fmt: skip
    assert wanted <= set(steps[5]), wanted - set(steps[5])
    rebuilt = [steps[step]["loss/reconstruction"] for step in sorted(steps)]
    assert np.mean(rebuilt[-5:]) < np.mean(rebuilt[:5])
    figures = {path.name for path in (reference / "figures").iterdir()}
    assert {
        f"{name}-0000015.png" for name in ("masks-0", "reconstruction-0", "attention-0", "attention-1", "embedding")
    } < figures
    assert any(name.startswith("teacher.backbone.") for name in tensors(reference, "objective.safetensors"))
    assert "## Masks and reconstructions" in (reference / "report.md").read_text()


def test_probes_are_in_the_record_with_their_reference_lines(reference: Path) -> None:
    probes = History.read(reference / "metrics.jsonl")
    for how in ("knn", "linear"):
        for kind in ("cls", "mean", "both"):
            assert probes.series(f"probe/{how}/{kind}")[0] == [0, 10, 15]
        assert probes.series(f"probe/{how}/logmel")[0] == [0]
    assert probes.series("probe/linear/logmel")[1][0] > 0.3  # of six classes
    assert probes.series("probe/seconds")[0] == [10, 15]
    assert not probes.points.get("probe/failures")


@pytest.mark.parametrize("when", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_killed_at_a_random_moment_it_goes_on_bit_for_bit(
    shards: Path, reference: Path, tmp_path: Path, when: str
) -> None:
    chance = random.Random(when)
    line = arguments(shards, tmp_path, "killed", "checkpoint.every_epochs=0.4")
    for _ in range(1 if when == "short" else 5):
        process = subprocess.Popen(
            [sys.executable, *line], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        metrics = tmp_path / "killed" / "metrics.jsonl"
        seen = len(history(tmp_path / "killed")) if metrics.exists() else 0
        goal = seen + chance.randint(3, 7)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and len(history(tmp_path / "killed")) >= min(goal, 14):
                time.sleep(chance.random() * 0.2)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        assert process.wait(60) == -signal.SIGKILL
    command(*line)
    assert_same(reference, tmp_path / "killed")


def assert_same(one: Path, other: Path) -> None:
    """Every number of every step and every weight, bit for bit."""
    expected, got = history(one), history(other)
    assert sorted(got) == sorted(expected)
    for step in expected:
        for name in ("loss", "loss/reconstruction", "loss/local", "loss/global", "gradient_norm", "lr"):
            assert got[step][name] == expected[step][name], (step, name)
    for file in ("model.safetensors", "objective.safetensors", "rank-00000.safetensors"):
        left, right = tensors(one, file), tensors(other, file)
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_a_scheduler_that_warns_every_process_of_the_job_has_it_saved(
    shards: Path, reference: Path, tmp_path: Path
) -> None:
    line = arguments(shards, tmp_path, "warned", "loader.workers=2")
    process = subprocess.Popen(
        [sys.executable, *line], cwd=ROOT, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    metrics = tmp_path / "warned" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (metrics.exists() and len(history(tmp_path / "warned")) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert "The same command goes on from where this one was stopped." in printed
    assert len(history(tmp_path / "warned")) < 15
    command(*line)
    assert_same(reference, tmp_path / "warned")


def test_shards_behind_http_train_the_same_model(shards: Path, reference: Path, tmp_path: Path) -> None:
    with http_server(shards) as server:
        line = arguments(shards, tmp_path, "remote", f"remote.cache={tmp_path / 'cache'}", "remote.piece_mb=0.2")
        command(*[f"data={server.url}" if word.startswith("data=") else word for word in line])
        ranges = server.seen()
    assert len(ranges) > 1
    assert all(ranges)  # pieces, and no tar as a whole
    assert server.sent < 2 * sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())  # three epochs
    assert_same(reference, tmp_path / "remote")


def test_two_ranks_equal_one_rank_that_accumulates(shards: Path, tmp_path: Path) -> None:
    """Loss within 1e-6 relative for 20 steps, weights after 5 steps within 0.02 x learning rate, drop-path included."""
    more = ["loader.packs_per_forward=1", "step.packs=2", "step.clips=3", "epochs=2", "optim.warmup_epochs=0"]
    more += ["checkpoint.every_epochs=0.5", "checkpoint.keep=10"]  # ten steps an epoch: step 5 is one of them
    command(*arguments(shards, tmp_path, "two", *more), ranks=2)
    command(*arguments(shards, tmp_path, "one", *more))
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert sorted(one) == sorted(two) == list(range(1, 21))
    for step in one:
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-6), step
    weights = [
        load_file(tmp_path / run / "checkpoints" / "step-00000005" / "model.safetensors") for run in ("one", "two")
    ]
    for name, value in weights[0].items():
        other = weights[1][name]
        if name.endswith("attn.qkv.bias"):  # the key bias has no true gradient: Adam amplifies its rounding
            third = len(value) // 3
            value, other = np.delete(value, slice(third, 2 * third)), np.delete(other, slice(third, 2 * third))
        assert np.abs(value - other).max() <= 0.02 * one[5]["lr"], name


def test_fine_tuning_scores_folds_and_does_not_repeat_itself(shards: Path, reference: Path, tmp_path: Path) -> None:
    line = [
        "finetune/run.py",
        "demo",
        f"data={shards}",
        f"run.folder={tmp_path}",
        "run.name=tuned",
        f"init={reference}",
    ]
    line += [word for word in SMALL if not word.startswith("asit")] + ["folds.test=[[1],[4,5]]", "folds.train=null"]
    line += ["track.mlflow=off"]
    printed = command(*line)
    assert "teacher.backbone" in printed
    summary = json.loads((tmp_path / "tuned" / "summary.json").read_text())
    assert "## Confusion" in (tmp_path / "tuned" / "report.md").read_text()
    assert [entry["test"] for entry in summary["rounds"]] == [[1], [4, 5]]
    assert summary["clips"] == 12 + 24
    assert summary["seen_in_pretraining"] == 12 + 24  # the reference run was pretrained on all folds, and it says so
    assert "the pretraining saw 24 of the 24 clips that are scored" in printed
    assert summary["mean"] == pytest.approx(np.mean([entry["score"] for entry in summary["rounds"]]))
    for entry in summary["rounds"]:
        with np.load(entry["scores"], allow_pickle=False) as scores:
            accuracy = (scores["logits"].argmax(1) == scores["target"].argmax(1)).mean()
            assert entry["score"] == pytest.approx(accuracy)
            assert all(key.split("-")[0] in map(str, entry["test"]) for key in scores["key"])
        assert np.sum(entry["confusion"]) == entry["clips"]
        assert (Path(entry["scores"]).parent / "best.safetensors").exists()
    assert (tmp_path / "tuned" / "figures" / "confusion.png").stat().st_size > 5_000
    before = (tmp_path / "tuned" / "test-1-seed-0" / "metrics.jsonl").read_bytes()
    command(*line)
    assert (tmp_path / "tuned" / "test-1-seed-0" / "metrics.jsonl").read_bytes() == before


@pytest.mark.long
def test_the_score_over_epochs_of_pretraining(shards: Path, tmp_path: Path) -> None:
    """Two epochs that are kept, and the beginning: three fine-tunings, each once."""
    command(*arguments(shards, tmp_path, "kept", "epochs=2", "checkpoint.keep_every=1", "checkpoint.keep=1"))
    line = ["finetune/curve.py", str(tmp_path / "kept"), "demo", "--zero", "--jobs", "2", f"data={shards}"]
    line += [word for word in SMALL if not word.startswith(("asit", "run.threads"))] + ["folds.test=[[5]]", "epochs=1"]
    assert "from 3 checkpoints" in command(*line)
    out = tmp_path / "kept" / "curve-demo"
    report = json.loads((out / "curve.json").read_text())
    assert list(report["scores"]) == ["0", "1", "2"]
    for epochs, (score,) in report["scores"].items():
        summary = json.loads((out / f"epoch-{int(epochs):04d}" / "summary.json").read_text())
        assert summary["mean"] == pytest.approx(score)
    assert (out / "curve.png").stat().st_size > 5_000
    begun = [path.stat().st_mtime_ns for path in sorted(out.glob("epoch-*/summary.json"))]
    command(*line)
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("epoch-*/summary.json"))] == begun


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain/run.py", "asit_tinny"], "asit_tiny"),
        (["pretrain/run.py", "asit_tiny", "optim.weight_decai=1"], "weight_decay"),
        (["pretrain/run.py", "asit_tiny", "epochs=many"], "epochs"),
        (["pretrain/run.py", "asit_tiny", "data=/nowhere"], "gamut.shards convert esc50"),
        (["pretrain/run.py"], "asit_tiny"),
        (["finetune/run.py", "demo", "data={shards}", "folds.test=[[9]]"], "9"),
        (["finetune/run.py", "demo", "data={shards}", "init=/nowhere", "run.folder={tmp}"], "/nowhere"),
        (["-m", "gamut.shards", "convert", "esc50", "/nowhere", "{tmp}/out"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(words: list[str], said: str, shards: Path, tmp_path: Path) -> None:
    printed = command(*[word.format(shards=shards, tmp=tmp_path) for word in words], ok=2)
    assert said in printed
    assert "Traceback" not in printed


def test_a_dry_run_prints_the_plan_and_writes_nothing(shards: Path, tmp_path: Path) -> None:
    printed = command(*arguments(shards, tmp_path, "dry", "--dry-run", "--full"))
    assert "5 an epoch, 15 in 3 epochs" in printed
    assert "prototypes: 32" in printed
    assert not {"folds:", "augment:", "extract:"} & set(printed.splitlines())  # sections of other stages
    for row in ("parameters", "memory a rank", "time", "at least"):
        assert row in printed
    assert not (tmp_path / "dry").exists()
