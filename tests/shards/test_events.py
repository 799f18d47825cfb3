"""Strong labels on their way from a table, or from the KEY.json of third-party tars, into the index."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.joined import open_sets
from gamut.shards.part import merge
from gamut.shards.rebuild import rebuild
from gamut.shards.tars import Tars

from .conftest import encode
from .layouts import convert, missing, passed_over, sound

EVENTS = """filename\tonset\toffset\tevent_label
a.wav\t0.5\t0.75\tbell
a.wav\t0.0\t0.4\tdog
a.wav\t0.1\t0.6\tdog
sub/b.wav\t0.25\t1.04\tdog
c\t\t\t
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three clips of a second: a and b get events, c has a label."""
    src = tmp_path / "src"
    for number, name in enumerate(("a.wav", "sub/b.wav", "c.wav")):
        sound(src / name, 1.0, seed=number)
    (src / "clips.csv").write_text("path,labels\na.wav,rain;bell\nsub/b.wav,dog\nc.wav,bell\n")
    (src / "strong.tsv").write_text(EVENTS)
    return src


def told(index: Index) -> dict[str, list[tuple[int, int, str]]]:
    return {
        index.key(row): [(int(a), int(b), index.labels[c]) for a, b, c in index.events(row)]
        for row in range(len(index))
    }


WANTED = {
    "a": [(0, 9600, "dog"), (8000, 12000, "bell")],  # the dog's two events overlap
    "b": [(4000, 16000, "dog")],  # 40 ms beyond the end are rounding
    "c": [],
}


def test_a_table_of_events_is_in_the_index_and_in_the_tars(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dst = tmp_path / "set"
    assert convert("csv", source, dst, "--events", str(source / "strong.tsv")) == 0
    said = capsys.readouterr().out
    assert "1 events that overlap or touch another of their class" in said
    assert "1 rows of the events without an event" in said
    index = Index.open(dst)
    assert told(index) == WANTED
    labels = {index.key(row): {index.labels[one] for one in index.label_ids(row)} for row in range(3)}
    assert labels == {"a": {"rain", "bell", "dog"}, "b": {"dog"}, "c": {"bell"}}  # what has no time stays
    assert {"event", "event_offset", "event_onset", "event_end"} <= index.arrays.keys()

    before = index.fingerprint
    for file in (dst / "index").glob("*.npy"):
        file.unlink()
    (dst / "index" / "index.json").unlink()
    rebuild(Tars.find(str(dst)), dst)  # from the tars alone
    assert told(Index.open(dst)) == WANTED
    assert Index.open(dst).fingerprint == before

    damaged = bytearray((dst / "index" / "event_end.npy").read_bytes())
    damaged[-1] ^= 1
    (dst / "index" / "event_end.npy").write_bytes(damaged)
    assert main(["verify", str(dst), "--workers", "1"]) == 1
    assert "event_end.npy" in capsys.readouterr().out


def test_the_same_by_keys_commas_and_other_names_of_columns(source: Path, tmp_path: Path) -> None:
    table = source / "other.tsv"
    table.write_text(
        "# seen by two people\nsegment_id,start_time_seconds,end_time_seconds,label\na,0.5,0.75,bell\n"
        "a,0.0,0.6,dog\nb.wav,0.25,1.0,dog\n"
    )
    convert("csv", source, tmp_path / "set", "--events", str(table))
    assert told(Index.open(tmp_path / "set")) == WANTED


def test_a_set_without_events_is_what_it_always_was(source: Path, tmp_path: Path) -> None:
    convert("csv", source, tmp_path / "set")
    index = Index.open(tmp_path / "set")
    assert index.event_offset is None
    assert not any(name.startswith("event") for name in index.arrays)
    assert [len(index.events(row)) for row in range(3)] == [0, 0, 0]


def test_events_say_the_classes_where_nothing_else_does(source: Path, tmp_path: Path) -> None:
    (source / "clips.csv").write_text("path\na.wav\nsub/b.wav\nc.wav\n")
    convert("csv", source, tmp_path / "set", "--events", str(source / "strong.tsv"))
    assert Index.open(tmp_path / "set").labels == ("bell", "dog")


def test_strong_and_weak_clips_are_counted(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert("csv", source, tmp_path / "set", "--events", str(source / "strong.tsv"))
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "set"), "--workers", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 events, by class" in said
    assert "2 clips have events (strong labels), 1 have labels without times (weak)" in said
    found = json.loads((tmp_path / "set" / "index" / "statistics.json").read_text())
    assert (found["strong"], found["events"]) == (2, {"bell": 1, "dog": 2, "rain": 0})


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a.wav\t0.5\t0.25\tbell", r"line 3: the event ends at 0.25 s, and begins only at 0.5 s"),
        ("a.wav\t-1\t0.25\tbell", r"line 3: the event begins at -1 s"),
        ("a.wav\tsoon\t0.25\tbell", r"line 3: onset is 'soon', which is not a number"),
        ("a.wav\t0.1\t0.25\tbel", r"line 3: 'bel' is none of the 3 classes of clips; the nearest valid name is bell"),
        ("a.wav\t0.1\t0.25\t", r"line 3 has no event_label"),
        ("\t0.1\t0.25\tbell", r"line 3 has no filename"),
        ("sub/bb.wav\t0.1\t0.25\tbell", r"line 3: sub/bb.wav is no clip of clips; the nearest valid name is sub/b.wav"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, sentence: str
) -> None:
    (source / "strong.tsv").write_text(f"filename\tonset\toffset\tevent_label\na.wav\t0.5\t0.75\tbell\n{row}\n")
    assert convert("csv", source, tmp_path / "set", "--events", str(source / "strong.tsv")) == 2
    assert re.search(sentence, " ".join(capsys.readouterr().err.split()))
    assert not list((tmp_path / "set").glob("*.tar"))


def test_a_missing_column_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "strong.tsv").write_text("filename\tonset\tevent_label\na.wav\t0.5\tbell\n")
    assert convert("csv", source, tmp_path / "set", "--events", str(source / "strong.tsv")) == 2
    assert "has no column offset; it has filename, onset, event_label" in " ".join(capsys.readouterr().err.split())


def test_a_name_of_two_clips_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound(source / "more" / "b.wav", 1.0, seed=7)
    (source / "clips.csv").write_text("path,labels\nsub/b.wav,dog\nmore/b.wav,dog\n")
    (source / "strong.tsv").write_text("filename\tonset\toffset\tevent_label\nb.wav\t0.5\t0.75\tdog\n")
    assert convert("csv", source, tmp_path / "set", "--events", str(source / "strong.tsv")) == 2
    assert "line 2: b.wav may be the clip b-" in " ".join(capsys.readouterr().err.split())


def test_an_event_after_the_end_leaves_its_clip_out_or_stops(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "strong.tsv").write_text("filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.25\tbell\n")
    words = ("--events", str(source / "strong.tsv"))
    assert convert("csv", source, tmp_path / "set", *words) == 0
    quarantine = json.loads((tmp_path / "set" / "index" / "quarantine.json").read_text())
    assert quarantine["counts"] == {"events": 1}
    sentence = "'bell' in line 2 of the events from 0.5 to 1.25 s is not within a clip of 1.00 s."
    assert sentence in quarantine["files"][0]["message"]
    assert len(Index.open(tmp_path / "set")) == 2
    capsys.readouterr()
    assert convert("csv", source, tmp_path / "stopped", *words, "--on-error", "stop") == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_events_of_a_missing_file_are_counted(source: Path, tmp_path: Path) -> None:
    (source / "a.wav").unlink()
    convert("csv", source, tmp_path / "set", "--events", str(source / "strong.tsv"))
    assert passed_over(tmp_path / "set")["events of clips whose file is missing"] == 3
    assert len(missing(tmp_path / "set")) == 1


def test_third_party_tars_say_their_events_in_json(tmp_path: Path) -> None:
    clip = encode(np.zeros(16000), 16000)
    about = {
        "a": {"labels": ["rain"], "events": [[0.5, 0.75, "bell"], [0, 1.05, "dog"]]},
        "b": {"events": [{"onset": 0.25, "offset": 0.5, "event_label": "dog"}]},
        "c": {"labels": ["bell"]},
        "d": {"events": [[0.5, 2.0, "dog"]]},
        "e": {"events": [[0.5, "dog"]]},
    }
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "one.tar", "w") as tar:
        for key, content in about.items():
            for name, payload in ((f"{key}.json", json.dumps(content).encode()), (f"{key}.wav", clip)):
                member = tarfile.TarInfo(name)
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
    assert main(["index", str(tmp_path / "tars"), "--out", str(tmp_path / "set"), "--workers", "1"]) == 0
    index = Index.open(tmp_path / "set")
    assert told(index) == {
        "a": [(0, 16000, "dog"), (8000, 12000, "bell")],
        "b": [(4000, 8000, "dog")],
        "c": [],
    }
    assert {index.labels[one] for one in index.label_ids(0)} == {"rain", "bell", "dog"}
    quarantine = json.loads((tmp_path / "set" / "index" / "quarantine.json").read_text())
    assert quarantine["counts"] == {"events": 1, "labels": 1}


def test_a_mixture_of_a_set_with_events_and_one_without(source: Path, tmp_path: Path) -> None:
    convert("csv", source, tmp_path / "strong", "--events", str(source / "strong.tsv"), "--name", "strong")
    convert("csv", source, tmp_path / "weak", "--name", "weak")
    joined = open_sets([tmp_path / "weak", tmp_path / "strong"])
    assert told(open_sets([tmp_path / "strong"])) == WANTED
    both = [[(int(a), int(b), joined.labels[c]) for a, b, c in joined.events(row)] for row in range(6)]
    strong = Index.open(tmp_path / "strong")
    assert both == [[], [], [], *(told(strong)[strong.key(row)] for row in range(3))]


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 10), st.integers(0, 2)).map(
            lambda one: (one[0], one[0] + one[1], one[2])
        )
    )
)
def test_merging_keeps_what_is_heard_when(events: list[tuple[int, int, int]]) -> None:
    whole, fewer = merge(events)
    assert len(whole) == len(events) - fewer

    def heard(some: list) -> set[tuple[int, int]]:
        return {(label, at) for onset, offset, label in some for at in range(onset, offset)}

    assert heard(whole) == heard(events)
    assert whole == sorted(whole)
    for label in range(3):
        own = [one for one in whole if one[2] == label]
        assert all(first[1] < second[0] for first, second in itertools.pairwise(own))  # none touches the next
