"""The ranks of these tests are forked from a server that imports the modules beside this file by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def built_operator() -> None:
    """DeepSpeed's CPU operator is there before any rank waits for it."""
    from gamut.train.build import build

    build()
