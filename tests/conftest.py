"""What every test may use: the real audio beside the repository, where there is any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with esc10/ (ESC-50 layout) and fsdd/ (Speech Commands layout)."""
    folder = Path(os.environ.get("GAMUT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "esc10").is_dir():
        message = f"the real audio for this test is not at {folder} (set GAMUT_TEST_DATA to a folder that has esc10/)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
