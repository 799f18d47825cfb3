"""Lists, tables and labels as people have them: byte-order marks, quotes astray, vectors, captions."""

from __future__ import annotations

import codecs
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gamut.errors import RecipeError, ShardError
from gamut.shards import Index
from gamut.shards.convert import SOURCES, Record
from gamut.shards.convert.events import with_events
from gamut.shards.labels import read_classes
from gamut.shards.select import chosen_rows
from gamut.tag.choose import read_labels

from .layouts import clips, convert, missing, passed_over, sound
from .test_foreign import index, write_tar
from .test_foreign import sound as member

MARK = codecs.BOM_UTF8


def labels(made: Index) -> list[list[str]]:
    return [[made.labels[label] for label in made.label_ids(row)] for row in range(len(made))]


def tar(folder: Path, described: dict[str, bytes]) -> Path:
    """A tar with a clip for each member that describes one."""
    members = {}
    for number, (name, content) in enumerate(described.items()):
        members |= {name.rpartition(".")[0] + ".flac": member(number, "flac"), name: content}
    write_tar(folder / "0.tar", members)
    return folder


def vectors(folder: Path, *lists: object) -> Path:
    return tar(folder, {f"{at}.json": json.dumps({"target": one}).encode() for at, one in enumerate(lists)})


# --- labels of third-party tars


def test_vectors_of_zeros_and_ones_are_classes_by_position(tmp_path: Path) -> None:
    (tmp_path / "three.txt").write_bytes(MARK + b"ant\r\nbee\r\ncat\r\n")
    one_hot = vectors(tmp_path / "one", [0.0, 1.0, 0.0], [0, 0, 1], [1, 0, 0], [0, 0, 0])
    made = index(one_hot, tmp_path / "a")
    assert (made.labels, labels(made)) == (("0", "1", "2"), [["1"], ["2"], ["0"], []])
    made = index(one_hot, tmp_path / "b", "--classes", str(tmp_path / "three.txt"))
    assert (made.labels, labels(made)) == (("ant", "bee", "cat"), [["bee"], ["cat"], ["ant"], []])
    made = index(vectors(tmp_path / "many", [0, 1, 0, 0, 1], [True, True, False, False, False]), tmp_path / "c")
    assert (made.labels, labels(made)) == (tuple("01234"), [["1", "4"], ["0", "1"]])
    text = tar(tmp_path / "cls", {"a.cls": b"0\n1\n0\n", "b.cls": b"1\n0\n0\n"})
    assert labels(index(text, tmp_path / "d")) == [["1"], ["0"]]


def test_class_ids_stay_class_ids(tmp_path: Path) -> None:
    assert labels(index(vectors(tmp_path / "a", [0, 1], [1], [0]), tmp_path / "a1")) == [["0", "1"], ["1"], ["0"]]
    assert labels(index(vectors(tmp_path / "b", [1, 0], [0, 3]), tmp_path / "b1"))[0] == ["1", "0"]
    (tmp_path / "two.txt").write_text("no\nyes\n")
    pairs = vectors(tmp_path / "c", [0, 1], [1, 0])  # of the table's length: vectors
    assert labels(index(pairs, tmp_path / "c1", "--classes", str(tmp_path / "two.txt"))) == [["yes"], ["no"]]
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    assert labels(index(pairs, tmp_path / "c2", "--classes", str(tmp_path / "four.txt"))) == [["a", "b"], ["b", "a"]]


@pytest.mark.parametrize(
    ("lists", "names", "why"),
    [
        (
            ([0, 1, 0, 0, 1], [1, 0, 0, 0, 0]),
            "a\nb\nc\n",
            "0.tar/0 are a list of 5 zeros and ones.*the class table has 3",
        ),
        (([0, 1, 0], [0, 1]), "", "0.tar/0 are a list of 3 .*other clips have lists of 2"),
        (([4], [0, 1, 0]), "", "0.tar/1 are a list of 3 .*other clips have other labels"),
        (([0, 1], [1, 0]), "", "0.tar/0 are a list of 2 .*no class table says which"),
    ],
)
def test_lists_that_may_be_vectors_or_ids_are_refused(tmp_path: Path, capsys, lists, names: str, why: str) -> None:
    folder = vectors(tmp_path / "set", *lists)
    (tmp_path / "names.txt").write_text(names)
    words = ("--classes", str(tmp_path / "names.txt")) if names else ()
    with pytest.raises(AssertionError):
        index(folder, tmp_path / "index", *words)
    said = capsys.readouterr().err
    assert re.search(why, said)
    assert "or the class ids 0 and 1" in said
    assert "names in the file of --classes" in said


def test_labels_with_marks_commas_and_fractions(tmp_path: Path) -> None:
    folder = tar(tmp_path / "a", {"0.txt": MARK + b"dog\r\n", "1.txt": b"dog\ncat"})
    assert labels(index(folder, tmp_path / "a1")) == [["dog"], ["dog", "cat"]]
    folder = tar(tmp_path / "b", {"0.cls": MARK + b"0.0\r\n", "1.cls": b"2", "2.cls": "1.0".encode("utf-16")})
    made = index(folder, tmp_path / "b1")
    assert (made.labels[0], labels(made)) == ("0", [["0"], ["2"], ["1"]])
    folder = tar(tmp_path / "c", {"0.json": b'{"labels": "/m/09x0r,/m/05zppz"}', "1.json": MARK + b'["/t/dd00003"]'})
    assert labels(index(folder, tmp_path / "c1")) == [["/m/09x0r", "/m/05zppz"], ["/t/dd00003"]]
    (tmp_path / "classes.csv").write_text(CLASSES)
    folder = tar(tmp_path / "d", {"0.json": b'{"labels": "/m/09x0r,/m/05zppz"}', "1.txt": b"Speech, Music"})
    made = index(folder, tmp_path / "d1", "--classes", str(tmp_path / "classes.csv"))
    assert made.labels == ("Speech", "Male speech, man speaking", "Music")
    assert labels(made) == [["Speech", "Male speech, man speaking"], ["Speech", "Music"]]


CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/m/04rlf,Music\n'


def test_captions_are_no_classes_unless_somebody_says_so(tmp_path: Path, capsys) -> None:
    told = (
        "a dog barks at the rain",
        "two men talk in a room",
        "a dog barks at the rain",
        "wind blows over the old roof",
    )
    folder = tar(tmp_path / "set", {f"{at}.txt": one.encode() for at, one in enumerate(told)})
    with pytest.raises(AssertionError):
        index(folder, tmp_path / "index")
    assert "seem to be captions, not classes: 4 clips have 3 different ones" in capsys.readouterr().err
    assert index(folder, tmp_path / "none", "--labels", "none").labels == ()
    assert len(index(folder, tmp_path / "txt", "--labels", "txt").labels) == 3


@pytest.mark.parametrize("form", [MARK + b"%s", b"%s\n\n"])
def test_class_tables_are_read_alike_everywhere(tmp_path: Path, form: bytes) -> None:
    for name, content in (
        ("list.txt", b"ant\r\nbee, wild\r\n"),
        ("t.csv", b'index,mid,display_name\r\n0,/m/a,ant\r\n1,/m/b,"bee, wild"\r\n'),
    ):
        (tmp_path / name).write_bytes(form % content)
        assert read_classes(tmp_path / name)[0] == list(read_labels(tmp_path / name)) == ["ant", "bee, wild"]
    (tmp_path / "labelvocabulary.csv").write_text('label,idx\n"bee, wild",1\nant,0\n')  # HEAR's
    assert read_classes(tmp_path / "labelvocabulary.csv") == (["ant", "bee, wild"], {"ant": 0, "bee, wild": 1})
    assert read_classes(tmp_path / "t.csv")[1] == {"ant": 0, "bee, wild": 1, "/m/a": 0, "/m/b": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a\n\nb\n", "line 2 names no class"),
        ("a\nb\na\n", "line 3 names 'a' again"),
        ("index,display_name\n0,a\n2,b\n", "line 3: index 2 of 'b' is out of order"),
        ("idx,label\n0,a\n0,b\n", "line 3: idx 0 is there already, for 'a'"),
        ("idx,label\n0,a\n2,b\n", "idx must be the whole numbers from 0"),
        ('display_name\n"a\nb\n', "line 2: a quote"),
        ("", "names no classes"),
    ],
)
def test_what_is_wrong_with_a_class_table_is_a_sentence(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(ShardError, match=why):
        read_classes(tmp_path / "classes.txt")
    with pytest.raises(RecipeError, match=why):
        read_labels(tmp_path / "classes.txt")


# --- lists


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Speech Commands of two words; its lists are the test's to write."""
    for word in ("no", "yes"):
        for number in range(3):
            sound(tmp_path / "src" / word / f"0000000{number}_nohash_0.wav", 0.02)
    return tmp_path / "src"


@pytest.mark.parametrize(
    "path",
    [
        "{word}/0000000{number}_nohash_0.wav",
        r"{word}\0000000{number}_nohash_0.wav",
        "./{word}/0000000{number}_nohash_0.wav",
    ],
)
@pytest.mark.parametrize("mark", [b"", MARK])
def test_what_a_list_names_never_gets_into_training(words: Path, tmp_path: Path, path: str, mark: bytes) -> None:
    for number, name in enumerate(("validation_list.txt", "testing_list.txt")):
        lines = [path.format(word=word, number=number) for word in ("yes", "no")]
        (words / name).write_bytes(mark + "\r\n".join(lines).encode() + b"\r\n")
    records = [one for one in SOURCES["speechcommands"]().list(words).records if isinstance(one, Record)]
    assert {one.key: one.columns["split"] for one in records} == {
        f"{word}/0000000{number}_nohash_0": (1, 2, 0)[number] for word in ("no", "yes") for number in range(3)
    }


@pytest.mark.parametrize(
    "name",
    [
        "Yes/00000001_nohash_0.wav",
        "yes/00000001_nohash_O.wav",
        "v0.02/yes/00000001_nohash_0.wav",
    ],
)
def test_a_listed_name_that_is_no_file_is_refused_with_the_nearest(words: Path, name: str) -> None:
    (words / "validation_list.txt").write_text("")
    (words / "testing_list.txt").write_text(f"bird/00000001_nohash_0.wav\n{name}\n")  # there is no folder bird
    with pytest.raises(ShardError, match=r"1 names .* are no files of .*nearest valid name is yes/00000001_nohash_0"):
        SOURCES["speechcommands"]().list(words)


def test_other_lists_with_marks(shards: Path, tmp_path: Path) -> None:
    made = Index.open(shards)
    (tmp_path / "keys.txt").write_bytes(MARK + f"{made.key(3)}\r\n{made.key(5)} \r\n".encode())
    assert chosen_rows(made, {"keys": str(tmp_path / "keys.txt")}).tolist() == [3, 5]
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    sound(chapter / "84-121123-0000.flac")
    (chapter / "84-121123.trans.txt").write_bytes(MARK + b"84-121123-0000 GO ON\r\n")
    (record,) = SOURCES["librispeech"]().list(tmp_path / "LibriSpeech").records
    assert isinstance(record, Record)
    assert record.text == "GO ON"


# --- tables


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_audioset_labels_without_quotes_are_all_read(tmp_path: Path) -> None:
    src = tmp_path / "src"
    written(src / "class_labels_indices.csv", CLASSES)
    rows = "YTID,start_seconds,end_seconds,positive_labels\n--4gqARaEJE, 30.000, 40.000, /m/09x0r,/m/05zppz,/m/068hy\n"
    table = written(src / "balanced_train_segments.csv", rows + '-0DdlOuIFUI, 30.000, 40.000, "/m/09x0r"\n')
    for video in ("--4gqARaEJE", "-0DdlOuIFUI"):
        sound(src / f"{video}.wav")
    assert convert("audioset", src, tmp_path / "set") == 0
    assert clips(tmp_path / "set")["--4gqARaEJE"].labels == ("Speech", "Male speech, man speaking")
    assert clips(tmp_path / "set")["-0DdlOuIFUI"].labels == ("Speech",)
    assert passed_over(tmp_path / "set") == {"labels missing in the class table": 1}
    written(table, "--4gqARaEJE, 30.000, 40.000, /m/09x0r, 12.5\n")
    with pytest.raises(ShardError, match=r"line 1: the label '12.5' is no machine id"):
        list(SOURCES["audioset"]().list(src).records)


@pytest.mark.parametrize(
    ("source", "content", "why"),
    [
        ("vggsound", 'a,1,"people marching,test\nb,30,"waterfall",train\nc,1,dog,train\n', "line 1: a quote"),
        ("vggsound", 'c,1,dog,train\na,1,"people,test\nb,30,dog",train\n', "line 2: a quote .* only on line 3"),
        ("vggsound", 'c,1,dog,train\na,1,"people marching,test\n', "line 2: a quote"),
        ("vggsound", "c,1,speech, man speaking,train\n", "line 1 has 5 fields, but needs 4.* must be in quotes"),
        ("csv", 'path,labels\na.wav,"dog\nb.wav,cat"\n', "line 2: labels goes on over several lines"),
        ("csv", 'path,labels\na.wav,"dog" barks\n', "line 2: a quote"),
        ("csv", "path,labels,labels\na.wav,dog,cat\n", "two columns labels"),
        ("csv", "path,labels,year\na.wav,dog,1\nb.wav,dog,1\na.wav,cat,2\n", "line 4: .* on line 2, with another year"),
        ("csv", "path,labels,split\na.wav,dog,train\na.wav,dog,test\n", "line 3: .* on line 2, with another split"),
        ("csv", "path,label\na.wav,dog\n", "classes belong into the column `labels`"),
    ],
)
def test_what_is_wrong_with_a_table_names_its_line(tmp_path: Path, source: str, content: str, why: str) -> None:
    for file in ("a", "b", "c"):
        sound(tmp_path / f"{file}.wav")
    written(tmp_path / f"{source}.csv", content)
    with pytest.raises(ShardError, match=f"{source}.csv.*{why}"):
        list(SOURCES[source]().list(tmp_path).records)


def test_one_file_on_two_rows_is_a_clip_with_two_labels(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    for name in ("a", "b"):
        sound(src / "x" / f"{name}.wav")
    text = '"barks,\nthen runs"'
    rows = (f"x\\a.wav,dog,train,{text}", "x\\b.wav,cat,test,", f"x\\a.wav,cat;dog,train,{text}", "x\\b.wav,cat,test,")
    (src / "t.csv").write_bytes(MARK + "\r\n".join(("path,labels,split,text", *rows, "")).encode())
    assert convert("csv", src, dst) == 0
    found = clips(dst)
    assert {key: clip.labels for key, clip in found.items()} == {"a": ("dog", "cat"), "b": ("cat",)}
    assert found["a"].about["text"] == "barks,\nthen runs"
    assert (missing(dst), passed_over(dst)) == ([], {"rows that repeat another": 1})


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sound(tmp_path / f"{name}.wav")
    written(tmp_path / "t.tsv", "path\tlabels\na.wav\t10\nb.wav\t2\n")
    assert SOURCES["csv"]().list(tmp_path / "t.tsv").labels == ("2", "10")
    for name in ("10", "9"):
        sound(tmp_path / "src" / name / "x.wav")
    listing = SOURCES["folder"]().list(tmp_path / "src")
    assert listing.labels == ("9", "10")
    assert {str(one.provenance["file"]): one.labels for one in listing.records} == {"10/x.wav": (1,), "9/x.wav": (0,)}  # type: ignore[union-attr]
    written(tmp_path / "events.csv", "filename,onset,offset,event_label\n10\\x.wav,0,0.01,10\n9/x.wav,0,0.01,9\n")
    assert with_events(replace(listing, labels=()), tmp_path / "events.csv").labels == ("9", "10")


def test_a_table_without_labels_says_which_columns_it_has(tmp_path: Path, capsys) -> None:
    sound(tmp_path / "src" / "a.wav")
    written(tmp_path / "src" / "t.csv", "path,category\na.wav,dog\n")
    assert convert("csv", tmp_path / "src", tmp_path / "set") == 0
    assert "t.csv has no column labels, so its clips have no classes; it has path, category." in capsys.readouterr().out
    shutil.rmtree(tmp_path / "set")
    written(tmp_path / "src" / "t.csv", "path,labels\na.wav,dog\n")
    assert convert("csv", tmp_path / "src", tmp_path / "set") == 0
    assert "no column" not in capsys.readouterr().out
