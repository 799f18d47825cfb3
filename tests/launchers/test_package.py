"""The wheel, installed where the dependencies are, and used from / as somebody would who has no clone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from gamut.commands import ROOT
from gamut.models.shipped import SHIPPED
from gamut.train.build import FOLDER, operators
from launchers.corpus import by_class, synthesise
from tests.lacking import lacking

if TYPE_CHECKING:
    from conftest import Slurm

SOURCE = ("gamut", "pretrain", "finetune", "launchers", "configs", "bench", "setup.py", "pyproject.toml", "MANIFEST.in")
SOURCE += ("README.md", "LICENSE", "requirements.txt", "requirements-test.txt")
RECIPE = """
defaults: asit_tiny
epochs: 1
model: {dim: 32, depth: 1, heads: 2, table_frames: 48}
views: {frames: 48}
step: {packs: 4, clips: 6}
asit: {hidden: 32, bottleneck: 16, prototypes: 32}
run: {threads: 1}
loader: {workers: 1}
track: {mlflow: "off", picture_epochs: 0}
probe: {every_epochs: 0}
"""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder to work in."""

    wheel: Path
    bin: Path
    work: Path
    environment: dict[str, str]

    def gamut(self, *words: str, environment: dict[str, str] | None = None) -> str:
        """What `gamut WORDS`, typed in /, says. Fails where it ends with another status than 0."""
        return said(str(self.bin / "gamut"), *words, cwd="/", env=self.environment | (environment or {}))


def said(*words: str, **options: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=580, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, made from the source distribution, which is made from a copy of the clone; all without network."""
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        message = (
            "building the wheel needs a newer setuptools: pip install -r requirements-test.txt -c requirements.txt"
        )
        lacking(message)
    folder = tmp_path_factory.mktemp("package")
    (folder / "clone").mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / "clone" / name, ignore=shutil.ignore_patterns("__pycache__", ".peers")
            )
        else:
            shutil.copy(ROOT / name, folder / "clone" / name)
    build = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    said(sys.executable, "-c", build, cwd=folder / "clone")
    (source,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--quiet"]
    said(*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    said(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    dependencies = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    said(*pip, "--python", str(folder / "venv" / "bin" / "python"), "install", *offline, str(wheel))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GAMUT"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # ninja is a dependency
    environment[FOLDER] = str(operators())  # built by the same tools for the same libraries: it need not be built anew
    return Installed(wheel, folder / "venv" / "bin", tmp_path_factory.mktemp("work"), environment)


@pytest.fixture(scope="module")
def data(installed: Installed) -> Path:
    """A conversion by the installed command."""
    shards = installed.work / "shards"
    synthesise(installed.work / "corpus", 48, seconds=1.0)
    told = installed.gamut("shards", "convert", "esc50", str(installed.work / "corpus"), str(shards))
    assert "48 clips" in told
    installed.gamut("shards", "stats", str(shards))
    (installed.work / "mine.yaml").write_text(RECIPE)
    return shards


def test_the_wheel_brings_all_that_it_needs(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = wheel.namelist()
        about = next(wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    recipes = [path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")]
    assert {f"gamut/{recipe}" for recipe in recipes} | {"gamut/py.typed"} <= {*names}
    models = [path.relative_to(ROOT).as_posix() for path in SHIPPED.rglob("*") if path.is_file()]
    assert {*models} <= {*names}
    assert models
    assert not [name for name in names if name.startswith(("tests", "bench", "configs"))]
    rooms = ("gamut", "pretrain", "finetune", "launchers")
    modules = [path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert {*modules} <= {*names}
    needed = [Requirement(line.partition(": ")[2]) for line in about.splitlines() if line.startswith("Requires-Dist")]
    for file, extra in (
        ("requirements.txt", ""),
        ("requirements-test.txt", "test"),
        ("bench/requirements.txt", "bench"),
    ):
        lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
        pins = {Requirement(line).name: line.partition("==")[2] for line in lines}
        of = {one.name: one for one in needed if (one.marker is None) == (not extra) and extra in str(one.marker or "")}
        assert of.keys() == pins.keys()
        for name, pin in pins.items():
            assert of[name].specifier.contains(pin), name
            assert not of[name].specifier.contains(f"{int(pin.partition('.')[0]) + 1}.0") or "." not in pin, name
            if name in ("torch", "torchaudio"):  # compiled against each other: a later fix of one cannot be imported
                assert str(of[name].specifier) == f"=={pin}", name


def test_the_model_that_comes_with_it_tags(installed: Installed) -> None:
    by_class(installed.work / "heard", 6, seconds=1.0)
    assert "esc10" in installed.gamut("tag", "--help")
    assert "%" in installed.gamut("tag", "esc10", str(installed.work / "heard"), "--top", "1")


@pytest.mark.long
def test_a_dry_run_from_anywhere(installed: Installed, data: Path) -> None:
    small = (
        "model.dim=32",
        "model.depth=1",
        "model.heads=2",
        "model.table_frames=48",
        "views.frames=48",
        "step.packs=2",
    )
    told = installed.gamut("pretrain", "asit_tiny", f"data={data}", *small, "--dry-run", "--full")
    assert "asit_tiny on 1 rank: the plan" in told
    assert "name: asit_tiny" in told


def test_commands_are_named_as_they_are_typed(installed: Installed) -> None:
    assert installed.gamut("pretrain", "--help").startswith("usage: gamut pretrain RECIPE")
    told = installed.gamut("submit", "--help")
    assert "gamut submit pretrain asit_b --nodes" in told
    assert "launchers/slurm.py" not in told
    words = [str(installed.bin / "gamut"), "pretrain", "asit_tiny", "data=/nowhere"]
    done = subprocess.run(words, cwd="/", env=installed.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Make them with `gamut shards convert" in done.stderr


@pytest.mark.long
def test_the_doctor_from_anywhere(installed: Installed, tmp_path: Path) -> None:
    said_so = installed.gamut("doctor", "--runs", str(tmp_path), "--data", str(tmp_path), "--mlflow", "off")
    assert " 0 broken" in said_so
    assert "as tested" in said_so


def test_two_ranks_through_deepspeed(installed: Installed, data: Path) -> None:
    words = [str(installed.work / "mine.yaml"), f"data={data}", f"run.folder={installed.work}/runs"]
    installed.gamut("submit", "pretrain", *words, "--cpus-only", "2", "--local")
    run = installed.work / "runs" / "mine"
    assert (run / "checkpoints" / "step-00000002").is_dir()
    assert len(list((run / "checkpoints" / "step-00000002").glob("rank-*.safetensors"))) == 2
    start = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert start["ranks"] == 2
    assert start["git"] == installed.gamut("--version").strip()


@pytest.mark.slurm
def test_a_submission(installed: Installed, data: Path, slurm: Slurm) -> None:
    words = ["pretrain", str(installed.work / "mine.yaml"), f"data={data}", f"run.folder={installed.work}/submitted"]
    asked = ["--nodes", "2", "--cpus-only", "1", "--cpus-per-task", "1", "--partition", "low", "--time", "60"]
    known = {name: slurm.environment[name] for name in ("SLURM_CONF", "PATH")}
    told = installed.gamut("submit", *words, *asked, environment=known)
    job, run = told.split()[1].rstrip(":"), installed.work / "submitted" / "mine"
    log = run / "slurm" / f"{job}_0_log.out"
    over = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
    slurm.wait("the job is over", lambda: slurm.job(job).get("JobState") in over, 500, log)
    assert slurm.job(job)["JobState"] == "COMPLETED", log.read_text()
    assert (run / "checkpoints" / "step-00000002").is_dir()
