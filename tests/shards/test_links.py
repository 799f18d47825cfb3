"""Links in tars: followed inside the tar, or counted."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from gamut.data.reader import Reader
from gamut.shards.__main__ import main

from .test_foreign import index
from .test_foreign import sound as member


def linked(path: Path, form: int) -> None:
    """Clips a and b, b also as hard links and symbolic ones, before and after it, by a long name, through another
    link, and with its labels; links that lead out, nowhere, to a folder and to themselves; a device."""
    long = "deep/" * 25 + "long"
    files = {"x/a.flac": member(0, "flac"), f"{long}/b.flac": member(1, "flac"), f"{long}/b.json": b'{"label": "dog"}'}
    first, second, described = ((name, tarfile.REGTYPE, "") for name in files)
    links = (
        ("early.flac", tarfile.SYMTYPE, f"./{long}/b.flac"),
        first,
        ("x", tarfile.DIRTYPE, ""),
        second,
        described,
        ("hard.flac", tarfile.LNKTYPE, f"{long}/b.flac"),
        ("hard.json", tarfile.LNKTYPE, f"./{long}/b.json"),
        ("y/soft.flac", tarfile.SYMTYPE, "../x/a.flac"),
        ("chain.flac", tarfile.SYMTYPE, "y/soft.flac"),
        ("out.flac", tarfile.SYMTYPE, "../../etc/passwd"),
        ("absolute.flac", tarfile.SYMTYPE, "/etc/passwd"),
        ("folder.flac", tarfile.SYMTYPE, "x"),
        ("self.flac", tarfile.SYMTYPE, "self.flac"),
        ("gone.flac", tarfile.LNKTYPE, "gone"),
        ("device", tarfile.CHRTYPE, ""),
    )
    with tarfile.open(path, "w", format=form) as tar:
        for name, kind, target in links:
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, target
            about.size = len(files[name]) if kind == tarfile.REGTYPE else 0
            tar.addfile(about, io.BytesIO(files.get(name, b"")))


def test_links_are_followed_inside_the_tar_or_counted(tmp_path: Path) -> None:
    found = {}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        folder = tmp_path / f"tars-{form}"
        folder.mkdir()
        linked(folder / "0.tar", form)
        for words in ((), ("--fast",)):
            out = tmp_path / f"index-{form}{''.join(words)}"
            made = index(folder, out, *words)
            ignored = json.loads((out / "index" / "quarantine.json").read_bytes())["ignored"]
            assert ignored == {"links that lead to no file in the tar": 5, "members that are no files": 1}
            assert (np.diff(made.offset) >= 0).all()  # what reads a tar ahead goes through it once
            with Reader(made) as reader:
                sounds = {os.path.basename(made.key(row)): reader.decode(row).tobytes() for row in range(len(made))}
            assert sounds.keys() == {"a", "b", "early", "hard", "soft", "chain"}
            assert sounds["a"] == sounds["soft"] == sounds["chain"] != sounds["b"]
            assert sounds["b"] == sounds["early"] == sounds["hard"]
            labels = {os.path.basename(made.key(row)): made.label_ids(row).tolist() for row in range(len(made))}
            assert labels == {"a": [], "soft": [], "chain": [], "early": [], "b": [0], "hard": [0]}
            assert main(["verify", str(out), "--workers", "1"]) == 0
            found[form, words] = sounds
    assert len({repr(sorted(sounds.items())) for sounds in found.values()}) == 1
