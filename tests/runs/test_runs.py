"""Folders of runs: what is there is told from the files alone, and only what nobody needs goes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gamut.commands import ROOT
from gamut.evaluate.scores import Scores
from gamut.models.weights import load_weights, save_weights
from gamut.report.comparison import side_by_side
from gamut.report.sections import facts
from gamut.report.told import tell
from gamut.runs import prune
from gamut.runs.__main__ import main
from gamut.runs.standing import standing
from gamut.runs.words import SEEN, change, number, of_bytes
from gamut.track.checkpoints import KEPT, LATEST, Checkpoints, step_name
from gamut.track.run import METRICS, RECIPE, RECORD, RESULT, SCORES

FIXTURES = Path(__file__).parents[1] / "fixtures"
Told = Callable[..., str]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and a cache that an earlier version wrote, in the current folder."""
    for name in ("runs", "features"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """What a command prints, given the exit status that it must have."""

    def tell(*words: str, status: int = 0) -> str:
        assert main([*words]) == status
        printed = capsys.readouterr()
        return printed.out + printed.err

    return tell


def line(text: str, name: str) -> str:
    """The one line that begins with a name."""
    (found,) = [one for one in text.splitlines() if one.split()[:1] == [name]]
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def checkpoints(run: Path, *steps: int) -> Checkpoints:
    """The run's one checkpoint as that of several steps, `latest` being the last."""
    there = Checkpoints(run / "checkpoints")
    (first,) = there.saved()
    for step in steps:
        shutil.copytree(first, there.place(step))
    (there.folder / LATEST).write_text(f"{step_name(steps[-1])}\n")
    return there


@contextmanager
def going_on(run: Path) -> Iterator[None]:
    """Another process holds the run's lease."""
    code = (
        "import sys; from pathlib import Path; from gamut.files import lock\n"
        "file = Path(sys.argv[1])\n"
        "file.write_text('process 7 on here')\n"
        "with lock(file, inherited=False):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run / "lock")], cwd=ROOT, stdin=-1, stdout=-1, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.stdin.close()
        process.wait(30)


def test_runs_of_an_earlier_version_are_listed(runs: Path, told: Told) -> None:
    text = told("list")
    assert line(text, "asit").split()[1:8] == ["pretrain", "stopped", "2", "of", "2", "4", "loss"]
    assert line(text, "validated").split()[1:7] == ["finetune", "finished", "3", "of", "3,", "1"]
    assert "accuracy 16.7% *" in line(text, "validated")
    assert len([one for one in text.splitlines() if one]) == 8  # with a head, and what the asterisk means
    content = [json.loads(one) for one in told("list", "--json").splitlines()]
    by_name = {Path(one["path"]).name: one for one in content}
    assert by_name["last"]["rounds"][0]["scores"]["accuracy"] == pytest.approx(1 / 6)
    assert by_name["asit"]["scores"]["loss"] == pytest.approx(5.26, abs=0.01)
    everything = told("list", ".")
    assert "asit_esc50, 24 clips, fp32" in everything
    assert "step 4, after epoch 1.333" in told("list", "runs/asit/checkpoints")


def test_what_is_no_run_is_no_error(tmp_path: Path, told: Told) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / RECIPE).write_text("stage: pretrain\n")  # a recipe of one's own
    (tmp_path / "notes" / "manifest.json").write_text("{}")
    assert told("list", str(tmp_path)) == f"There are no runs, checkpoints or caches of features in {tmp_path}.\n"
    assert "is not a folder" in told("list", str(tmp_path / "absent"), status=2)
    assert "is not a run" in told("show", str(tmp_path / "empty"), status=2)
    assert "There is no run, checkpoint, cache of features or" in told("verify", str(tmp_path), status=2)
    empty = told("best", str(tmp_path), status=2)
    assert f"No run in {tmp_path} has a score. Scores there: none." in empty
    assert "nothing to remove" in told("prune", str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (RECIPE, "stage: [", "cannot be read"),
        (RECORD, "{", "run.json is damaged"),
        (METRICS, '{"attempt": 1, "time": 3.0, "step": 1, "loss": [2]}\nnonsense\n', "2 lines that cannot be read"),
        (KEPT, "7", ""),
    ],
)
def test_a_damaged_run_is_listed_with_what_is_wrong(runs: Path, told: Told, file: str, content: str, said: str) -> None:
    where = runs / "asit" / ("checkpoints" if file == KEPT else "") / file
    where.write_text(content)
    text = told("list")
    assert line(text, "asit")
    assert line(text, "oss").split()[2] == "stopped"
    assert said in text
    assert said in told("show", "runs/asit")
    if said:
        assert said in told("verify", status=1)
    if file == KEPT:  # what is to stay could not be told
        checkpoints(runs / "asit", 5, 6)
        assert "cannot be read" in told("prune", "runs/asit", "--yes")
        assert len(Checkpoints(runs / "asit" / "checkpoints").saved()) == 3


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ('"finished"', "finished"),
        ('"preempted"', "stopped"),
        ('"failed"', "failed"),
        ("", "killed"),
        (None, "not begun"),
    ],
)
def test_how_a_run_ended_is_told_by_its_last_line(runs: Path, end: str | None, state: str) -> None:
    metrics = runs / "asit" / METRICS
    lines = metrics.read_text().splitlines()[:-1]
    lines += [f'{{"attempt": 1, "time": 9.0, "event": "end", "status": {end}}}'] if end else []
    metrics.write_text("" if end is None else "\n".join(lines) + "\n")
    found = standing(runs / "asit")
    assert (found.state, found.problems) == (state, ())
    assert found.step == (0 if end is None else 4)


def test_a_run_that_goes_on_is_told_and_not_pruned(runs: Path, told: Told) -> None:
    there = checkpoints(runs / "asit", 5, 6)
    with going_on(runs / "asit"):
        assert line(told("list"), "asit").split()[2] == "running"
        assert "running (process 7 on here)" in told("show", "runs/asit")
        assert "is in use by process 7 on here: left alone" in told("prune", "runs/asit", "--yes")
        assert len(there.saved()) == 3
        idle = prune.Plan(runs / "asit", (prune.Spare(there.place(4), "old", 1),))  # made before it was started
        assert prune.carry_out([idle]) == (0, [f"{runs / 'asit'} has been started meanwhile: left alone"])
    assert line(told("list"), "asit").split()[2] == "stopped"


def test_the_newest_good_checkpoint_stays_and_what_goes_is_asked_for(
    runs: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = checkpoints(runs / "asit", 5, 6, 7, 8)
    there.keep(step_name(5), 1)
    flip(there.place(8) / "model.safetensors")
    (there.folder / ".saving-step-00000009").mkdir()
    (there.folder / "latest.12.partial").write_text("x")
    shutil.copytree(there.place(4), there.folder / "damaged-step-00000003")
    monkeypatch.setattr("builtins.input", lambda _: "n")
    text = told("prune")
    assert "keeps step-00000007, and leaves step-00000008, which does not verify" in text
    assert "Nothing was removed." in text
    assert len(there.saved()) == 5
    monkeypatch.setattr("builtins.input", lambda _: "y")
    before = sum(file.stat().st_size for file in runs.rglob("*") if file.is_file())
    assert "freed" in told("prune")
    assert [path.name[-1] for path in there.saved()] == ["8", "7", "5"]
    left = sorted(path.name for path in there.folder.iterdir() if not path.name.startswith("step-"))
    assert left == [KEPT, LATEST]
    after = sum(file.stat().st_size for file in runs.rglob("*") if file.is_file())
    assert after < before - 2 * 300_000
    assert (runs / "validated" / "test-4-seed-0" / "best.safetensors").exists()
    assert "nothing to remove" in told("prune")


def test_what_latest_names_is_there_after_a_pruning(runs: Path, told: Told) -> None:
    there = checkpoints(runs / "asit", 5, 6)
    (there.folder / LATEST).write_text("step-00000004\n")
    told("prune", "runs/asit", "--yes")
    assert [path.name for path in there.saved()] == ["step-00000006"]
    assert there.newest() == there.place(6)


def test_checkpoints_are_pruned_by_their_folder_and_copies_of_them_are_left_alone(runs: Path, told: Told) -> None:
    there = checkpoints(runs / "asit", 5)
    shutil.copytree(there.folder, runs.parent / "copies")
    assert told("prune", "copies", "--yes").count("outside of a run: left alone") == 2
    assert len(Checkpoints(runs.parent / "copies").saved()) == 2
    one = told("prune", "runs/asit/checkpoints/step-00000005", "--yes", status=2)
    assert "is one checkpoint of the run" in one
    assert len(there.saved()) == 2
    assert "freed" in told("prune", "runs/asit/checkpoints", "--yes")
    assert [path.name for path in there.saved()] == ["step-00000005"]


def test_without_a_good_checkpoint_nothing_goes(runs: Path, told: Told) -> None:
    there = checkpoints(runs / "asit", 5)
    for path in there.saved():
        flip(path / "state.json")
    assert "none of its checkpoints verifies (step-00000005, step-00000004)" in told("prune", "runs/asit", "--yes")
    assert len(there.saved()) == 2


def test_nobody_there_to_answer_is_a_no(runs: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    there = checkpoints(runs / "asit", 5)

    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    assert "Nothing was removed." in told("prune")
    assert len(there.saved()) == 2


def test_leftovers_of_a_cache_go_unless_their_shard_is_being_made(runs: Path, told: Told) -> None:
    (cache,) = (runs.parent / "features" / "asit_esc50").iterdir()
    left, made = cache / "000000.safetensors.9.partial", cache / "000001.safetensors.9.partial"
    left.write_text("x")
    made.write_text("x")
    (cache / "locks").mkdir(exist_ok=True)
    code = "import sys; from pathlib import Path; from gamut.files import lock\n"
    code += "with lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    maker = [sys.executable, "-c", code, str(cache / "locks" / "000001")]
    with subprocess.Popen(maker, cwd=ROOT, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        told("prune", "features", "--yes")
        assert process.stdin
        process.stdin.close()
    assert not left.exists()
    assert made.exists()


def test_what_is_damaged_is_named(runs: Path, told: Told) -> None:
    assert "6 runs, 6 checkpoints, 3 files of weights, 1 caches looked at: all as written" in told("verify", ".")
    weights = runs / "oss" / "checkpoints" / "step-00000004" / "engine" / "moments-00000.safetensors"
    flip(weights)
    (shard,) = (runs.parent / "features").glob("*/*/000000.safetensors")
    flip(shard)
    best = runs / "head" / "test-4-seed-0" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-9])
    other = runs / "validated" / "test-4-seed-0" / "best.safetensors"
    save_weights(other, *load_weights(other))  # that of the fixture is of before it had a hash
    flip(other)
    text = told("verify", ".", status=1)
    assert f"{weights.relative_to(runs.parent)} is damaged: its sha256 is not that of the manifest" in text
    assert "best.safetensors is not a whole safetensors file" in text
    assert f"{other.relative_to(runs.parent)} is damaged" in text
    assert "4 damaged" in text
    assert str(shard.relative_to(runs.parent)) in text
    assert "1 damaged" in told("verify", "runs/oss/checkpoints/step-00000004", status=1)


def test_recipes_are_compared_as_a_diff_and_scores_with_an_interval(runs: Path, told: Told) -> None:
    for name, gain in (("last", 9.0), ("validated", 0.0)):
        target = np.eye(6, dtype=np.float32)[np.arange(60) % 6]
        logits = np.random.default_rng(0).normal(size=target.shape).astype(np.float32) + gain * target
        folder = runs / name / "test-4-seed-0"
        Scores(np.arange(60), target, logits).save(folder / SCORES, list("abcdef" * 10), np.arange(60))
        result = json.loads((folder / RESULT).read_text())
        result["score"] = result["metrics"]["accuracy"] = float((logits.argmax(1) == target.argmax(1)).mean())
        (folder / RESULT).write_text(json.dumps(result))
    text = told("compare", "runs/validated", "runs/last")
    assert "- folds.validation: [3]\n+ folds.validation: null\n" in text
    assert "without an effect on numbers: run.name" in text
    interval = text.splitlines()[-1]
    assert interval.startswith("test-4-seed-0: accuracy +")
    assert "paired bootstrap 95 % interval [+" in interval
    assert "The same" not in text
    rows = [one.split() for one in text.splitlines()]
    (shown,) = [one for one in rows if one[:1] == ["accuracy"]]
    assert [shown.pop(at) for at in (4, 2)] == ["*", "*"]  # both are scored on clips that were heard before
    before, after, difference = (float(one.removesuffix("%")) for one in shown[1:4])
    assert shown[2:] == ["100.0%", f"{difference:+.1f}", "points"]
    assert difference == pytest.approx(after - before, abs=0.11)
    best = told("best", "--by", "accuracy").split("\n\n")[0].splitlines()
    assert best[2].split() == ["100.0%", "*", "runs/last", "finished"]
    assert best[-1].startswith("weights: runs/last/test-4-seed-0/checkpoints/step-00000009")
    other = told("compare", "runs/asit", "runs/last")  # of another stage
    assert "- stage: pretrain\n+ stage: finetune\n" in other


def test_the_best_is_the_lowest_loss_of_the_runs_on_the_same_data(runs: Path, told: Told) -> None:
    metrics = runs / "oss" / METRICS
    metrics.write_text(metrics.read_text().replace('"loss": 5.', '"loss": 3.'))
    best = told("best", "--by", "loss")
    first = next(part for part in best.split("\n\n") if part.startswith("loss, pretrain on shards"))
    assert first.splitlines()[2].split()[1] == "runs/oss"
    text = told("best", "--by", "mAP", status=2)
    assert "No run in runs has a score mAP. Scores there: accuracy, loss" in text


def test_scores_on_clips_that_were_heard_before_are_marked(runs: Path, told: Told) -> None:
    """Wherever they are shown, with what it means; others are not."""
    for name, seen in (("last", 4), ("validated", 0)):
        place = runs / name / "test-4-seed-0" / RESULT
        place.write_text(json.dumps(json.loads(place.read_text()) | {SEEN: seen}))
    note = "* 4 scored clips were trained on before, by the run behind init"
    for words in (("list",), ("best", "--by", "accuracy"), ("compare", "runs/validated", "runs/last")):
        text = told(*words)
        assert text.count("% *") == 1, text
        assert text.count(note) == 1
    assert told("show", "runs/last").count("% *") == 2  # of the run, and of its round
    assert "*" not in told("show", "runs/validated")
    paged = "".join(map(str, facts(tell(runs / "last"))))
    assert "% *" in paged
    assert note in paged
    assert "*" not in "".join(map(str, facts(tell(runs / "validated"))))
    both = "".join(map(str, side_by_side([tell(runs / name) for name in ("validated", "last")])))
    assert (both.count("% *"), both.count(note)) == (1, 1)


def test_a_fine_tuning_with_rounds_to_come_is_not_finished(runs: Path) -> None:
    (runs / "last" / "summary.json").unlink()
    assert standing(runs / "last", [runs / "last" / "test-4-seed-0"]).state == "stopped"


def test_a_long_history_is_read_from_its_end(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = standing(runs / "asit")
    monkeypatch.setattr("gamut.runs.standing.TAIL", 1500)
    monkeypatch.setattr("gamut.runs.standing.recent.__defaults__", (1500,))
    tail = standing(runs / "asit")
    assert (tail.state, tail.step, tail.scores["loss"]) == (whole.state, whole.step, whole.scores["loss"])


def test_a_difference_has_the_unit_of_its_scores() -> None:
    assert (number("test/mAP", 0.5), change("test/mAP", 0.012)) == ("50.0%", "+1.2 points")
    assert (number("probe/linear/cls", 0.5), change("probe/linear/cls", -0.25)) == ("50.0%", "-25.0 points")
    assert (number("AUC", 0.5), change("AUC", -0.034)) == ("0.5", "-0.034")
    assert (number("loss", 5.25), change("loss", 0.25)) == ("5.25", "+0.25")


def test_sizes_in_words() -> None:
    assert [of_bytes(n) for n in (0, 999, 1500, 120_000, 3.2e9, 4e12)] == [
        *("0 B", "999 B", "1.5 kB", "120 kB", "3.2 GB", "4 TB")
    ]
