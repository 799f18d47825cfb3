"""MLflow shows one run, every (key, step) once, whatever happened on the way; and no step ever waits for it."""

from __future__ import annotations

import collections
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import recipe_hash
from gamut.recipe.schema import Recipe
from gamut.track.__main__ import main
from gamut.track.feed import Feed
from gamut.track.figures import curves
from gamut.track.metrics import MetricsFile
from gamut.track.run import RunFolder
from gamut.track.store import connect, experiment_id, public, quiet, store_uri
from gamut.track.tracker import Feeder, NullTracker, Tracker

quiet()
from mlflow.tracking import MlflowClient  # noqa: E402


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("pretrain", "asit_tiny", [f"run.folder={folder}", "run.name=one", *overrides])


def shown(uri: str) -> tuple[Any, list[Any], dict[tuple[str, int], float]]:
    """(parent run, its children by attempt, {(key, step): value}) in a store that holds one run of ours."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("gamut")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    points = [
        (key, point.step, point.value)
        for key in parent.data.metrics
        for point in client.get_metric_history(parent.info.run_id, key)
    ]
    twice = [place for place, count in collections.Counter(p[:2] for p in points).items() if count > 1]
    assert twice == []
    return (
        parent,
        sorted(children, key=lambda run: int(run.data.tags["gamut.attempt"])),
        {(key, step): value for key, step, value in points},
    )


def loss(step: int) -> float:
    return 1.0 / step


def test_five_restarts_are_one_run(tmp_path: Path) -> None:
    """Attempts that die at odd moments, with unsaved steps behind them, some without a word of farewell."""
    wanted = recipe(tmp_path)
    uri, done = str(store_uri(wanted)), 0
    for number in range(1, 7):
        folder = RunFolder.open(wanted)
        tracker = Tracker(folder, wanted, index="abc", facts={"ranks": 2})
        for step in range(done + 1, done + 31):
            tracker.log(step, {"loss": loss(step), "lr": float(step)})
            if step % 10 == 0 and step <= done + 20:
                tracker.log(step, {"accuracy": step / 1000})
                tracker.checkpoint(step, uri=f"checkpoints/{step}", sha256="0" * 64)
        if number == 6:
            tracker.close("finished")
        elif number == 3:
            tracker.close("preempted")
        else:  # killed: the thread is cut off wherever it is, the file stays as it is
            assert tracker._feeder is not None
            tracker._feeder.finish(60.0)
        done += 20 if number < 6 else 30
    parent, children, points = shown(uri)
    assert {p for p in points if p[0] == "loss"} == {("loss", step) for step in range(1, done + 1)}
    assert all(value == pytest.approx(loss(step)) for (key, step), value in points.items() if key == "loss")
    assert {step for key, step in points if key == "accuracy"} == set(range(10, done - 9, 10))
    assert parent.info.status == "FINISHED"
    assert parent.data.params["optim.lr"] == "0.0005"
    tags = parent.data.tags
    assert tags["gamut.recipe_hash"] == recipe_hash(wanted)
    assert (tags["gamut.index"], tags["gamut.attempts"]) == ("abc", "6")
    assert tags["gamut.checkpoint.uri"] == f"checkpoints/{done - 10}"
    assert "mlflow.source.git.commit" in tags
    assert [run.info.status for run in children] == ["KILLED"] * 5 + ["FINISHED"]
    assert children[0].data.tags["gamut.ranks"] == "2"


def test_an_attempt_holds_no_point_that_mlflow_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run of a million steps the next attempt takes up the few that are not fed yet."""
    wanted = recipe(tmp_path)
    folder, held = RunFolder.open(wanted), []
    file = MetricsFile(folder.metrics, 1)
    real = Feed._feed_points

    def feed_points(self: Feed) -> None:
        held.append({key: sorted(points) for key, points in self._history.points.items()})
        real(self)

    monkeypatch.setattr(Feed, "_feed_points", feed_points)
    for step in range(1, 9):
        file.append({"loss": loss(step)}, step=step)
        if step == 6:
            file.append({}, step=6, event="checkpoint")
            Feed(folder, wanted, str(store_uri(wanted))).now()
    file.append({}, step=8, event="checkpoint")
    Feed(folder, wanted, str(store_uri(wanted))).now()
    assert held == [{"loss": [1, 2, 3, 4, 5, 6]}, {"loss": [7, 8]}]
    assert {step for _, step in shown(str(store_uri(wanted)))[2]} == set(range(1, 9))


class Cut(Exception):
    """The process dies here, as far as MLflow can tell."""


class Shaky:
    """A client whose calls fail now and then, before or after the store has done what was asked.

    sent: how often each (key, step) has come to the store. SQLite drops what comes again; other stores show it twice.
    """

    def __init__(self, client: Any, rng: random.Random, sent: collections.Counter[tuple[str, int]]) -> None:
        self._client, self._rng, self._sent = client, rng, sent

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            fate = self._rng.random()
            if fate < 0.04:
                raise Cut(name)
            answer = real(*args, **kwargs)
            self._sent.update((metric.key, metric.step) for metric in kwargs.get("metrics", ()))
            if fate > 0.96:
                raise Cut(name)
            return answer

        return call


@pytest.mark.parametrize("lost_marks", [False, True])
def test_cut_off_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_marks: bool) -> None:
    """Every request may be lost, or its answer; the marks may be lost too. Nothing comes out twice or missing."""
    rng = random.Random(7)
    wanted = recipe(tmp_path)
    folder = RunFolder.open(wanted)
    monkeypatch.setattr("gamut.track.feed.BATCH", 7)
    sent: collections.Counter[tuple[str, int]] = collections.Counter()
    monkeypatch.setattr(
        "mlflow.tracking.MlflowClient", lambda tracking_uri: Shaky(MlflowClient(tracking_uri), rng, sent)
    )
    file = MetricsFile(folder.metrics, 1)
    file.append({"host": "here"}, event="start")
    cuts = 0
    for step in range(1, 61):
        file.append({"loss": loss(step), "lr": 1.0}, step=step)
        if step % 20 == 0:
            file.append({}, step=step, event="checkpoint")
            for _ in range(200):
                try:
                    Feed(folder, wanted, str(store_uri(wanted))).now()  # a new process each time
                    break
                except Cut:
                    cuts += 1
                    if lost_marks and cuts % 3 == 0:
                        (folder.path / "mlflow.json").unlink(missing_ok=True)
            else:
                pytest.fail("never got through")
    assert cuts > 2
    _, children, points = shown(str(store_uri(wanted)))
    assert set(points) == {(key, step) for key in ("loss", "lr") for step in range(1, 61)}
    assert {*sent.values()} == {1}
    assert len(children) == 1


def test_nothing_beyond_the_last_checkpoint_is_shown(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    folder = RunFolder.open(wanted)

    def diverge() -> None:
        with Tracker(folder, wanted) as tracker:
            for step in range(1, 16):
                tracker.log(step, {"loss": loss(step)})
                if step == 10:
                    tracker.checkpoint(step)
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        diverge()
    parent, children, points = shown(str(store_uri(wanted)))
    assert set(points) == {("loss", step) for step in range(1, 11)}
    assert (parent.info.status, children[0].info.status) == ("FAILED", "FAILED")


def test_figures_go_along(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    folder = RunFolder.open(wanted)
    with Tracker(folder, wanted) as tracker:
        tracker.figure("masks and all", curves({"a": ([1, 2], [1.0, 2.0])}), step=3)
        tracker.log(3, {"loss": 1.0})
    assert (folder.figures / "masks_and_all-0000003.png").read_bytes().startswith(b"\x89PNG")
    parent, _, _ = shown(str(store_uri(wanted)))
    names = [file.path for file in MlflowClient(str(store_uri(wanted))).list_artifacts(parent.info.run_id, "figures")]
    assert names == ["figures/masks_and_all-0000003.png"]
    assert sorted(file.name for file in folder.figures.iterdir()) == ["masks_and_all-0000003.png"]


def test_recipes_and_results_are_for_their_owner_alone(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    client = connect(f"sqlite:///{database}")
    experiment_id(client, f"sqlite:///{database}", "mine")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("mlflow.db*")} == {0o600}
    assert stat.S_IMODE((tmp_path / "mlflow-artifacts").stat().st_mode) == 0o700


def test_no_call_waits_for_mlflow(tmp_path: Path) -> None:
    """While MLflow hangs for ever, a whole training's calls return."""
    wanted = recipe(tmp_path, "track.mlflow=off")
    folder = RunFolder.open(wanted)
    tracker = Tracker(folder, wanted)
    hangs, asked = threading.Event(), threading.Event()

    class Hanging(Feed):
        def now(self, dead: bool = False) -> None:
            asked.set()
            hangs.wait(60.0)

    feeder = tracker._feeder = Feeder(Hanging(folder, wanted, "http://127.0.0.1:1"))
    feeder.start()
    assert asked.wait(30.0)
    for step in range(1, 201):
        tracker.log(step, {"loss": loss(step)})
        tracker.checkpoint(step)
    assert feeder.is_alive()
    hangs.set()
    tracker.close()
    feeder.join(30.0)
    assert not feeder.is_alive()


def test_a_closed_port_costs_nothing_and_the_rest_is_fed_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound, but nobody listens
        wanted = recipe(tmp_path, f"track.mlflow={uri}")
        folder = RunFolder.open(wanted)
        with Tracker(folder, wanted) as tracker:
            for step in range(1, 11):
                tracker.log(step, {"loss": loss(step)})
            tracker.checkpoint(10)
    said = capsys.readouterr().out
    assert said.count("does not take metrics") == 1
    assert f"python -m gamut.track feed {folder.path}" in said
    later = f"sqlite:///{tmp_path}/later.db"
    for _ in range(2):
        assert main(["feed", str(folder.path), "--uri", later]) == 0
    parent, children, points = shown(later)
    assert set(points) == {("loss", step) for step in range(1, 11)}
    assert (parent.info.status, [run.info.status for run in children]) == ("FINISHED", ["FINISHED"])


@pytest.mark.long
def test_a_server_that_comes_back(tmp_path: Path) -> None:
    """A real server, started in the middle of the run, gets everything once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    wanted = recipe(tmp_path, f"track.mlflow={uri}")
    tracker = Tracker(RunFolder.open(wanted), wanted)
    server = None
    try:
        for step in range(1, 41):
            tracker.log(step, {"loss": loss(step)})
            if step % 10 == 0:
                tracker.checkpoint(step)
            if step == 20:
                words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
                store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
                root = ["--artifacts-destination", str(tmp_path / "artifacts")]
                server = subprocess.Popen([sys.executable, "-m", "mlflow", *words, *store, *root], cwd=tmp_path)
                for _ in range(300):
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.2)
        tracker.close("finished")
        parent, _, points = shown(uri)
        assert set(points) == {("loss", step) for step in range(1, 41)}
        assert parent.info.status == "FINISHED"
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)


def test_feed_of_a_run_that_was_killed(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    folder = RunFolder.open(wanted)
    file = MetricsFile(folder.metrics, 1)
    file.append({"host": "here"}, event="start")
    file.append({"loss": 1.0}, step=1)
    file.append({}, step=1, event="checkpoint")
    file.append({"loss": 1.0}, step=2)
    file.close()
    assert main(["feed", str(folder.path)]) == 0
    parent, children, points = shown(str(store_uri(wanted)))
    assert (parent.info.status, children[0].info.status) == ("KILLED", "KILLED")
    assert set(points) == {("loss", 1)}


def test_off_and_null(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, "track.mlflow=off")
    assert store_uri(wanted) is None
    folder = RunFolder.open(wanted)
    with Tracker(folder, wanted) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(ValueError, match="almost"):
        Tracker(folder, wanted).close("almost")
    before = sorted(tmp_path.rglob("*"))
    with NullTracker() as nothing:
        nothing.log(1, {"loss": 1.0})
        nothing.checkpoint(1)
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["feed", str(folder.path)]) == 2


def test_a_uri_is_shown_without_its_password() -> None:
    assert public("https://me:secret@host:5000/x") == "https://host:5000/x"
    assert public("sqlite:////a/b.db") == "sqlite:////a/b.db"


FULL = """
import shutil, sys, time
from pathlib import Path
from gamut.recipe.load import load_recipe
from gamut.track.run import RunFolder
from gamut.track.tracker import Tracker
disk, runs = map(Path, sys.argv[1:])
recipe = load_recipe("pretrain", "asit_tiny", [f"run.folder={runs}", "run.name=one", f"track.mlflow=sqlite:///{disk}/m.db"])
folder = RunFolder.open(recipe)
slowest = 0.0
with Tracker(folder, recipe) as tracker:
    def log(first, last):
        global slowest
        for step in range(first, last + 1):
            since = time.monotonic()
            tracker.log(step, {"loss": 1.0 / step})
            slowest = max(slowest, time.monotonic() - since)
        tracker.checkpoint(last)
    def until(true):
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.05)
    log(1, 100)
    marks = folder.path / "mlflow.json"
    until(lambda: marks.exists() and '"loss": 100' in marks.read_text())
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
    log(101, 4000)
    until(lambda: tracker._feeder._down)
    (disk / "ballast").unlink()
    log(4001, 4100)
print("slowest", slowest)
shutil.copy(disk / "m.db", runs / "m.db")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_store_on_a_full_disk_ends_nothing_and_gets_every_point_once_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mounted = 'mount -t tmpfs -o size=4m none "$1" && exec "$0" -c "$3" "$1" "$2"'
    words = ["unshare", "-m", "sh", "-c", mounted, sys.executable, str(tmp_path / "disk"), str(tmp_path / "runs"), FULL]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not take metrics" in done.stdout
    assert "full" in done.stdout
    assert "answers again" in done.stdout
    assert float(done.stdout.split("slowest")[1]) < 1.0
    _, _, points = shown(f"sqlite:///{tmp_path}/runs/m.db")
    assert set(points) == {("loss", step) for step in range(1, 4101)}


def test_a_store_that_a_kill_leaves_half_made_is_made_anew(tmp_path: Path) -> None:
    """Killed at each of many moments while MLflow lays out its tables; then all begins as if it never had been."""
    wanted = recipe(tmp_path)
    uri = str(store_uri(wanted))
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(exist_ok=True)
    for number in range(4):
        made = subprocess.Popen(
            [sys.executable, "-c", f"from gamut.track.store import connect; connect({uri!r}).search_experiments()"]
        )
        end = time.monotonic() + 60
        while not (parts := [path for path in tmp_path.glob("mlflow.db.*.partial") if path.stat().st_size]):
            assert made.poll() is None
            assert time.monotonic() < end
        time.sleep(0.05 * number)
        made.kill()
        made.wait()
        assert parts
        if database.exists():  # it was faster
            database.unlink()
    with Tracker(RunFolder.open(wanted), wanted) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.checkpoint(1)
    assert set(shown(uri)[2]) == {("loss", 1)}
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
