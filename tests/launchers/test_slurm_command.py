"""The command that submits: what it would ask of SLURM, and what it refuses before it asks."""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from finetune.rounds import Round
from gamut.errors import RecipeError, RunError
from gamut.shards.__main__ import main as shards
from gamut.track.run import RunFolder
from launchers import executor
from launchers import slurm as command
from launchers.cluster import Cluster, load_cluster, minutes
from launchers.corpus import synthesise


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synthesise(folder / "corpus", 48, seconds=0.5)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards")]) == 0
    return folder / "shards"


def flags(script: str) -> dict[str, str]:
    words = [
        line.removeprefix("#SBATCH --").partition("=") for line in script.splitlines() if line.startswith("#SBATCH")
    ]
    return {key: value for key, _, value in words}


def test_dry_run_shows_everything_and_does_nothing(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = ["pretrain", "demo", f"data={data}", f"run.folder={tmp_path}/runs", "run.name=planned", "seed=5"]
    asked = ["--nodes", "2", "--cpus-only", "3", "--cpus-per-task", "4", "--time", "1:30:00", "--partition", "short"]
    assert command.main([*words, *asked, "--dry-run"]) == 0
    assert "seed: 5" not in capfd.readouterr().out
    assert command.main([*words, *asked, "--dry-run", "--full"]) == 0
    shown = capfd.readouterr().out
    found = flags(shown)
    assert (found["nodes"], found["ntasks-per-node"], found["time"], found["partition"]) == ("2", "3", "90", "short")
    assert found["signal"] == "USR2@90"
    assert "requeue" in found
    assert "gpus-per-node" not in found
    (srun,) = [line for line in shown.splitlines() if line.startswith("srun")]
    assert "--cpus-per-task=4" in srun
    assert "--kill-on-bad-exit=1" in srun
    assert "seed: 5" in shown  # the resolved recipe
    assert "prototypes: " in shown
    for word in ("on 6 ranks", "steps", "tokens a step", "padding"):
        assert word in shown
    assert not (tmp_path / "runs").exists()


def test_the_script_for_gpus(tmp_path: Path) -> None:
    recipe = command.cli.parse("pretrain", ["asit_b", f"run.folder={tmp_path}"]).recipe
    cluster = Cluster(
        nodes=8,
        gpus=4,
        memory_gb=200,
        account="ours",
        exclusive=True,
        setup=["module load x"],
        environment={"A": "b'c"},
    )
    script = command.executor(recipe, cluster).script()
    found = flags(script)
    assert (found["gpus-per-node"], found["ntasks-per-node"], found["mem"]) == ("4", "4", "200GB")
    assert found["account"] == "ours"
    assert {"exclusive", "requeue"} <= found.keys()
    assert "wckey" not in found
    lines = script.splitlines()
    assert lines.index("module load x") < lines.index("export SUBMITIT_EXECUTOR=slurm")
    assert ["export", "A=b'c"] in [shlex.split(line) for line in lines if line.startswith("export")]
    assert command.stage_environment(cluster) == {"DS_ACCELERATOR": "cuda"}
    assert command.stage_environment(Cluster(gpus=0)) == {"DS_ACCELERATOR": "cpu"}


def test_jobs_find_the_clone_and_what_the_person_has_on_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/my/plugins:{command.ROOT}:/more")
    recipe = command.cli.parse("pretrain", ["asit_b", f"run.folder={tmp_path}"]).recipe
    assert f"export PYTHONPATH={command.ROOT}:/my/plugins:/more" in command.executor(recipe, Cluster()).script()
    monkeypatch.setattr(executor, "IN_CLONE", False)  # the installed package is found without
    monkeypatch.setenv("PYTHONPATH", "")
    assert "PYTHONPATH" not in command.executor(recipe, Cluster()).script()


def test_what_the_documents_submit_has_packs_for_every_gpu() -> None:
    files = [command.ROOT / "README.md", *command.ROOT.glob("docs/*.md"), Path(str(command.__file__))]
    said = "".join(file.read_text() for file in files)
    lines = re.findall(r"slurm\.py pretrain (\S+) --nodes (\d+) --gpus (\d+)", said)
    assert len(lines) > 4
    for name, nodes, gpus in lines:
        packs = command.cli.parse("pretrain", [name]).recipe.step.packs
        assert packs % (int(nodes) * int(gpus)) == 0, (name, nodes, gpus, packs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "asit_bb"], "asit_b"),
        (["pretrain", "asit_b", "optim.lrr=3"], "optim.lr"),
        (["pretrain", "asit_b", "--cluster", "exmple"], "example"),
        (["pretrain", "asit_b", "--nodes", "0"], "nodes"),
        (["pretrain", "asit_b", "--time", "soon"], "'soon'"),
        (["pretrain", "asit_b", "data=/nowhere"], "gamut.shards convert audioset"),
        (["pretrain", "digits", "data=/nowhere", "--dry-run"], "gamut.shards convert speechcommands"),
        (["pretrain", "asit_b", "--local", "--nodes", "2"], "this machine"),
    ],
)
def test_mistakes_are_sentences(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_without_slurm(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.main(["pretrain", "demo", f"data={data}", f"run.folder={tmp_path}/runs"]) == 2
    assert "no sbatch" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_local_becomes_the_stage(became: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", "/bin")
    for words in (["pretrain", "demo", "seed=3", "--cpus-only", "2"], ["finetune", "demo", "--cpus-only", "1"]):
        with pytest.raises(SystemExit):
            command.main([*words, "--local"])
    script = str(command.ROOT / "pretrain" / "run.py")
    assert became[0][:3] == [sys.executable, "-m", "deepspeed.launcher.launch"]
    assert json.loads(base64.urlsafe_b64decode(became[0][4])) == {"localhost": [0, 1]}
    assert became[0][-3:] == [script, "demo", "seed=3"]
    assert became[1] == [sys.executable, str(command.ROOT / "finetune" / "run.py"), "demo"]


@pytest.mark.parametrize(
    ("stage", "words", "said"),
    [
        ("pretrain", ["deepspeed.zero_optimization.stage=3"], "set deepspeed.zero_optimization.stage=1"),
        ("pretrain", ["engine=oss"], "set engine=deepspeed"),
        ("pretrain", ["precision=bf16"], "set precision=fp32"),
        ("finetune", ["engine=oss", "finetune.seeds=3"], "set engine=deepspeed"),
        ("pretrain", [], "no sbatch"),
        ("finetune", ["finetune.seeds=3"], "no sbatch"),
    ],
)
def test_a_run_that_was_started_with_another_engine_is_refused_before_anything_is_queued(
    stage: str, words: list[str], said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    own = ["demo", f"data={data}", f"run.folder={tmp_path}/runs"]
    begun = command.cli.parse(stage, own).recipe
    if stage == "finetune":
        begun = Round((1, 2), (4,), 1).recipe(begun)
    RunFolder.open(begun)
    assert command.main([stage, *own, *words]) == 2
    assert said in capfd.readouterr().err


def test_without_a_recipe_they_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["pretrain"])
    assert caught.value.code == 2
    assert "asit_tiny" in capfd.readouterr().err


def test_a_cluster_file_and_what_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text("nodes: 2\ngpus: 8\ntime: 90\nsetup: [module load cuda]\nenvironment: {NCCL_DEBUG: WARN}")
    cluster = load_cluster(str(file), {"nodes": 4, "gpus": None})
    assert (cluster.nodes, cluster.gpus, cluster.tasks, cluster.time) == (4, 8, 32, "90")
    assert cluster.setup == ["module load cuda"]
    assert load_cluster("example", {}).tasks == 8
    for text, word in [
        ("nods: 2", "nodes"),
        ("nodes: two", "a whole number"),
        ("setup: 3", "shell lines"),
        ("- 1", "key"),
    ]:
        file.write_text(text)
        with pytest.raises(RecipeError, match=word):
            load_cluster(str(file), {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30:00", 90), ("0:0:30", 1), ("5:30", 6), ("1-0", 1440), ("2-3:15", 3075), ("1-00:00:01", 1441)],
)
def test_time_limits(text: str, expected: int) -> None:
    """As sbatch reads them: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "0"])
def test_no_time_limits(text: str) -> None:
    with pytest.raises(RecipeError):
        minutes(text)


def test_nothing_is_swallowed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch refuses: a sentence, and no description of a job that does not exist."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    recipe = command.cli.parse("pretrain", ["demo", f"data={data}", f"run.folder={tmp_path}/runs"]).recipe
    with pytest.raises(RunError, match="invalid partition"):
        command.submit("pretrain", ["demo"], recipe, Cluster(partition="nope"))
    assert list((tmp_path / "runs" / "demo" / "slurm").glob("job-*.json")) == []


def test_no_file_here_hides_one_of_pythons_own() -> None:
    """Started by its path, a script has this folder first on its path."""
    for folder in ("launchers", "pretrain", "finetune"):
        names = {path.stem for path in (command.ROOT / folder).glob("*.py")}
        assert not names & sys.stdlib_module_names, folder


@pytest.mark.parametrize(
    ("stage", "name", "fits"),
    [
        ("pretrain", "asit_b", ["the recipe asit_b_4096", "step.packs=64", "--nodes 4 --gpus 8"]),
        ("finetune", "elastic_audioset", ["step.packs=64", "--nodes 2 --gpus 6"]),
    ],
)
def test_gpus_without_a_pack_are_refused(
    stage: str, name: str, fits: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.main([stage, name, "--nodes", "8", "--gpus", "8"]) == 2
    told = capfd.readouterr().err
    assert "of 64 ranks ever have a pack" in told
    for way in fits:
        assert way in told


def test_an_uneven_share_is_warned_of() -> None:
    from launchers.fit import require_fit

    recipe = command.cli.parse("pretrain", ["asit_b"]).recipe
    assert "27% of the time of 22 ranks" in require_fit("pretrain", "asit_b", recipe, Cluster(nodes=2, gpus=11))
    assert require_fit("pretrain", "asit_b", recipe, Cluster(nodes=4, gpus=8)) == ""
    assert "only 32 of 64 ranks" in require_fit("pretrain", "asit_b", recipe, Cluster(nodes=8, gpus=0, cpu_tasks=8))


def test_a_dry_run_for_gpus_has_a_forecast(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = ["pretrain", "demo", f"data={data}", f"run.folder={tmp_path}/runs", "--gpus", "2", "--gpu", "a100"]
    assert command.main([*words, "--dry-run"]) == 0
    shown = capfd.readouterr().out
    for line in ("memory a GPU: ", "clips/s a GPU: ", "hours: "):
        assert line in shown
    assert "2 a100" in shown
    assert f"clips of {data}" in shown


def test_a_dry_run_before_there_are_shards_says_so_and_shows_the_script(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "demo", f"data={tmp_path}/none", f"run.folder={tmp_path}/runs", "--gpus", "2", "--dry-run"]
    assert command.main(words) == 2
    said = capfd.readouterr()
    assert "an estimate, of stand-in clips" in said.out
    assert f"{tmp_path}/none is not here" in said.out
    assert flags(said.out)["gpus-per-node"] == "2"
    assert f"There are no shards at {tmp_path}/none" in said.err
