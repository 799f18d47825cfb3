"""How commands are named, how they end, and what they load before they run."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gamut import commands
from gamut.commands import COMMANDS, ROOT, as_typed, command, typed
from gamut.errors import GamutError
from launchers.console import main

TEXT = (
    "python -m gamut.shards stats X, `python pretrain/run.py asit_b`, a run of finetune/run.py; "
    "deepspeed --num_gpus 2 finetune/run.py esc50; python launchers/slurm.py pretrain asit_b"
)
INSTALLED = (
    "gamut shards stats X, `gamut pretrain asit_b`, a run of gamut finetune; "
    "deepspeed --num_gpus 2 --module finetune.run esc50; gamut submit pretrain asit_b"
)


def test_in_a_clone_commands_are_its_files() -> None:
    assert typed("shards") == "python -m gamut.shards"
    assert typed("submit") == "python launchers/slurm.py"
    assert as_typed(TEXT) == TEXT


@pytest.mark.parametrize("installed", [True, False])
def test_elsewhere_and_where_gamut_was_typed_they_are_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], installed: bool
) -> None:
    if installed:
        monkeypatch.setattr(commands, "IN_CLONE", False)
    else:
        monkeypatch.setattr(sys, "argv", ["/some/where/bin/gamut", "shards"])
    assert typed("submit") == "gamut submit"
    assert as_typed(TEXT) == INSTALLED

    @command
    def broken() -> None:
        raise GamutError(f"Type this: {TEXT}.")

    assert broken() == 2
    assert capsys.readouterr().err == f"error: Type this: {INSTALLED}.\n"


def test_every_command_is_there_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, (module, about) in COMMANDS.items():
        assert f"  {name} " in listed
        assert about in listed
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        assert typed(name).split()[0] == "python"


def test_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrian"]) == 2
    assert "'pretrian'; the nearest valid name is pretrain" in capsys.readouterr().err
    assert main([]) == 2
    assert "usage: gamut" in capsys.readouterr().err


def run(*words: str, plugins: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": f"{ROOT}:{path}", "GAMUT_PLUGINS": plugins, "PATH": "/usr/bin:/bin"}
    words = (sys.executable, "-m", "launchers.console", *words)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_plugins_are_loaded_once_before_a_command_and_not_for_help(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("print('registered mine')")
    (tmp_path / "theirs.py").write_text("print('registered theirs')")
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: theirs\nVersion: 1.0")
    (package / "entry_points.txt").write_text("[gamut.plugins]\ntheirs = theirs")
    done = run("shards", "stats", "nowhere", plugins="mine, mine", path=tmp_path)
    assert done.stdout == "registered mine\nregistered theirs\n"
    assert done.returncode == 2
    assert "registered" not in run("shards", "stats", "--help", plugins="mine", path=tmp_path).stdout
    broken = run("shards", "stats", "nowhere", plugins="absent", path=tmp_path)
    assert broken.returncode == 2
    assert broken.stderr.startswith("error: The plugin absent, named by GAMUT_PLUGINS, cannot be imported")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -c 'from gamut.commands import command\n@command\ndef main():\n"
    line += " for number in range(99999): print(number)\nraise SystemExit(main())' | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    "said", ["No space left on device", "Read-only file system", "Permission denied", "Not a directory"]
)
def test_a_disk_that_takes_nothing_is_a_sentence(said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = next(number for number in errno.errorcode if os.strerror(number) == said)

    @command
    def main() -> None:
        raise OSError(number, said, str(tmp_path / "x"))

    assert main() == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: {tmp_path}/x cannot be written: {said} \(0 bytes wanted, [\d,]+ bytes free\)\. .*\n", error
    )


def test_another_error_of_the_system_is_not_hidden() -> None:
    @command
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        main()
