"""gamut serve, in a real browser; and what answers a file without one."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from gamut.commands import ROOT
from gamut.serve.__main__ import _only_here, main
from gamut.serve.page import SHOWN, Limits, Listener, html
from gamut.serve.pictures import columns, over_time, picture, strongest
from gamut.tag import Recording, load
from gamut.tag.__main__ import main as tag
from gamut.tag.result import Choice, Span, Tagged, Words
from tests.tag.rounds import a_run

# The command, saying on stderr whom else than this machine it looks up or calls.
WATCHED = """
import sys
def seen(event, args):
    where = args[1] if event == "socket.connect" else args[:1] if event == "socket.getaddrinfo" else None
    if isinstance(where, tuple) and str(where[0]) not in ("127.0.0.1", "::1", "localhost", "None", ""):
        print("outside:", event, where, file=sys.stderr, flush=True)
sys.addaudithook(seen)
from gamut.serve.__main__ import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[str]
    temporary: Path


def sound(path: Path, seconds: float) -> Path:
    at = np.arange(round(seconds * 16000)) / 16000
    noise = np.random.default_rng(0).normal(0, 0.02, len(at))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * (1 + np.floor(at)) * at) + noise, 16000, "PCM_16")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("runs") / "esc10")[0]


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ["--largest", "1", "--longest", "20"]
    with served(tmp_path_factory.mktemp("temporary"), str(run), "--every", "2", *limits) as found:
        yield found


@contextlib.contextmanager
def served(temporary: Path, *typed: str) -> Iterator[Server]:
    """`gamut serve`: it calls nobody outside, and what was uploaded is gone when it ends."""
    words = [sys.executable, "-c", WATCHED, *typed, "--port", "0"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "HF_"))}
    with open(temporary / "said", "w+") as said:
        process = subprocess.Popen(
            words, cwd=ROOT, env=bare | {"TMPDIR": str(temporary)}, text=True, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.match(r"Open (http://127\.0\.0\.1:\d+) in a browser", line)
            assert found, (temporary / "said").read_text()
            yield Server(found[1], process, temporary)
            with urllib.request.urlopen(f"{found[1]}/gradio_api/heartbeat/a-page", timeout=60):  # which is open still
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=120)
        finally:
            process.kill()  # nothing, where it has ended
            process.wait()
    text = (temporary / "said").read_text()
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "outside:" not in text
    assert "Traceback" not in text
    assert not list(temporary.glob("gamut-*"))


def dropped(browser: Any, server: Server, file: Path, width: int) -> Any:
    """A page on which a file was dropped."""
    page = browser.new_page(viewport={"width": width, "height": 800}, accept_downloads=True)
    page.set_default_timeout(120_000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_selector("#sound input[type=file]", state="attached")
    page.set_input_files("#sound input[type=file]", file)
    return page


@pytest.mark.parametrize("width", [1280, 390])
def test_a_file_is_tagged_in_a_browser(
    width: int, server: Server, browser: Any, run: Path, tmp_path: Path, capsys
) -> None:
    """Tags and downloads are those of `gamut tag`; nobody outside is asked for anything; nothing is too wide."""
    file = sound(tmp_path / "a dog.wav", 5.0)
    assert tag([str(run), str(file), "--every", "2", "--format", "json"]) == 0
    expected = json.loads(capsys.readouterr().out)["spans"]
    page = dropped(browser, server, file, width)
    page.wait_for_selector("#best")
    assert list(server.temporary.glob("gamut-serve-*/**/*.wav"))  # which is gone when the server ends
    best = max((span["tags"][0] for span in expected), key=lambda one: one["probability"])
    assert page.inner_text("#best") == f"{best['label']} {best['probability']:.0%}"
    assert page.inner_text("#what").strip() == "a dog.wav, 5.0 s:"
    assert page.locator("#heard tr").count() == 3
    drawn = "image => image.naturalWidth > 300 && image.clientWidth <= window.innerWidth"
    assert page.locator("#heard img").evaluate(drawn)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    contents = {}
    for number, ending in enumerate((".csv", ".json", ".txt", ".srt")):
        with page.expect_download() as coming:
            page.locator("#heard .downloads a").nth(number).click()
        assert coming.value.suggested_filename == f"a dog{ending}"
        coming.value.save_as(tmp_path / f"got{ending}")
        contents[ending] = (tmp_path / f"got{ending}").read_text()
    assert json.loads(contents[".json"])["spans"] == expected
    rows = list(csv.DictReader(contents[".csv"].splitlines()))
    assert [row["label"] for row in rows] == [one["label"] for span in expected for one in span["tags"]]
    assert contents[".txt"].startswith(f"0.000000\t2.000000\t{rows[0]['label']}\n")
    assert contents[".srt"].startswith(f"1\n00:00:00,000 --> 00:00:02,000\n{rows[0]['label']}, ")
    assert not [url for url in page.asked if not url.startswith((server.url, "data:", "blob:"))]
    page.close()


@pytest.mark.parametrize(
    ("name", "seconds", "sentence"),
    [
        ("note.txt", 0, "Invalid file type: note.txt"),
        ("empty.wav", 0, "empty.wav has no bytes."),
        ("fake.wav", 0, "fake.wav is not a sound file"),
        ("long.wav", 21, "long.wav lasts longer than 20 s."),
        ("large.wav", 40, 'exceed the maximum allowed size of 976.6 Kb: "large.wav"'),
    ],
)
def test_a_bad_file_is_a_sentence(
    name: str, seconds: int, sentence: str, server: Server, browser: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("" if name == "empty.wav" else "no sound")
    if seconds:
        sound(tmp_path / name, seconds)
    page = dropped(browser, server, tmp_path / name, 390)
    page.get_by_text(sentence).first.wait_for()
    assert "Traceback" not in page.inner_text("body")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()
    assert server.process.poll() is None


def test_the_page_says_that_only_its_own_server_may_be_asked(server: Server) -> None:
    with urllib.request.urlopen(server.url) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "fonts.googleapis.com" not in answer.read().decode()


def test_what_a_listener_says(run: Path, tmp_path: Path, capsys) -> None:
    listener = Listener(load(run), {"every": None}, Choice(2), Limits(1, 20.0))
    shares: list[float] = []
    found = listener.hear(str(sound(tmp_path / "fine.wav", 6.0)), shares.append)
    assert "fine.wav, 6.0 s" in found
    assert str(tmp_path) not in found
    assert shares[-1] == pytest.approx(1.0)
    assert listener.hear(None) == ""
    (tmp_path / "x.wav").write_bytes(bytes(2_000_000))
    for name, sentence in (("none.wav", "none.wav cannot be read: No such file"), ("x.wav", "has 2 MB; at most 1")):
        said = listener.hear(str(tmp_path / name))
        assert sentence in said
        assert str(tmp_path) not in said

    class Broken:
        def tag(self, *given: Any, **options: Any) -> None:
            raise ZeroDivisionError

    said = Listener(Broken(), {}, Choice(), Limits(1, 20.0)).hear(str(tmp_path / "fine.wav"))
    assert "could not be tagged" in said
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_names_and_text_are_no_markup_and_long_tables_are_cut() -> None:
    spans = tuple(Span(float(n), n + 1.0, np.array([0.9], np.float32)) for n in range(SHOWN + 7))
    words = (Words(0.0, 1.0, "<script>alert(1)</script>"),)
    shown = "".join(html(Tagged(Path('a"<i>.wav'), 207.0, ("<b>x</b>",), spans, words[0].text, words), Choice(), b""))
    for tagged in ("<script>", "<i>", "<b>x"):
        assert tagged not in shown
    assert "<p>7 more are in the downloads.</p>" in shown
    assert 'download="a&quot;&lt;i&gt;.csv"' in shown


def test_columns_are_as_long_as_each_other(tmp_path: Path) -> None:
    """A click at 7 s is where 7 s are, in both."""
    samples = np.full(30 * 16000, 0.001)
    samples[7 * 16000 : 7 * 16000 + 1600] = np.random.default_rng(0).normal(0, 0.3, 1600)
    soundfile.write(tmp_path / "a.wav", samples, 16000, "PCM_16")
    _, high, mel = columns(Recording(tmp_path / "a.wav"))
    for values in (high, mel.mean(1)):
        assert np.argmax(values) * 30 / len(values) == pytest.approx(7.05, abs=0.1)


@pytest.mark.parametrize("seconds", [0.01, 5.0, 95.0])
def test_pictures_of_any_length(seconds: float, tmp_path: Path) -> None:
    recording = Recording(sound(tmp_path / "a.wav", seconds))
    low, high, mel = columns(recording)
    assert len(low) == len(high) == len(mel) <= 1300
    assert (low <= high).all()
    spans = (Span(0.0, seconds, np.array([0.1, 0.9, 0.3], np.float32)),)
    tagged = Tagged(Path("a.wav"), seconds, ("a", "b$", "c" * 99), spans)
    assert strongest(tagged) == [1, 2, 0]
    assert picture(recording, tagged).startswith(b"\x89PNG")
    assert picture(recording, Tagged(Path("a.wav"), seconds, (), (), "said")).startswith(b"\x89PNG")


def test_events_that_overlap_are_drawn_over_time(tmp_path: Path) -> None:
    """Each has one class, and says nothing of the others."""

    def event(start: float, end: float, label: int, p: float) -> Span:
        values = np.full(3, np.nan, np.float32)
        values[label] = p
        return Span(start, end, values)

    spans = (event(0.5, 3.0, 0, 0.6), event(1.0, 2.0, 2, 0.9), event(2.5, 4.5, 0, 0.7))
    tagged = Tagged(Path("a.wav"), 5.0, ("a", "b", "c"), spans)
    assert strongest(tagged) == [2, 0]
    times, values = over_time(tagged, [2, 0])
    assert times.tolist() == [0.5, 1.0, 2.0, 2.5, 3.0, 4.5]
    nan = np.nan
    expected = [[nan, 0.9, nan, nan, nan], [0.6, 0.6, 0.6, 0.7, 0.7]]
    np.testing.assert_array_equal(values, np.float32(expected))
    assert picture(Recording(sound(tmp_path / "a.wav", 5.0)), tagged).startswith(b"\x89PNG")


def test_a_port_in_use_a_host_that_is_none_and_a_missing_extra(run: Path, monkeypatch, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main([str(run), "--port", str(port)]) == 2
    assert f"Port {port} of 127.0.0.1 cannot be had (Address already in use" in capsys.readouterr().err
    assert main([str(run), "--host", "300.0.0.1"]) == 2
    assert "of 300.0.0.1 cannot be had" in capsys.readouterr().err
    assert main([str(run), "--port", "99999"]) == 2
    assert "Port 99999 of 127.0.0.1 cannot be had" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(run)]) == 2
    assert "In the clone: pip install '.[serve]'" in capsys.readouterr().err


def test_only_an_address_of_this_machine_is_closed_to_others() -> None:
    assert all(_only_here(host) for host in ("127.0.0.1", "127.9.0.1", "::1"))
    assert not any(_only_here(host) for host in ("0.0.0.0", "192.168.0.7", "::"))
