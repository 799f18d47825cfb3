"""Tars that lie on a server are indexed, verified and described from there."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest

from gamut.data.reader import Reader
from gamut.errors import ShardError
from gamut.remote import Remote
from gamut.remote.mirror import mirror
from gamut.remote.place import command, expand, full, parse, without_secrets
from gamut.shards import Index
from gamut.shards.__main__ import main

from ..servers import http_server
from .conftest import encode


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs") / "noises"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(folder / f"noise {shard:02d}.tar", "w") as tar:
            for number in range(6):
                for ending, content in (("wav", encode(rng.normal(size=900) * 0.1, 24000)), ("cls", b"%d" % number)):
                    about = tarfile.TarInfo(f"{number}.{ending}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAMUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gamut.remote.fetch.time.sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def local(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    out = tmp_path_factory.mktemp("local") / "index"
    assert main(["index", str(theirs), "--out", str(out), "--workers", "1"]) == 0
    return Index.open(out)


def same(there: Index, local: Index) -> None:
    assert there.fingerprint == local.fingerprint
    with Reader(there) as theirs, Reader(local) as ours:
        for row in range(len(local)):
            np.testing.assert_array_equal(theirs.decode(row), ours.decode(row))


def test_tars_on_a_web_server(theirs: Path, local: Index, tmp_path: Path, capsys) -> None:
    with http_server(theirs.parent) as server:
        server.fault = lambda name, number: "503" if number == 0 else None
        where, out = f"{server.url}/noises/noise%20{{00..01}}.tar", tmp_path / "out"
        assert main(["index", where, "--workers", "1"]) == 2
        assert "--out FOLDER" in capsys.readouterr().err
        assert main(["index", where, "--out", str(out), "--workers", "1"]) == 0
        same(Index.open(out), local)
        assert Index.open(out).name == "noises"
        assert main(["verify", str(out), "--workers", "1"]) == 0
        assert main(["stats", str(out), "--workers", "1"]) == 0
        assert Index.open(out).statistics() is not None
        assert main(["index", f"{server.url}/noises", "--out", str(out)]) == 2
        assert "does not list its files" in capsys.readouterr().err
        assert main(["index", f"{server.url}/noises/x{{0..1}}.tar", "--out", str(out), "--workers", "1"]) == 2
        assert "/noises/x0.tar cannot be read: the server answered 404" in capsys.readouterr().err
        server.fault = lambda name, number: "503"
        assert main(["verify", str(out), "--workers", "1"]) == 2  # which is no damage of the tar
        assert "noise%2000.tar could not be fetched in 6 tries" in capsys.readouterr().err


@pytest.mark.parametrize("call", ["mkdtemp", "rename", "fsync", "replace"])
def test_a_full_disk_under_the_copy_of_an_index_is_a_sentence(
    pristine: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.copytree(pristine, cache.parent / "set")
    (cache.parent / "set" / "index" / "statistics.json").write_text("{}")
    monkeypatch.setattr(tempfile if call == "mkdtemp" else os, call, full)
    with http_server(cache.parent) as server:
        said = rf"The index of {server.url}/set cannot be copied to {cache}/index: No space left on device\. Free"
        with pytest.raises(ShardError, match=said):
            mirror(f"{server.url}/set", Remote())
        assert not list((cache / "index").glob("partial-*"))
        monkeypatch.undo()
        assert (mirror(f"{server.url}/set", Remote(cache=str(cache))) / "index" / "statistics.json").exists()


def test_a_clip_of_a_remote_set_is_drawn(theirs: Path, local: Index, tmp_path: Path, capsys) -> None:
    with http_server(theirs.parent) as server:
        where = f"{server.url}/noises/noise%20{{00..01}}.tar"
        assert main(["index", where, "--out", str(tmp_path / "set"), "--workers", "1"]) == 0
        key = f"noise 01/{local.key(len(local) - 1)}"
        assert main(["show", str(tmp_path / "set"), key, "--out", str(tmp_path / "clip.png")]) == 0
        assert "in noise 01.tar" in capsys.readouterr().out
        assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_a_tar_that_is_indexed_is_not_fetched_again(theirs: Path, local: Index, tmp_path: Path) -> None:
    with http_server(theirs.parent) as server:
        words = ["index", f"{server.url}/noises/noise%20{{00..01}}.tar", "--out", str(tmp_path), "--workers", "1"]
        server.fault = lambda name, number: "missing" if "01" in name else None
        assert main(words) == 2
        server.fault, server.requests = None, []
        assert main(words) == 0
        # Whose tars are they? The first one tells. Is it the one that was indexed? Its ETag tells.
        assert [part for name, part in server.requests if "00" in name] == ["", "bytes=0-0"]
        assert [part for name, part in server.requests if "01" in name] == ["bytes=0-0", ""]
        same(Index.open(tmp_path), local)


def test_tars_that_a_command_gives(theirs: Path, local: Index, tmp_path: Path, capsys) -> None:
    link = tmp_path / "noises"
    link.mkdir()
    for number in range(2):
        (link / f"{number}.tar").write_bytes((theirs / f"noise 0{number}.tar").read_bytes())
    where = f"pipe:cat {link}/{{0..1}}.tar"
    assert main(["index", where, "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "--allow-pipe" in capsys.readouterr().err
    assert main(["index", where, "--out", str(tmp_path / "out"), "--workers", "1", "--allow-pipe"]) == 0
    with pytest.raises(ShardError, match=r"remote\.allow_pipe=true"):
        Index.open(tmp_path / "out")
    index = Index.open(tmp_path / "out", remote=Remote(allow_pipe=True))
    np.testing.assert_array_equal(Reader(index).decode(7), Reader(local).decode(7))
    assert main(["verify", str(tmp_path / "out"), "--workers", "1", "--allow-pipe"]) == 0


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name, value in {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "hidden-word"}.items():
        patch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    patch.undo()


def test_a_bucket(theirs: Path, local: Index, pristine: Path, s3: str, tmp_path: Path, capsys) -> None:
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    client.create_bucket(Bucket="sounds")
    for folder, prefix in ((theirs, "a/noises"), (pristine, "ours")):
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "sounds", f"{prefix}/{path.relative_to(folder)}")
    out, settings = tmp_path / "out", Remote(s3_endpoint=s3, piece_mb=0.004, tries=2, pause_seconds=0.01)
    assert main(["index", "s3://sounds/a/noises", "--out", str(out), "--workers", "1", "--s3-endpoint", s3]) == 0
    same(Index.open(out, remote=settings), local)
    assert main(["verify", str(out), "--workers", "1", "--s3-endpoint", s3]) == 0

    ours = Index.open(mirror("s3://sounds/ours", settings), remote=settings)  # the index lies there too
    same(ours, Index.open(pristine))
    tar = ours.tars.names[0]
    client.put_object(Bucket="sounds", Key=f"ours/{tar}", Body=b"x" * ours.shards[0]["size"])
    fresh = Remote(s3_endpoint=s3, cache=str(tmp_path / "other"), tries=2, pause_seconds=0.01)
    reader = Reader(Index.open(ours.folder, remote=fresh))
    with pytest.raises(ShardError, match=rf"s3://sounds/ours/{tar}, bytes \d+ to \d+, .*2 tries.*checksum"):
        reader.read(0)
    client.delete_object(Bucket="sounds", Key=f"ours/{tar}")
    with pytest.raises(ShardError, match=r"404 NoSuchKey") as caught:
        reader.read(0)
    assert "hidden" not in str(caught.value)
    with pytest.raises(ShardError, match=r"404 NoSuchBucket"):
        mirror("s3://nowhere/x", settings)


def test_places_are_a_base_and_names() -> None:
    assert parse("https://h/a/x-{08..10}.tar") == ("https://h/a/", ("x-08.tar", "x-09.tar", "x-10.tar"))
    assert parse("s3://bucket/a") == ("s3://bucket/a/", None)
    assert parse("pipe:gsutil cat gs://b/x-{0..1}.tar") == ("pipe:gsutil cat gs://b/{}", ("x-0.tar", "x-1.tar"))
    assert full("https://h/a/", "a b.tar") == "https://h/a/a%20b.tar"
    assert command("pipe:get 'a b' {}", "x; rm") == ["get", "a b", "x; rm"]
    assert expand("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]
    for wrong in (
        "ftp://h/x.tar", "https://h/{a,b}/x.tar", "s3:///x", "https://h/{0..9999999}.tar", "https://h/x{.tar",
        "pipe:cat x", "pipe:cat a.tar b.tar", "pipe:cat x.tar | wc", "pipe:", "https://u:p@h/x.tar", "http://h/x?k=v",
    ):  # fmt: skip
        with pytest.raises(ShardError):
            parse(wrong)
    with pytest.raises(ShardError, match=r"for an option"):
        command("pipe:cat {}", "-n")


def test_words_of_others_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "abcdefgh")
    assert without_secrets("no abcdefgh here, X-Amz-Signature=123&x") == "no *** here, X-Amz-Signature=***&x"
