"""Runs and their jobs: what is shown of them, submitting several in a row, and submitting one again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gamut.errors import RecipeError, RunError
from gamut.runs.__main__ import main as runs_main
from gamut.runs.slurm import Job, jobs_of, newest_job, own_job
from gamut.runs.standing import standing
from gamut.shards.__main__ import main as shards
from launchers import jobs, slurm
from launchers.chain import split, taken
from launchers.cluster import load_cluster
from launchers.corpus import synthesise
from launchers.sweep import values_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
Program = Callable[[str, str], None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a command of SLURM that is a shell script; what it is asked stands in asked/NAME."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "asked").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")

    def program(name: str, body: str) -> None:
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked/{name}\n{body}\n')
        file.chmod(0o755)

    for name in ("squeue", "sacct", "scancel", "srun"):
        program(name, "exit 1")
    program(
        "sbatch",
        f"""
        n=$(cat {tmp_path}/number 2>/dev/null || echo 100); n=$((n + 1)); echo $n > {tmp_path}/number
        cp "$1" {tmp_path}/script-$n; echo "Submitted batch job $n" """,
    )
    return program


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synthesise(folder / "corpus", 48, seconds=0.5)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards")]) == 0
    return folder


def submitted(run: Path, *numbers: str) -> None:
    (run / "slurm").mkdir(parents=True)
    for number in numbers:
        (run / "slurm" / f"{number}_submission.sh").write_text("")


def test_jobs_from_the_queue_and_from_the_accounting(programs: Program, tmp_path: Path) -> None:
    programs("squeue", "printf '9|PENDING|Priority||2|\\n10|RUNNING|None|n[1-2]|0|\\n77|RUNNING|None|n9|0|\\n'")
    programs(
        "sacct", "printf '11|CANCELLED by 1000|n3\\n12|NODE_FAIL|n4\\n12|COMPLETED|n5\\n13|PENDING|None assigned\\n'"
    )
    found = jobs_of(["9", "10", "11", "12", "13", "14", ""])
    assert found == {
        "9": Job("9", "PENDING", "Priority", "", 2),
        "10": Job("10", "RUNNING", "", "n[1-2]", 0),
        "11": Job("11", "CANCELLED", "", "n3"),
        "12": Job("12", "COMPLETED", "", "n5"),
        "13": Job("13", "PENDING"),
    }
    assert "-j 11,12,13,14" in (tmp_path / "asked" / "sacct").read_text()
    programs("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert set(jobs_of(["9", "11"])) == {"9"}
    shutil.rmtree(tmp_path / "bin")
    assert jobs_of(["9"]) == {}  # no SLURM here


def test_runs_are_listed_with_their_jobs(programs: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(FIXTURES / "runs", folder)
    trained = next(path for path in sorted(folder.iterdir()) if (path / "metrics.jsonl").exists())
    submitted(trained, "8", "12")
    submitted(folder / "waits", "13")
    submitted(folder / "forgotten", "3")
    programs("squeue", "printf '12|COMPLETED|None|n[1-2]|7|\\n13|PENDING|Resources||0|\\n'")
    assert runs_main(["list", str(folder)]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said[said.index("under SLURM:") :].splitlines() if line}
    loss = f"{standing(trained).scores['loss']:.4g}"
    for word in ("12", "COMPLETED", "stopped", loss, "n[1-2]", "7"):
        assert word in rows[trained.name].split()
    assert "13   PENDING (Resources)  not begun" in rows["waits"]
    assert "nothing any more" in rows["forgotten"]
    assert runs_main(["list", str(folder), "--json"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["job"] for one in made if one["path"] == str(trained)} == {"12"}


def test_time_left_is_told_by_the_last_attempt(tmp_path: Path) -> None:
    lines = [{"attempt": 1, "time": 0.0, "event": "start"}]
    lines += [{"attempt": 1, "time": 100.0 * step, "step": step, "epoch": step / 2} for step in (1, 2)]
    lines += [{"attempt": 2, "time": 1000.0, "event": "start", "slurm_job_id": "5"}]
    lines += [{"attempt": 2, "time": 1000.0 + step, "step": step, "epoch": step / 2, "loss": 1} for step in (3, 4, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text("stage: pretrain\nepochs: 10\n")
    one = standing(tmp_path)
    assert one.left == pytest.approx((10 - 2.5) / 0.5)
    assert one.facts["slurm_job_id"] == "5"


def pretraining(data: Path, tmp_path: Path, *more: str) -> list[str]:
    return ["pretrain", "demo", f"data={data}/shards", f"run.folder={tmp_path}/runs", "--cpus-only", "1", *more]


def test_a_second_job_on_a_run_is_told_of_the_first(
    programs: Program, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = pretraining(data, tmp_path)
    assert slurm.main(words) == 0
    assert newest_job(tmp_path / "runs" / "demo") == "101"
    programs("squeue", "printf '101|RUNNING|None|n7|0|\\n'")
    assert slurm.main(words) == 2
    said = capsys.readouterr().err
    assert "Job 101 is in SLURM's queue" in said
    assert "RUNNING on n7" in said
    programs("squeue", "printf '101|FAILED|None|n7|0|\\n'")
    assert slurm.main(words) == 0


def test_a_run_is_submitted_again_as_it_was(
    programs: Program, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    words = pretraining(Path("."), tmp_path, "seed=3", "--time", "90", "--partition", "gpu", "--account", "ours")
    assert slurm.main(words) == 0
    monkeypatch.chdir(tmp_path)  # `runs` is here, and what was submitted names its data from elsewhere
    assert jobs.main(["resume", "demo", "--time", "3:00:00"]) == 0
    first, second = ((tmp_path / f"script-{number}").read_text() for number in (101, 102))
    assert second == first.replace("--time=90", "--time=180")
    assert newest_job(tmp_path / "runs" / "demo") == "102"
    told = jobs.description(tmp_path / "runs" / "demo")
    assert (told["argv"][-1], told["folder"], told["cluster"]["account"]) == ("seed=3", str(data), "ours")
    (tmp_path / "old" / "slurm").mkdir(parents=True)
    (tmp_path / "old" / "slurm" / "job-1.json").write_text('{"stage": "pretrain", "argv": [], "environment": {}}')
    with pytest.raises(RunError, match="submit it with launchers"):
        jobs.description(tmp_path / "old")


def test_a_job_is_cancelled_by_the_name_of_its_run(
    programs: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(tmp_path / "runs" / "big" / "one", "5", "41")
    monkeypatch.chdir(tmp_path)
    programs("scancel", "exit 0")
    assert jobs.main(["cancel", "big/one"]) == 0
    assert (tmp_path / "asked" / "scancel").read_text() == "41\n"
    programs("squeue", "printf '41|COMPLETED|None|n1|0|\\n'")
    assert jobs.main(["cancel", "runs/big/one"]) == 2
    assert "has ended: it is COMPLETED" in capsys.readouterr().err
    assert jobs.main(["cancel", "bigger"]) == 2
    assert "No job was submitted for a run bigger" in capsys.readouterr().err


def test_logs_are_those_of_the_last_job(
    programs: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(tmp_path / "runs" / "one", "5", "41")
    monkeypatch.chdir(tmp_path)
    assert jobs.main(["logs", "one"]) == 2
    assert "Job 41 of runs/one is no longer known to SLURM; rank 0 has printed nothing" in capsys.readouterr().err
    (tmp_path / "runs" / "one" / "slurm" / "41_3_log.out").write_text("here\n")
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda program, words: became.append(words))
    jobs.main(["logs", "one", "--rank", "3", "--follow"])
    assert became == [["tail", "-n", "50", "-F", "runs/one/slurm/41_3_log.out"]]


def flag(script: str, name: str) -> str:
    return next((line.partition("=")[2] for line in script.splitlines() if line.startswith(f"#SBATCH --{name}=")), "")


def test_a_chain_passes_on_what_each_part_makes(programs: Program, data: Path, tmp_path: Path) -> None:
    made, runs = tmp_path / "made", f"run.folder={tmp_path}/runs"
    words = ["convert", "esc50", str(data / "corpus"), str(made), "--jobs", "2"]
    words += ["--then", "pretrain", "demo", runs, "run.name=before", "--cpus-only", "2"]
    words += ["--then", "finetune", "demo", runs, "run.name=after", "--cpus-only", "1"]
    assert slurm.main(words) == 0
    scripts = [(tmp_path / f"script-{number}").read_text() for number in (101, 102, 103, 104)]
    waits = [flag(script, "dependency") for script in scripts]
    assert waits == ["", "afterany:101", "afterok:102", "afterok:103"]
    assert [flag(script, "kill-on-invalid-dep") for script in scripts[2:]] == ["yes", "yes"]
    before, after = (jobs.description(tmp_path / "runs" / name)["argv"] for name in ("before", "after"))
    assert f"data={made}" in before
    assert {f"data={made}", f"init={tmp_path}/runs/before"} <= {*after}


def test_a_chain_that_breaks_off_leaves_nothing_in_the_queue(
    programs: Program, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs("scancel", "exit 0")
    words = pretraining(data, tmp_path, "--then", "finetune", "demo", "optim.lrr=3")
    assert slurm.main(words) == 2
    assert "optim.lr" in capsys.readouterr().err
    assert (tmp_path / "asked" / "scancel").read_text() == "101\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain demo --then", "Nothing cannot be"),
        ("tag demo --then finetune demo", "tag cannot be a part"),
        ("pretrain demo --then convert esc50 a b", "only be the first"),
    ],
)
def test_what_is_no_chain(words: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        split(words.split())


def test_what_is_said_is_not_passed_on() -> None:
    given = {"data": "made", "init": "runs/one"}
    assert taken(["finetune", "demo", "data=mine"], given) == {"init": "runs/one"}
    assert taken(["pretrain", "demo"], given) == {"data": "made"}


def test_a_time_limit_without_time_to_train_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"The time limit 2 leaves no time .* at least 3 minutes"):
        load_cluster(None, {"time": "2"})
    assert load_cluster(None, {"time": "3"}).time == "3"


def test_a_sweep_is_one_array_of_runs_that_are_whole(
    programs: Program, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = pretraining(data, tmp_path, "run.name=mine", "--sweep", "seed=0,1", "--sweep", "optim.lr=1e-4,3e-4")
    assert slurm.main([*words, "--at-once", "3"]) == 0
    said = capsys.readouterr().out
    script = (tmp_path / "script-101").read_text()
    names = ["seed-0_lr-1e-4", "seed-0_lr-3e-4", "seed-1_lr-1e-4", "seed-1_lr-3e-4"]
    assert flag(script, "array") == "0-3%3"
    for index, name in enumerate(names):
        run = tmp_path / "runs" / "mine" / name
        assert f"101_{index}  {run}" in said
        assert newest_job(run) == f"101_{index}"
        told = jobs.description(run)
        own = [name[:6].replace("-", "="), f"optim.lr={name[10:]}", f"run.name=mine/{name}"]
        assert told["argv"][-3:] == own
        # what SLURM writes to by the array's numbers is the run's own folder
        written = Path(flag(script, "output").replace("%A", "101").replace("%a", str(index)))
        assert written.parent.resolve() == run / "slurm"
        assert (run / "slurm" / f"101_{index}_submitted.pkl").exists()
    programs("squeue", "printf '101_0|RUNNING|None|n1|0|\\n101_3|PENDING|JobArrayTaskLimit||0|\\n'")
    assert slurm.main(words) == 2
    assert "Job 101_0 is in SLURM's queue for the run" in capsys.readouterr().err
    assert runs_main(["list", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines() if "mine/seed" in line] == [f"101_{i}" for i in range(4)]
    assert "PENDING (JobArrayTaskLimit)" in said
    assert own_job({"SLURM_JOB_ID": "104", "SLURM_ARRAY_JOB_ID": "101", "SLURM_ARRAY_TASK_ID": "3"}) == "101_3"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "seed"], "must be KEY=VALUE,VALUE"),
        (["--sweep", "seed=0,,1"], "must be KEY=VALUE,VALUE"),
        (["--sweep", "run.name=a,b"], "cannot be swept over"),
        (["--sweep", "seed=0,1", "--sweep", "seed=2"], "given twice for one key"),
        (["--sweep", "seed=0,0"], "would be called the same"),
        (["--sweep", "sede=0,1"], "the nearest valid name is seed"),
        (["--sweep", "seed=0,1", "--local"], "one after another"),
    ],
)
def test_sweeps_that_are_refused(
    programs: Program, data: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm.main([*pretraining(data, tmp_path), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "asked" / "sbatch").exists()
    assert not (tmp_path / "runs").exists()


def test_commas_in_brackets_divide_nothing() -> None:
    assert values_of("views.scale=[0.5,1],[1,1]") == ["views.scale=[0.5,1]", "views.scale=[1,1]"]


def test_a_sweep_that_slurm_refuses_leaves_no_array(
    programs: Program, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs("sbatch", "echo 'sbatch: error: invalid partition specified: no' >&2; exit 1")
    assert slurm.main([*pretraining(data, tmp_path), "--sweep", "seed=0,1", "--partition", "no"]) == 2
    assert "invalid partition specified: no" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "runs" / "demo").iterdir()) == ["seed-0", "seed-1"]
    assert not [*(tmp_path / "runs").rglob("job-*.json")]


def test_a_sweep_behind_a_job_may_be_on_what_that_makes(programs: Program, data: Path, tmp_path: Path) -> None:
    words = [word.replace(f"{data}/shards", f"{tmp_path}/later") for word in pretraining(data, tmp_path)]
    assert slurm.main([*words, "--sweep", "seed=0,1"]) == 2
    assert slurm.main([*words, "--sweep", "seed=0,1", "--after", "77"]) == 0
    assert flag((tmp_path / "script-101").read_text(), "dependency") == "afterok:77"
