"""What a file is, its content says: each is read rightly, the same way by all that read sound, or refused in words.

ffmpeg's own `-ac 1 -ar 16000` is the reference of what lossy coding made of the sound; the sound itself, of the rest.
"""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from gamut.audio.blocks import FFMPEG, MINIAUDIO, SOUNDFILE, Way, waveform
from gamut.audio.members import decode_member, read_member, stated_samples
from gamut.audio.segment import Segment, load
from gamut.errors import AudioError, ShardError
from gamut.tag.recording import Recording
from tests.lacking import needs_ffmpeg

pytestmark = needs_ffmpeg
RATE = 44_100
SECONDS = 1.5
LATE = 0.002  # seconds that lengths may differ by
ALIKE = 0.999  # correlation
STREAM = ("-seekable", "0")  # as to a pipe
LAME = ("-c:a", "libmp3lame", "-b:a", "64k")
CODED = {  # name -> what ffmpeg is told
    "piped.wav": STREAM,
    "piped_rf64.wav": ("-rf64", "always", *STREAM),
    "piped.aiff": STREAM,
    "piped.au": STREAM,
    "piped.caf": STREAM,
    "piped.flac": STREAM,
    "alac.caf": ("-c:a", "alac"),
    "flac.ogg": ("-c:a", "flac"),
    "speex.ogg": ("-c:a", "libspeex", "-ar", "16000"),
    "vorbis.ogg": ("-c:a", "libvorbis"),
    "opus.ogg": ("-c:a", "libopus"),
    "lame.mp3": LAME,
    "stereo.mp3": (*LAME, "-ac", "2"),
    "bare.mp3": (*LAME, "-write_xing", "0", "-id3v2_version", "0"),
    "bare22.mp3": (*LAME, "-write_xing", "0", "-id3v2_version", "0", "-ar", "22050"),
    "mp3.wav": LAME,
    "mp3_piped.wav": (*LAME, *STREAM),
    "ac3.wav": ("-c:a", "ac3"),
    "g722.wav": ("-c:a", "g722", "-ar", "16000"),
    "layer2.mp2": ("-c:a", "mp2"),
    "aac.m4a": ("-c:a", "aac"),
    "opus.webm": ("-c:a", "libopus"),
    "adts.aac": ("-c:a", "aac"),
    "wma.wma": ("-c:a", "wmav2"),
    "ac3.ac3": ("-c:a", "ac3"),
    "mp2.ts": ("-c:a", "mp2"),
    "flac.mka": ("-c:a", "flac"),
    "pack.wv": ("-c:a", "wavpack"),
    "true.tta": ("-c:a", "tta"),
}


@cache
def tone(channels: int = 1, rate: int = RATE) -> np.ndarray:
    """float64 [n, channels]: a rising tone, of which every stretch is unlike the others."""
    time = np.arange(round(SECONDS * rate)) / rate
    return np.repeat((np.sin(2 * np.pi * (300 + 400 * time) * time) / 2)[:, None], channels, 1)


@cache
def wav(subtype: str = "PCM_16", channels: int = 1, form: str = "WAV", rate: int = RATE, endian: str = "FILE") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(channels, rate), rate, format=form, subtype=subtype, endian=endian)
    return file.getvalue()


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The tone in a form of CODED. All are made by one ffmpeg, and for its references there is another."""
    folder = tmp_path_factory.mktemp("coded")
    (folder / "tone.wav").write_bytes(wav())
    words = ["ffmpeg", "-v", "error", "-i", str(folder / "tone.wav")]
    for name, told in CODED.items():
        words += [*told, str(folder / name)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return lambda name: (folder / name).read_bytes()


@pytest.fixture(scope="module")
def reference(coded: Callable[[str], bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], np.ndarray]:
    """float32 [n], 16 kHz: a form of CODED, or the tone where that is `""`, as ffmpeg reads it."""
    folder = tmp_path_factory.mktemp("reference")
    inputs, outputs = [], []
    for number, name in enumerate(CODED):
        # ffmpeg does not read some of what it writes itself to a pipe.
        (folder / name).write_bytes(wav() if name in ("piped_rf64.wav", "piped.aiff") else coded(name))
        inputs += ["-i", str(folder / name)]
        mono = ["-ac", "1"] if name == "stereo.mp3" else []  # ffmpeg 6 does not know how many channels Speex has
        outputs += ["-map", f"{number}:a:0", *mono, "-ar", "16000", "-f", "f32le", str(folder / f"{name}.raw")]
    subprocess.run(["ffmpeg", "-v", "error", *inputs, *outputs], check=True, stdin=subprocess.DEVNULL)
    plain = soxr.resample(tone()[:, 0], RATE, 16_000).astype(np.float32)
    return lambda name: np.fromfile(folder / f"{name}.raw", np.float32) if name else plain


def patched(payload: bytes, at: int, content: bytes) -> bytes:
    return payload[:at] + content + payload[at + len(content) :]


def sized(size: int, payload: bytes = b"") -> bytes:
    payload = payload or wav()
    return patched(payload, payload.index(b"data") + 4, size.to_bytes(4, "little"))


def id3(size: int) -> bytes:
    return b"ID3\4\0\0\0\0" + bytes([size >> 7, size & 127]) + bytes(size)


ID3V1 = b"TAG" + bytes(range(125))
APE = b"".join(number.to_bytes(4, "little") for number in (2000, 32, 0, 0x80000000, 0, 0))
APE = b"APETAGEX" + APE
LIST = b"LIST\4\0\0\0INFO"

# name -> (its bytes, or the form of CODED that it has, what reads it)
READ: dict[str, tuple[bytes | str, str]] = {
    "plain.wav": (wav(), SOUNDFILE),
    "zero.wav": (sized(0), SOUNDFILE),
    "max31.wav": (sized(0x7FFFFFFF), SOUNDFILE),
    "min31.wav": (sized(0x80000000), SOUNDFILE),
    "less36.wav": (sized(0xFFFFFFDB), SOUNDFILE),
    "max32.wav": (sized(0xFFFFFFFF), SOUNDFILE),
    "sox.wav": (sized(0x7FFFF000), SOUNDFILE),
    "zero_riff.wav": (patched(sized(0), 4, bytes(4)), SOUNDFILE),
    "float_zero.wav": (sized(0, wav("FLOAT")), SOUNDFILE),
    "id3.wav": (id3(9_999) + wav(), SOUNDFILE),
    "id3_zero.wav": (id3(9_999) + sized(0), SOUNDFILE),
    "list_behind.wav": (wav() + LIST, SOUNDFILE),
    "id3v1_behind.wav": (wav() + ID3V1, SOUNDFILE),
    "float.wav": (wav("FLOAT"), SOUNDFILE),
    "double.wav": (wav("DOUBLE"), SOUNDFILE),
    "int24.wav": (wav("PCM_24", 2), SOUNDFILE),
    "six.wav": (wav("PCM_32", 6, "WAVEX"), SOUNDFILE),
    "uint8.wav": (wav("PCM_U8"), SOUNDFILE),
    "ulaw.wav": (wav("ULAW"), SOUNDFILE),
    "alaw.wav": (wav("ALAW"), SOUNDFILE),
    "rifx.wav": (wav(endian="BIG"), SOUNDFILE),
    "rf64.wav": (wav(form="RF64"), SOUNDFILE),
    "rate96.wav": (wav(rate=96_000), SOUNDFILE),
    "rate11.wav": (wav(rate=11_025), SOUNDFILE),
    "float.aifc": (wav("FLOAT", form="AIFF"), SOUNDFILE),
    "id3.aiff": (id3(9_999) + wav(form="AIFF"), SOUNDFILE),
    "ulaw.au": (wav("ULAW", form="AU"), SOUNDFILE),
    "x.w64": (wav(form="W64"), SOUNDFILE),
    "x.voc": (wav(form="VOC"), SOUNDFILE),
    "x.sph": (wav(form="NIST"), SOUNDFILE),
    "x.caf": (wav(form="CAF"), SOUNDFILE),
    "int24.flac": (wav("PCM_24", 2, "FLAC"), SOUNDFILE),
    "id3.flac": (id3(9_999) + wav(form="FLAC"), SOUNDFILE),
    "id3v1.flac": (wav(form="FLAC") + ID3V1, SOUNDFILE),
    "flac_called.wav": (wav(form="FLAC"), SOUNDFILE),
    "wav_called.mp3": (wav(), SOUNDFILE),
    "wav_called.mp4": (wav(), FFMPEG),
    "piped.wav": ("piped.wav", SOUNDFILE),
    "piped_rf64.wav": ("piped_rf64.wav", SOUNDFILE),
    "piped.aiff": ("piped.aiff", SOUNDFILE),
    "piped.au": ("piped.au", SOUNDFILE),
    "piped.flac": ("piped.flac", SOUNDFILE),
    "piped.caf": ("piped.caf", FFMPEG),
    "alac.caf": ("alac.caf", FFMPEG),
    "flac_in.ogg": ("flac.ogg", FFMPEG),
    "speex.ogg": ("speex.ogg", FFMPEG),
    "vorbis.oga": ("vorbis.ogg", SOUNDFILE),
    "opus.ogg": ("opus.ogg", SOUNDFILE),
    "lame.mp3": ("lame.mp3", SOUNDFILE),
    "bare.mp3": ("bare.mp3", MINIAUDIO),
    "mp3_in.wav": ("mp3.wav", MINIAUDIO),
    "mp3_in_piped.wav": ("mp3_piped.wav", MINIAUDIO),
    "mp3_called.wav": ("lame.mp3", SOUNDFILE),
    "layer2.mp2": ("layer2.mp2", MINIAUDIO),
    "ac3_in.wav": ("ac3.wav", FFMPEG),
    "g722.wav": ("g722.wav", FFMPEG),
    "m4a_called.wav": ("aac.m4a", FFMPEG),
    "webm_called.mp3": ("opus.webm", FFMPEG),
    "adts_called.mp3": ("adts.aac", FFMPEG),
    "wma_called.flac": ("wma.wma", FFMPEG),
    "x.ac3": ("ac3.ac3", FFMPEG),
    "x.ts": ("mp2.ts", FFMPEG),
    "x.mka": ("flac.mka", FFMPEG),
    "x.wv": ("pack.wv", FFMPEG),
    "tta_called.wav": ("true.tta", FFMPEG),
}
# name -> (the form, what is put before and behind it, what reads it)
TAGGED = {
    "id3v1.mp3": ("lame.mp3", b"", ID3V1, SOUNDFILE),
    "ape.mp3": ("lame.mp3", b"", APE, SOUNDFILE),
    "both.mp3": ("lame.mp3", id3(2_000), APE + ID3V1, SOUNDFILE),
    "twice_id3.mp3": ("lame.mp3", id3(1_000) + id3(300), b"", SOUNDFILE),
    "zeros.mp3": ("lame.mp3", b"", bytes(3_000), SOUNDFILE),
    "zeros_bare.mp3": ("bare.mp3", b"", bytes(3_000), MINIAUDIO),
    "ape_bare.mp3": ("bare.mp3", b"", APE + ID3V1, MINIAUDIO),
    "id3.aac": ("adts.aac", id3(2_000), b"", FFMPEG),
}


def require_alike(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert abs(len(found) - len(expected)) <= LATE * 16_000, name
    least = min(len(found), len(expected))
    assert np.corrcoef(found[:least], expected[:least])[0, 1] > ALIKE, name


@pytest.mark.parametrize("name", [*READ, *TAGGED])
def test_a_file_is_read_rightly_by_all_that_read_sound(
    name: str, coded: Callable[[str], bytes], reference: Callable[[str], np.ndarray], tmp_path: Path
) -> None:
    if name in READ:
        content, reader = READ[name]
        form, before, behind = ("", content, b"") if isinstance(content, bytes) else (content, b"", b"")
    else:
        form, before, behind, reader = TAGGED[name]
    payload = before + (coded(form) if form else b"") + behind
    (tmp_path / name).write_bytes(payload)
    way = Way()
    clip = waveform(load(tmp_path / name, way=way), name).samples  # as `convert` reads it
    require_alike(clip / 32768, reference(form), name)
    assert way.reader == reader
    if reader == FFMPEG:
        return  # once is enough: below, one goes all ways
    np.testing.assert_array_equal(read_member(payload)[0], clip)  # as `index` does
    np.testing.assert_array_equal(decode_member(payload, len(clip)), clip)  # as training does
    assert stated_samples(payload) in (None, len(clip))  # as `index --fast` does
    recording = np.concatenate(list(Recording(tmp_path / name).blocks()))  # as `tag` and `embed` do
    np.testing.assert_array_equal(np.rint(recording * 32768).astype(np.int16), clip)
    part = waveform(load(tmp_path / name, Segment(0.4, 1.0)), name).samples
    require_alike(part[200:-200] / 32768, clip[6_600:15_800] / 32768, name)


def test_what_only_ffmpeg_reads_is_read_by_all(
    coded: Callable[[str], bytes], reference: Callable[[str], np.ndarray], tmp_path: Path
) -> None:
    payload, expected = coded("aac.m4a"), reference("aac.m4a")
    (tmp_path / "x.wav").write_bytes(payload)
    assert stated_samples(payload) is None
    clip = read_member(payload)[0]
    require_alike(clip / 32768, expected, "member")
    np.testing.assert_array_equal(decode_member(payload, len(clip)), clip)
    with Recording(tmp_path / "x.wav") as recording:
        require_alike(np.concatenate(list(recording.blocks())), expected, "recording")
    part = waveform(load(tmp_path / "x.wav", Segment(0.4, 1.0)), "x").samples
    require_alike(part[200:-200] / 32768, clip[6_600:15_800] / 32768, "segment")


def test_without_ffmpeg_it_is_named_and_in_training_no_hole(
    coded: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.wav").write_bytes(coded("aac.m4a"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for read in (lambda path: waveform(load(path), "x"), lambda path: read_member(path.read_bytes()), Recording):
        with pytest.raises(AudioError, match=r"libsndfile reads: .* ffmpeg, which may know it, is not on") as caught:
            read(tmp_path / "x.wav")
        assert caught.value.reason == "unreadable"
    with pytest.raises(ShardError, match="A clip of these shards can only be read through ffmpeg"):
        decode_member(coded("aac.m4a"), 24_000)


PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 40
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\6\0\0\0\x1f\x15\xc4\x89" + bytes(500)
CUT = ("truncated", "corrupt")


def share(name: str, part: float) -> Callable[[Callable[[str], bytes]], bytes]:
    return lambda coded: coded(name)[: int(part * len(coded(name)))]


def holed(name: str) -> Callable[[Callable[[str], bytes]], bytes]:
    def made(coded: Callable[[str], bytes]) -> bytes:
        whole = coded(name)
        return patched(whole, len(whole) // 2, bytes(range(1, 200)))

    return made


def of(payload: bytes) -> Callable[[Callable[[str], bytes]], bytes]:
    return lambda coded: payload


def field(at: int, value: int, size: int = 2) -> Callable[[Callable[[str], bytes]], bytes]:
    """A WAV with another number in its `fmt `."""
    return of(patched(wav(), wav().index(b"fmt ") + 8 + at, value.to_bytes(size, "little")))


def extreme(value: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone() * value if np.isfinite(value) else tone() + value, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


# name -> (how it is made, the reasons that it may have)
REFUSED: Mapping[str, tuple[Callable[[Callable[[str], bytes]], bytes], tuple[str, ...]]] = {
    "nothing.wav": (of(b""), ("empty",)),
    "page.wav": (of(PAGE), ("unreadable",)),
    "page.mp3": (of(PAGE), ("unreadable",)),
    "pointer.flac": (of(POINTER), ("unreadable",)),
    "picture.wav": (of(PICTURE), ("unreadable",)),
    "zip.wav": (of(b"PK\3\4" + bytes(2_000)), ("unreadable", "corrupt")),
    "zeros.wav": (of(bytes(20_000)), ("unreadable", "corrupt")),
    "zeros.mp3": (of(bytes(20_000)), ("unreadable", "corrupt")),
    "midi.wav": (of(b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk" + bytes(300)), ("unreadable", "corrupt")),
    "playlist.mp3": (of(b"#EXTM3U\n#EXTINF:1,\nother.mp3\n"), ("unreadable",)),
    "header.wav": (of(wav()[:44]), ("truncated",)),
    "half_header.wav": (of(wav()[:30]), ("unreadable", "truncated")),
    "cut.wav": (of(wav()[:-1_000]), CUT),
    "cut_id3.wav": (of(id3(500) + wav()[:-100]), CUT),
    "cut.rf64": (of(wav(form="RF64")[:-1_000]), CUT),
    "cut.aiff": (of(wav(form="AIFF")[:-1_000]), CUT),
    "cut.au": (of(wav(form="AU")[:-1_000]), CUT),
    "cut.w64": (of(wav(form="W64")[:-1_000]), CUT),
    "cut.caf": (of(wav(form="CAF")[:-1_000]), (*CUT, "unreadable")),
    "cut.flac": (of(wav(form="FLAC")[:-1_000]), CUT),
    "channels.wav": (field(2, 0), ("unreadable", "corrupt")),
    "rate.wav": (field(4, 0, 4), ("unreadable", "corrupt", "format")),
    "slow.wav": (field(4, 500, 4), ("format",)),
    "fast.wav": (field(4, 400_000_000, 4), ("format", "too_long")),
    "coding.wav": (field(0, 0x7A7A), ("unreadable", "corrupt")),
    "nan.wav": (of(extreme(np.nan)), ("not_finite",)),
    "infinite.wav": (of(extreme(np.inf)), ("not_finite",)),
    "int16range.wav": (of(extreme(32_768)), ("level",)),
    "int32range.wav": (of(extreme(2.0**31)), ("level",)),
    "chained.ogg": (lambda coded: coded("vorbis.ogg") * 2, ("format",)),
    "cut.ogg": (share("vorbis.ogg", 0.6), CUT),
    "holed.ogg": (holed("vorbis.ogg"), CUT),
    "cut.opus": (share("opus.ogg", 0.6), CUT),
    "cut_flac_in.ogg": (share("flac.ogg", 0.6), CUT),
    "holed_flac_in.ogg": (holed("flac.ogg"), CUT),
    "cut_speex.ogg": (share("speex.ogg", 0.6), CUT),
    "cut.mp3": (share("lame.mp3", 0.6), CUT),
    "holed.mp3": (holed("bare.mp3"), CUT),
    "stereo_behind.mp3": (lambda coded: coded("bare.mp3") + coded("stereo.mp3"), ("format", "corrupt")),
    "slower_behind.mp3": (lambda coded: coded("bare.mp3") + coded("bare22.mp3"), ("format",)),
    "cut_mp3_in.wav": (share("mp3.wav", 0.6), CUT),
    "cut_ac3_in.wav": (share("ac3.wav", 0.6), CUT),
    "cut_g722.wav": (share("g722.wav", 0.6), CUT),
    "cut_m4a_called.wav": (share("aac.m4a", 0.6), (*CUT, "unreadable")),
    "cut_webm_called.mp3": (share("opus.webm", 0.6), (*CUT, "unreadable")),
    "cut_wma_called.wav": (share("wma.wma", 0.6), (*CUT, "unreadable")),
    "cut.mka": (share("flac.mka", 0.6), CUT),
    "cut.wma": (share("wma.wma", 0.6), CUT),
    "cut.mp2": (share("layer2.mp2", 0.6), CUT),
    "cut.wv": (share("pack.wv", 0.6), (*CUT, "unreadable")),
    "cut_tta_called.wav": (share("true.tta", 0.6), (*CUT, "unreadable")),
    "cut_ac3_called.wav": (share("ac3.ac3", 0.6), (*CUT, "unreadable")),
    "cut_adts_called.wav": (share("adts.aac", 0.6), (*CUT, "unreadable")),
    "cut.ts": (share("mp2.ts", 0.6), CUT),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_whole_is_refused_in_words(name: str, coded: Callable[[str], bytes], tmp_path: Path) -> None:
    make, reasons = REFUSED[name]
    payload = make(coded)
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(AudioError, match=re.escape(name)) as caught:
        Recording(tmp_path / name)
    assert caught.value.reason in reasons
    assert "\n" not in str(caught.value)
    if not name.startswith(("cut", "holed")):  # these start ffmpeg once more
        with pytest.raises(AudioError) as member:
            read_member(payload)
        assert member.value.reason in reasons


# What docs/data.md says, and the cases that show it.
ACCEPTED = {
    "WAV of integers, floats, A-law or mu-law; also RIFX, RF64 and W64": (
        "plain.wav int24.wav six.wav uint8.wav ulaw.wav alaw.wav float.wav double.wav rifx.wav rf64.wav x.w64"
        " rate11.wav rate96.wav"
    ),
    "AIFF, AU, CAF, VOC, NIST": "float.aifc ulaw.au x.caf x.voc x.sph piped.au",
    "WAV, RF64 and AIFF whose size was never stated (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF): to the end of"
    " the file": (
        "zero.wav zero_riff.wav float_zero.wav max31.wav min31.wav less36.wav max32.wav sox.wav id3_zero.wav piped.wav"
        " piped_rf64.wav piped.aiff"
    ),
    "FLAC, also without a length": "int24.flac piped.flac",
    "Ogg with Vorbis or Opus": "vorbis.oga opus.ogg",
    "MP3 whose header states its length": "lame.mp3",
    "MP3 without such a header, MP2, and MP3 in WAV": "bare.mp3 layer2.mp2 mp3_in.wav mp3_in_piped.wav",
    "these with ID3v1, ID3v2 or APE tags, other chunks or zeros before or behind the sound": (
        "id3.wav id3v1_behind.wav list_behind.wav id3.aiff id3.flac id3v1.flac id3v1.mp3 ape.mp3 both.mp3 twice_id3.mp3"
        " zeros.mp3 zeros_bare.mp3 ape_bare.mp3"
    ),
    "these under the ending of another": "flac_called.wav wav_called.mp3 mp3_called.wav",
    "Ogg with FLAC or Speex": "flac_in.ogg speex.ogg",
    "AC-3 or G.722 in WAV, ALAC in CAF, CAF whose size was never stated": "ac3_in.wav g722.wav alac.caf piped.caf",
    "AAC, AC-3, M4A and MP4, WebM and Matroska, WMA, MPEG-TS, WavPack, TTA, under any ending of a sound": (
        "id3.aac x.ac3 m4a_called.wav webm_called.mp3 adts_called.mp3 wma_called.flac x.mka x.ts x.wv tta_called.wav"
    ),
    "anything under the ending of a video": "wav_called.mp4",
}


def accepted() -> str:
    """The table of docs/data.md."""
    readers = {name: reader for name, (*_, reader) in [*READ.items(), *TAGGED.items()]}
    rows = ["| content | read by |", "| --- | --- |"]
    for content, names in ACCEPTED.items():
        by = sorted({readers.pop(name) for name in names.split()}, reverse=True)
        rows.append(f"| {content} | {' or '.join(by)} |")
    assert not readers, f"These are in no row: {sorted(readers)}"
    return "\n".join(rows) + "\n"


def test_the_table_of_what_is_accepted_is_what_these_tests_read() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert accepted() in docs, f"Put this table into docs/data.md:\n{accepted()}"
