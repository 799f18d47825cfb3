"""Text as other programs save it."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from gamut.errors import ShardError
from gamut.text import open_text, read_lines

FORMS = {
    "plain": b"dog\ncat\n",
    "mark": codecs.BOM_UTF8 + b"dog\ncat\n",
    "windows": codecs.BOM_UTF8 + b"dog \r\ncat\r\n",
    "mac": b"dog\rcat",
    "joined": codecs.BOM_UTF8 + b"dog\n" + codecs.BOM_UTF8 + b"cat\n",
    "powershell": codecs.BOM_UTF16_LE + "dog\r\ncat\r\n".encode("utf-16-le"),
    "utf-16-be": codecs.BOM_UTF16_BE + "dog\r\ncat\r\n".encode("utf-16-be"),
}


@pytest.mark.parametrize("form", FORMS)
def test_lines_are_the_same_however_they_were_saved(tmp_path: Path, form: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(FORMS[form])
    assert read_lines(path, ShardError) == ["dog", "cat"]
    with open_text(path) as file:
        assert file.read().replace(" ", "").replace("\ufeff", "").split() == ["dog", "cat"]


def test_what_separates_no_lines_stays_in_them(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a\u2028b\x85c\n\nd", encoding="utf-8")
    assert read_lines(path, ShardError) == ["a\u2028b\x85c", "", "d"]


def test_what_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ShardError, match=r"list.txt is not UTF-8 text .* Save it as UTF-8"):
        read_lines(tmp_path / "list.txt", ShardError)
    with pytest.raises(ShardError, match=r"gone.txt cannot be read: No such file"):
        read_lines(tmp_path / "gone.txt", ShardError)
