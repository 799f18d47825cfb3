"""Every format of the one list, as the programs that open it want it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from gamut.tag.formats import COLUMNS, FORMATS, as_csv, as_lines, as_srt
from gamut.tag.result import Choice, Span, Tagged, Words

LABELS = ("Dog", "Rain\tand\nwind")
SPANS = (
    Span(0.0, 2.0, np.array([0.9, 0.1], np.float32)),
    Span(2.0, 3723.4567, np.array([0.2, 0.8], np.float32)),
)
TAGGED = Tagged(Path("a, b.wav"), 3723.4567, LABELS, SPANS)
WORDS = (Words(0.5, 1.25, " Hello,\nworld "), Words(3599.9996, 3600.0, " again"))
SAID = Tagged(Path("c.wav"), 3723.4567, LABELS, SPANS, " Hello, world again", WORDS)


def test_a_label_track_is_start_end_and_label_with_tabs_between() -> None:
    found = [line.split("\t") for line in FORMATS["audacity"].of(TAGGED, Choice(1)).splitlines()]
    assert found == [["0.000000", "2.000000", "Dog"], ["2.000000", "3723.456700", "Rain and wind"]]
    beside = FORMATS["audacity"].of(SAID, Choice(1)).splitlines()
    starts = [float(line.split("\t")[0]) for line in beside]
    assert starts == sorted(starts)
    assert "0.500000\t1.250000\tHello, world" in beside
    assert len(beside) == 4


def test_subtitles_are_the_text_and_without_any_the_tags() -> None:
    assert FORMATS["srt"].of(TAGGED, Choice(2)) == (
        "1\n00:00:00,000 --> 00:00:02,000\nDog, Rain and wind\n\n"
        "2\n00:00:02,000 --> 01:02:03,457\nRain and wind, Dog\n\n"
    )
    assert FORMATS["srt"].of(SAID, Choice(2)) == (
        "1\n00:00:00,500 --> 00:00:01,250\nHello, world\n\n2\n01:00:00,000 --> 01:00:00,000\nagain\n\n"
    )
    assert FORMATS["srt"].of(TAGGED, Choice(least=2.0)) == ""


@pytest.mark.parametrize("name", FORMATS)
def test_what_comes_part_by_part_is_the_whole_file(name: str) -> None:
    """But for those that have a line or a picture a recording, which a stream has a part."""
    parts = [Tagged(TAGGED.path, span.end, LABELS, (span,)) for span in SPANS]
    joined = "".join(FORMATS[name].write(parts, Choice(2)))
    if name not in ("table", "json"):
        assert joined == FORMATS[name].of(TAGGED, Choice(2))
    written = FORMATS[name].write(iter(parts), Choice(2))
    assert len(list(written)) >= len(parts)


def test_subtitles_are_numbered_over_all_parts() -> None:
    assert [piece.split("\n")[0] for piece in as_srt([SAID, SAID], Choice())] == ["1", "2", "3", "4"]


def test_a_csv_has_one_header_and_quotes_what_needs_it() -> None:
    rows = list(csv.reader(io.StringIO("".join(as_csv([TAGGED, SAID], Choice(1))))))
    assert rows[0] == list(COLUMNS)
    assert len(rows) == 1 + 2 + 4
    assert rows[1][0] == "a, b.wav"
    assert rows[-1] == ["c.wav", "3599.9996", "3600.0", "text", "again"]


def test_a_line_of_json_a_recording() -> None:
    one, other = (json.loads(line) for line in "".join(FORMATS["json"].write([TAGGED, SAID], Choice())).splitlines())
    assert "text" not in one
    assert other["segments"][0] == {"start": 0.5, "end": 1.25, "text": " Hello,\nworld "}


def test_a_stream_is_lines_for_people() -> None:
    assert "".join(as_lines([SAID], Choice(1))) == (
        "        0.0 - 2.0  Dog 90%\n"
        "        0.5 - 1.2  Hello,\nworld\n"
        "     2.0 - 3723.5  Rain\tand\nwind 80%\n"
        "  3600.0 - 3600.0  again\n"
    )
