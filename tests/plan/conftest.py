"""Tables of clips for the tests of the plan."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gamut.plan import Clips
from tests import clips

MakeClips = Callable[..., Clips]


@pytest.fixture(scope="session")
def make_clips() -> MakeClips:
    return clips.make_clips
