"""pipe: a file is the output of a command, run without shell or input, with the arguments written in the recipe."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gamut.remote import Remote
from gamut.remote.place import command, without_secrets
from gamut.remote.store import BLOCK, Answer, Passing, Refused


class Pipe:
    """A command that writes a file to its standard output, always as a whole."""

    ranges = False

    def __init__(self, base: str, settings: Remote) -> None:
        self.base = base
        self.timeout = settings.timeout_seconds

    def names(self) -> list[str]:
        raise Refused("a command does not list files; name the tars, such as shard-{000000..000099}.tar")

    @contextmanager
    def get(self, name: str, begin: int, end: int | None, etag: str | None) -> Iterator[Answer]:
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    command(self.base, name), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
                )
            except OSError as error:
                raise Refused(f"the command cannot be started: {error.strerror}") from None
            try:
                yield Answer(None, None, self._blocks(process, errors.fileno()))
            finally:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()

    def _blocks(self, process: subprocess.Popen[bytes], errors: int) -> Iterator[bytes]:
        assert process.stdout is not None
        output = process.stdout.fileno()
        while True:
            until = time.monotonic() + self.timeout
            while not select.select([output], [], [], max(0.0, until - time.monotonic()))[0]:
                if time.monotonic() >= until:
                    raise Passing(f"the command wrote nothing for {self.timeout:g} s")
            block = os.read(output, BLOCK)
            if not block:
                break
            yield block
        try:
            status = process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            raise Passing(f"the command did not end within {self.timeout:g} s after its output") from None
        if status:
            said = os.pread(errors, 4096, max(0, os.fstat(errors).st_size - 4096)).decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "no message")
            raise Passing(without_secrets(f"the command ended with status {status}: {last[:200]}"))
