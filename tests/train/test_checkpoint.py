"""A checkpoint is whole or it is not there; a damaged one is caught before anybody interprets a byte of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import crash_points, on_a_small_disk, partly, saved_then, staged, while_writing, without_power
from deepspeed.runtime.zero.config import ZeroStageEnum
from ranks import Ranks, run
from safetensors.torch import load_file
from toy import teach, toy_recipe

from gamut.errors import CheckpointError
from gamut.recipe import schema
from gamut.track.checkpoints import Checkpoints, verify
from gamut.train.restore import newest_verified
from gamut.train.storage import ALLOWED, Reader, Writer
from gamut.unpickle import unpickle

OFTEN = toy_recipe()  # every second step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """(a run folder with the checkpoints of steps 4, 6 and 7, how the run ends when it is not stopped)."""
    folder = tmp_path_factory.mktemp("whole")
    run(1, partly, folder / "run", OFTEN)
    return folder / "run", run(1, teach, folder / "reference", OFTEN)[0]


@pytest.fixture
def checkpoints(whole: tuple[Path, dict], tmp_path: Path) -> Path:
    return shutil.copytree(whole[0], tmp_path / "run") / "checkpoints"


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_what_a_checkpoint_holds(checkpoints: Path) -> None:
    assert [path.name for path in Checkpoints(checkpoints).saved()] == [
        "step-00000007",
        "step-00000006",
        "step-00000004",
    ]
    newest = Checkpoints(checkpoints).saved()[0]
    manifest = verify(newest)
    names = {str(path.relative_to(newest)) for path in files_of(newest)}
    assert names == set(manifest["files"]) | {"manifest.json"}
    assert {n for n in names if not n.startswith("engine/")} == {
        "manifest.json", "model.safetensors", "objective.safetensors", "rank-00000.safetensors", "state.json",
    }  # fmt: skip
    assert not any(name.endswith(".py") for name in names)
    for name, entry in manifest["files"].items():
        data = (newest / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert set(load_file(newest / "model.safetensors")) == {
        "first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight",
    }  # fmt: skip
    assert "centre" in load_file(newest / "objective.safetensors")
    assert json.loads((newest / "state.json").read_bytes())["state"]["step"] == 7
    assert os.stat(newest).st_mode & 0o077 == 0


def test_any_damage_to_any_file_is_caught_and_the_one_before_is_taken(
    checkpoints: Path, capsys: pytest.CaptureFixture
) -> None:
    newest = Checkpoints(checkpoints).saved()[0]
    for name in [str(path.relative_to(newest)) for path in files_of(newest)]:
        for kind in ("truncated", "emptied", "flipped", "removed"):
            place = shutil.copytree(checkpoints, checkpoints.with_name(f"{name}-{kind}".replace("/", "-")))
            path = place / newest.name / name
            data = bytearray(path.read_bytes())
            if kind == "removed":
                path.unlink()
            else:
                data[len(data) // 2] ^= 4 if kind == "flipped" else 0
                path.write_bytes(data[: {"truncated": len(data) - 1, "emptied": 0, "flipped": len(data)}[kind]])
            found = newest_verified(place)
            assert found is not None, (name, kind)
            assert found[0].name == "step-00000006", (name, kind)
            said = capsys.readouterr().out
            assert "passed over" in said
            assert name in said or name == "manifest.json", (name, kind)
            assert (place / "damaged-step-00000007").is_dir(), (name, kind)


def test_a_damaged_run_goes_on_from_the_one_before_to_the_same_end(whole: tuple[Path, dict], checkpoints: Path) -> None:
    path = checkpoints / "step-00000007" / "objective.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    ranks = Ranks(1, teach, checkpoints.parent, OFTEN)
    answer = ranks.wait()[0]
    assert "step-00000007" in ranks.log()
    assert "passed over" in ranks.log()
    assert answer["lines"][0][0] == 7  # the seventh step again
    for part in ("weights", "extra"):
        for name, value in answer[part].items():
            assert value.tobytes() == whole[1][part][name].tobytes()


def test_nothing_but_damaged_ones_is_an_error_and_never_a_fresh_start(checkpoints: Path) -> None:
    for checkpoint in Checkpoints(checkpoints).saved():
        (checkpoint / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="No checkpoint in") as caught:
        newest_verified(checkpoints)
    for step in ("step-00000004", "step-00000006", "step-00000007"):
        assert step in str(caught.value)
    answer = Ranks(1, teach, checkpoints.parent, OFTEN).wait()[0]
    assert isinstance(answer, CheckpointError)
    for checkpoint in Checkpoints(checkpoints).saved():
        shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match="all are gone"):
        newest_verified(checkpoints)


def test_no_checkpoint_yet_is_a_fresh_start(tmp_path: Path) -> None:
    assert newest_verified(tmp_path) is None
    assert newest_verified(tmp_path / "absent") is None


def test_death_at_every_point_of_a_save(tmp_path: Path) -> None:
    answers = run(1, crash_points, tmp_path, toy_recipe(checkpoint=replace(OFTEN.checkpoint, keep=2)), 4)[0]
    *deaths, (survived, name, latest) = answers
    assert (survived, name, latest) == ("", "step-00000006", "step-00000006")
    places = [place for place, _, _ in deaths]
    for action in ("write", "fsync", "rename"):
        assert f"{action} manifest.json" in places
        assert f"{action} latest" in places
    assert "rename step-00000006" in places
    published = places.index("rename step-00000006")
    for number, (place, name, latest) in enumerate(deaths):
        assert name == ("step-00000004" if number <= published else "step-00000006"), place
        renamed = number > places.index("rename latest")
        assert latest == ("step-00000006" if renamed else "step-00000004"), place
    assert len(deaths) > 25


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("full", ["Rank 1", "rank-00001.safetensors", "No space left"]),
        ("engine full", ["Rank 1", "engine", "No space left"]),
        ("manifest", ["Rank 0", "manifest.json", "Read-only"]),
    ],
)
def test_a_failed_write_ends_all_ranks_and_leaves_the_last_checkpoint(
    tmp_path: Path, fault: str, words: list[str]
) -> None:
    answers = run(2, saved_then, tmp_path, OFTEN, 4, fault)
    for answer in answers:
        for word in [*words, "bytes wanted", "bytes free"]:
            assert word in answer, answer
    found = newest_verified(tmp_path / "checkpoints")
    assert found is not None
    assert found[0].name == "step-00000004"
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000004\n"


@pytest.mark.parametrize("stage", [1, "oss"])
def test_a_published_checkpoint_survives_the_power(tmp_path: Path, stage: int | str) -> None:
    answer = run(1, without_power, tmp_path / "run", staged(stage))[0]
    assert answer == ("step-00000004", "step-00000004\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.parametrize(("left", "looked"), [(16 << 10, True), (32 << 10, False)])
def test_a_disk_that_fills_in_mid_run(tmp_path: Path, whole: tuple[Path, dict], left: int, looked: bool) -> None:
    """A checkpoint has 29 kB, which take 40 there. Where it has no room it is not begun; else a write meets the end."""
    said, answer = run(1, on_a_small_disk, tmp_path / "run", OFTEN, left)[0]
    assert len(said) == 2
    for each in said:
        if not looked:
            assert re.search(r"Rank 0: .*/checkpoints/\S+ cannot be written: No space left on device \(", each)
            assert re.search(r"\(\d[\d,]* bytes wanted, [\d,]+ bytes free\)", each)
        else:
            assert re.search(
                r"A checkpoint takes \d[\d,]* bytes, and the file system of .* has [\d,]+ bytes free", each
            )
        assert "The earlier checkpoints are untouched" in each
    for part in ("weights", "extra"):
        for name, value in answer[part].items():
            assert value.tobytes() == whole[1][part][name].tobytes(), name


@pytest.mark.parametrize("stage", [1, *(pytest.param(stage, marks=pytest.mark.long) for stage in (3, "oss"))])
def test_steps_are_taken_while_a_checkpoint_is_written(tmp_path: Path, stage: int | str) -> None:
    """It is of the step it was taken at, bit for bit, and the one after it does not overtake it."""
    recipe = staged(stage)
    expected = run(2, partly, tmp_path / "reference", recipe)
    assert expected == ["preempted"] * 2
    answers = run(2, while_writing, tmp_path / "run", replace_keep(recipe, 9), "step-00000006", 7, 60.0)
    assert [answer["latest"] for answer in answers] == [["step-00000004"]] * 2  # at the beginning of the eighth step
    assert answers[0]["saved"] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    of = [verify(tmp_path / name / "checkpoints" / "step-00000006")["files"] for name in ("reference", "run")]
    for name, entry in of[0].items():
        assert name == "state.json" or entry == of[1][name], name


def replace_keep(recipe: schema.Recipe, keep: int) -> schema.Recipe:
    return replace(recipe, checkpoint=replace(recipe.checkpoint, keep=keep))


def test_two_checkpoints_are_never_written_at_once_and_one_that_waits_says_so(tmp_path: Path) -> None:
    ranks = Ranks(1, while_writing, tmp_path, OFTEN, "step-00000006", 99, 0.3)
    answer = ranks.wait()[0]
    assert "step 8: a checkpoint waits for step-00000006 to be written" in ranks.log()
    assert answer["saved"] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path, rank: int) -> None:
    answers = Ranks(2, while_writing, tmp_path / "run", OFTEN, "step-00000006", 7, 60.0, rank).wait()
    assert answers[rank] is None
    assert not any(isinstance(answer, dict) for answer in answers)
    found = newest_verified(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found[0].name == "step-00000004"
    expected = run(2, teach, tmp_path / "reference", OFTEN)
    for mine, theirs in zip(run(2, teach, tmp_path / "run", OFTEN), expected, strict=True):
        for name, value in mine["weights"].items():
            assert value.tobytes() == theirs["weights"][name].tobytes(), name


class Tampered:
    def __reduce__(self) -> tuple:
        return os.system, ("touch tampered",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"module": Tampered()}, buffer, _use_new_zipfile_serialization=zipped)
    for data in (buffer.getvalue(), pickle.dumps(Tampered())):
        with pytest.raises(CheckpointError, match="is not loaded"):
            unpickle(data, "x.pt", ALLOWED)
    assert not (tmp_path / "tampered").exists()


def test_what_is_saved_can_be_loaded_whichever_way_python_pickles_an_enum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_3_11_2 = lambda stage, protocol: (getattr, (type(stage), stage.name))  # noqa: E731
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", as_3_11_2)
    writer, path = Writer(tmp_path), str(tmp_path / "engine" / "x.pt")
    writer.save({"stage": ZeroStageEnum.gradients}, path)
    writer.write()
    assert Reader(tmp_path, writer.entries).load(path) == {"stage": ZeroStageEnum.gradients}


def test_a_tampered_checkpoint_with_a_fitting_manifest_is_refused(checkpoints: Path) -> None:
    newest = Checkpoints(checkpoints).saved()[0]
    for path in (newest / "engine").iterdir():
        torch.save(Tampered(), path)
        entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        manifest = json.loads((newest / "manifest.json").read_bytes())
        manifest["files"][f"engine/{path.name}"] = entry
        (newest / "manifest.json").write_text(json.dumps(manifest))
    answer = Ranks(1, teach, checkpoints.parent, OFTEN).wait()[0]
    assert isinstance(answer, CheckpointError)
    assert "is not loaded" in str(answer)
    assert not Path("tampered").exists()
