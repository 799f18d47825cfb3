"""What a machine may lack that a test needs. Its tests are then skipped with the reason, or, where CI is set, fail."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserType

CI = bool(os.environ.get("CI"))
INSTALL = "on this machine (bash tests/install_programs.sh)"


def lacking(reason: str) -> NoReturn:
    """Leave a test or fixture that cannot run here."""
    pytest.fail(reason) if CI else pytest.skip(reason)


def chromium(kind: BrowserType, *flags: str) -> Browser:
    """The machine's, else playwright's own."""
    program = shutil.which("chromium") or kind.executable_path
    if not Path(program).is_file():
        lacking(f"there is no chromium {INSTALL}")
    return kind.launch(executable_path=program, args=["--no-sandbox", *flags])


needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg") and not CI, reason=f"there is no ffmpeg {INSTALL}")
