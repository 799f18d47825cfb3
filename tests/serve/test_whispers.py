"""gamut serve with a Whisper: text and tags of a file that is dropped, and of the microphone, in a real browser.

GAMUT_TEST_WHISPER names a folder of transformers with a real one (docs/tagging.md); a made one is always tried.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gamut.export.__main__ import main as export
from gamut.tag.__main__ import main as tag
from tests.export.models import a_head
from tests.lacking import chromium
from tests.tag.whispers import talking_whisper

from .test_page import dropped, served, sound

REAL = os.environ.get("GAMUT_TEST_WHISPER", "")
pytestmark = pytest.mark.long


@pytest.fixture(params=["made, with a head", "real"])
def words(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """What is typed of a model: an exported folder of a head with its Whisper, or a Whisper alone."""
    if request.param == "real":
        if not REAL:
            pytest.skip("GAMUT_TEST_WHISPER names no folder with a real Whisper")
        return [REAL, "--transcribe"]
    whisper = talking_whisper(tmp_path / "whisper")
    made = ["--to", "safetensors", str(tmp_path / "exported"), "--encoder", str(whisper)]
    assert export([str(a_head(tmp_path / "run")[0]), *made]) == 0
    return [str(tmp_path / "exported"), "--encoder", str(whisper), "--transcribe", "--language", "en", "--every", "2"]


def test_text_and_tags_of_a_file_and_of_the_microphone(
    words: list[str], browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sound(tmp_path / "talk.wav", 5.0)
    capsys.readouterr()
    assert tag([*words, str(file), "--format", "json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    (tmp_path / "temporary").mkdir()
    with served(tmp_path / "temporary", *words) as server:
        page = dropped(browser, server, file, 390)
        page.wait_for_selector("#heard .downloads")
        assert page.inner_text("#text").split() == expected["text"].split()
        rows = len(expected["segments"]) + len(expected.get("spans", ()))
        assert page.locator("#heard tr").count() == rows
        with page.expect_download() as coming:
            page.locator("#heard .downloads a").nth(1).click()
        got = json.loads(Path(coming.value.path()).read_text())
        assert {**got, "file": expected["file"]} == expected
        page.close()

        fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        fake.append(f"--use-file-for-fake-audio-capture={file}")
        hearing = chromium(browser.browser_type, *fake)
        page = hearing.new_context(permissions=["microphone"]).new_page()
        page.set_default_timeout(120_000)
        page.goto(server.url, wait_until="domcontentloaded")
        page.get_by_label("Record audio").click()
        page.locator("#sound .record-button").click()
        page.wait_for_timeout(3000)
        page.locator("#sound .stop-button:visible").click()
        page.wait_for_selector("#heard .downloads")
        name, seconds = page.inner_text("#what").rstrip(": ").rsplit(", ", 1)
        assert name.endswith(".wav")
        assert 1.0 < float(seconds.removesuffix(" s")) < 30.0
        assert page.locator("#text").count() == 1
        hearing.close()
