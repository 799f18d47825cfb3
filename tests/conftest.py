"""What every test may use: the real audio beside the repository, where there is any."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from gamut.processes import Process, let_threads_sleep
from tests.lacking import chromium
from tests.stand_in import stand_in

let_threads_sleep()  # there are more workers than cores
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

TESTS = Path(__file__).parent

_approx = pytest.approx


def _of_numbers(expected: Any, *words: Any, **tolerance: Any) -> Any:
    """`pytest.approx` for numbers, and lists and dictionaries of them. Raises TypeError for an array, whose elements it
    would compare one by one."""
    inside = expected.values() if isinstance(expected, dict) else expected if isinstance(expected, list) else ()
    if any(getattr(one, "shape", ()) for one in (expected, *inside)):
        raise TypeError("approx takes an array element by element: use tests.close.assert_close")
    return _approx(expected, *words, **tolerance)


pytest.approx = _of_numbers


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with esc10/ (ESC-50 layout) and fsdd/ (Speech Commands layout): real recordings where there are any
    beside the repository or in GAMUT_TEST_DATA, else sounds made in the same layouts (`GAMUT_TEST_DATA=made` asks for
    these). In CI the real ones must be there unless the made ones are asked for."""
    given = os.environ.get("GAMUT_TEST_DATA", "")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if given != "made" and (folder / "esc10").is_dir():
        return folder
    if given != "made" and (given or os.environ.get("CI")):
        pytest.fail(
            f"the real audio for this test is not at {folder}: set GAMUT_TEST_DATA to a folder that has esc10/ and "
            "fsdd/, or to `made`"
        )
    return stand_in(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """As a person would look at pages; one for all, as playwright runs once in a process."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as programs:
        opened = chromium(programs.chromium)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def gone() -> Callable[[Process, float], bool]:
    """Whether a process ends within so many seconds."""

    def gone(process: Process, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not process.alive():
                return True
            time.sleep(0.05)
        return False

    return gone


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no name of a test: they may hold the time at which they were made, of which each worker has its own."""
    return argname if isinstance(val, bytes) else None


@functools.cache
def needs_slurm(file: Path) -> bool:
    return "pytest.mark.slurm" in file.read_text()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several workers run the tests, a file's stay together (they share what is dear to make), and so do the
    files of the one SLURM that a machine can have. (pytest-xdist 3.8's own groups do nothing with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "slurm" if needs_slurm(TESTS.parent / file) else file

    return Files(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, for --no-loadscope-reorder: what starts commands, ranks or a scheduler."""
    if hasattr(config, "workerinput"):
        long = (TESTS, TESTS / "train", TESTS / "bench")
        items.sort(key=lambda item: (not needs_slurm(item.path), item.path.parent not in long))
