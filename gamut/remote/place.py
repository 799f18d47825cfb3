"""The places of remote shards, as text: a base, and names in it.

https://host/set/           followed by the name
s3://bucket/prefix/         followed by the name
pipe:gsutil cat gs://b/{}   with the name in place of {}; the command's output is the file
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from urllib.parse import quote, unquote, urlsplit

from gamut.errors import ShardError

MOST_NAMES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_SHELL = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1"}
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)


def is_remote(where: str) -> bool:
    """Whether this is something other than a folder."""
    return where.startswith("pipe:") or "://" in where


def parse(where: str) -> tuple[str, tuple[str, ...] | None]:
    """(base, names) of a place as a user types it; names None: all files there.

    `.../shard-{000000..000099}.tar` and `.../{train,test}.tar` are many names, `.../x.tar` is one. Raises ShardError
    for an unknown scheme, a URL with credentials, and braces anywhere but in a file's name.

    >>> parse("https://host/set/{0..1}.tar")
    ('https://host/set/', ('0.tar', '1.tar'))
    """
    if where.startswith("pipe:"):
        return _parse_pipe(where)
    if not where.startswith(("http://", "https://", "s3://")):
        raise ShardError(
            f"Shards are read from a folder, http(s)://, s3:// or pipe:, not {where.partition('://')[0]}://."
        )
    parts = urlsplit(where)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ShardError(
            f"The URL of {parts.hostname} contains a user, a password or a query, which would end up in recipes and "
            "logs. Remove it; a web server's credentials belong in ~/.netrc, those of S3 where boto3 looks."
        )
    base, _, last = where.rpartition("/")
    if not parts.netloc or "{" in base:
        raise ShardError(f"{where} must be a host or bucket and a folder, with braces only in the names of the tars.")
    if "{" in last or ".tar" in last:
        return f"{base}/", tuple(unquote(name) for name in expand(last))
    return where if where.endswith("/") else f"{where}/", None


def _parse_pipe(where: str) -> tuple[str, tuple[str, ...] | None]:
    words = command(where)
    chosen = [word for word in words if "{" in word or word.endswith(".tar")]
    if any("{}" in word for word in words):
        return where, None
    if len(chosen) != 1:
        raise ShardError(
            f"{where} must have one word that names the tars, such as gs://bucket/shard-{{000000..000099}}.tar."
        )
    base, slash, last = chosen[0].rpartition("/")
    if "{" in base or where.count(chosen[0]) != 1:
        raise ShardError(f"{where} may have braces only in the name of the tars, which must appear once and unquoted.")
    return where.replace(chosen[0], f"{base}{slash}{{}}"), tuple(expand(last))


def command(where: str, name: str | None = None) -> list[str]:
    """The argument list of a `pipe:`, with `name` instead of `{}`. Raises ShardError where it needs a shell."""
    try:
        words = shlex.split(where.removeprefix("pipe:"))
    except ValueError as error:
        raise ShardError(f"{where} is not a command: {error}.") from error
    if not words or _SHELL.intersection(words):
        raise ShardError(f"{where} needs a shell, but is run without one. Put it into a script, and name that.")
    if name is None:
        return words
    if name.startswith("-"):
        raise ShardError(f"{where} cannot read {name!r}: the command would take that name for an option.")
    return [word.replace("{}", name) for word in words]


def expand(text: str) -> list[str]:
    """Braces as a shell expands them: {000..012} and {a,b}. Raises ShardError.

    >>> expand("x-{08..10}.tar")
    ['x-08.tar', 'x-09.tar', 'x-10.tar']
    """
    pieces: list[list[str]] = []
    count = 1
    for number, piece in enumerate(_BRACES.split(text)):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", piece) if number % 2 else None
        if span:
            first, last = int(span[1]), int(span[2])
            if last - first >= MOST_NAMES:
                break
            width = len(span[1]) if span[1].startswith("0") else 0
            pieces.append([f"{n:0{width}d}" for n in range(first, last + 1)])
        else:
            pieces.append(piece.split(",") if number % 2 else [piece])
        count *= len(pieces[-1])
    else:
        if 0 < count <= MOST_NAMES and "{" not in "".join(p for piece in pieces for p in piece):
            return ["".join(name) for name in itertools.product(*pieces)]
    raise ShardError(f"The braces in {text} must be like {{000..099}} or {{a,b}}, for at most {MOST_NAMES:,} names.")


def full(base: str, name: str) -> str:
    """A file's URL, or the command that gives it."""
    if base.startswith("pipe:"):
        return base.replace("{}", name)
    return base + (name if base.startswith("s3://") else quote(name))


def without_secrets(text: str) -> str:
    """A message of a server or command, with the values of this process's credentials replaced."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(name):
            text = text.replace(value, "***")
    return re.sub(r"(?i)(signature|token|password|credential|authorization)([=:]\s*)[^\s&]+", r"\1\2***", text)
