"""Shards that are not on this machine's disks: on a web server, on S3, or output by a command.

`Remote` says how they are read: it is the section `remote` of a recipe.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gamut.errors import ShardError
from gamut.remote.place import is_remote
from gamut.settings import above, at_least, between, key

__all__ = ["Remote", "is_remote"]


@dataclass(frozen=True)
class Remote:
    """How shards that `data` names by http(s)://, s3:// or pipe: are read. Nothing here affects a run's results.

    Credentials do not belong here: those of S3 come from where boto3 looks (environment, ~/.aws, the machine's role),
    those of a web server from ~/.netrc.
    """

    cache: str = key(
        "", "folder on a disk of the node; empty: $GAMUT_CACHE, or gamut-cache-UID in the temporary folder"
    )
    cache_gb: float = key(
        32.0,
        "largest size of the fetched pieces, for all processes of a node together",
        above(0),
        unit="GB, 10^9 bytes",
    )
    piece_mb: float = key(
        16.0,
        "size of a piece, which is fetched and kept as a whole: consecutive clips of one shard",
        between(0.001, 10_000),
        unit="MB",
    )
    timeout_seconds: float = key(30.0, "a server that sends nothing for this long has stalled", above(0), unit="s")
    tries: int = key(6, "number of tries before the run stops", between(1, 1000))
    pause_seconds: float = key(
        1.0, "pause before the second try; doubles with each, up to a minute", at_least(0), unit="s"
    )
    s3_endpoint: str = key("", "URL of an S3 server; empty: AWS")
    allow_pipe: bool = key(False, "whether `data` and an index may name commands to run")

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gb * 1e9)

    @property
    def piece_bytes(self) -> int:
        return int(self.piece_mb * 1e6)

    def folder(self) -> Path:
        """The cache's folder, created if missing. Raises ShardError where another user could write into it."""
        chosen = self.cache or os.environ.get("GAMUT_CACHE", "")
        folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"gamut-cache-{os.geteuid()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = folder.stat()
        except OSError as error:
            raise ShardError(
                f"The cache {folder} cannot be made: {error.strerror}. Name another folder with remote.cache=FOLDER or "
                "the environment variable GAMUT_CACHE."
            ) from error
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise ShardError(
                f"The cache {folder} belongs to another user, or others may write into it. Name a folder of your own "
                "with remote.cache=FOLDER or the environment variable GAMUT_CACHE."
            )
        return folder
