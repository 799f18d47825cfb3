"""http(s): byte ranges of a file, all of the same version (RFC 9110, section 14)."""

from __future__ import annotations

import base64
import http.client
import netrc
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from gamut.remote import Remote
from gamut.remote.place import full, without_secrets
from gamut.remote.store import BLOCK, Answer, Changed, Passing, Refused, failure, span


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A server may send us elsewhere on itself, and over https to another host, as those of large files do. Over http
    anybody on the way can send us to what only this machine reaches."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        was, now = urlsplit(req.full_url), urlsplit(newurl)
        upgraded = (was.scheme, now.scheme) == ("http", "https") and was.hostname == now.hostname
        if was[:2] != now[:2] and not upgraded and (was.scheme, now.scheme) != ("https", "https"):
            raise Refused(f"the server sends us to {now.scheme}://{now.hostname or ''}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Http:
    """A folder of a web server."""

    ranges = True

    def __init__(self, base: str, settings: Remote) -> None:
        self.base = base
        self.timeout = settings.timeout_seconds
        self._opener = urllib.request.OpenerDirector()
        for handler in (  # only http and https: no files and no ftp, wherever a redirect points
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            _Redirects(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)

    def names(self) -> list[str]:
        raise Refused("a web server does not list its files; name the tars, such as shard-{000000..000099}.tar")

    @contextmanager
    def get(self, name: str, begin: int, end: int | None, etag: str | None) -> Iterator[Answer]:
        request = urllib.request.Request(full(self.base, name), headers={"Accept-Encoding": "identity"})  # noqa: S310 (our opener knows http(s) alone)
        if part := begin > 0 or end is not None:
            request.add_header("Range", f"bytes={begin}-{'' if end is None else end - 1}")
            if etag and not etag.startswith("W/"):  # a weak ETag does not identify single bytes
                request.add_header("If-Range", etag)
        if login := self._login():
            request.add_unredirected_header("Authorization", login)  # not sent to the target of a redirect
        try:
            response = self._opener.open(request, timeout=self.timeout)
        except HTTPError as error:
            error.close()
            raise failure(error.code, error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise Passing(_said(error, self.timeout)) from None
        with response:
            yield self._answer(response, begin, end, etag, part)

    def _answer(
        self, response: http.client.HTTPResponse, begin: int, end: int | None, etag: str | None, part: bool
    ) -> Answer:
        now = response.headers.get("ETag")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused("the server sends the file compressed, though it was asked not to")
        if response.status == 206 and part:
            got = span(response.headers.get("Content-Range"))
            if got is None or got[0] != begin or (end is not None and got[1] != end):
                raise Changed(f"the server answered with {response.headers.get('Content-Range')}")
            return Answer(got[2], now, self._blocks(response))
        if response.status != 200:
            raise failure(response.status, response.reason)
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
        if part and etag and now and now != etag:
            raise Changed(f"its ETag is now {now} instead of {etag}")
        if part and (begin > 0 or end != size):
            raise Refused(
                f"the server sends whole files only ({length or 'unknown'} bytes), but clips are read by byte ranges"
            )
        return Answer(size, now, self._blocks(response))

    def _blocks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while block := response.read(BLOCK):
                yield block
        except (OSError, http.client.HTTPException) as error:
            raise Passing(_said(error, self.timeout)) from None

    def _login(self) -> str | None:
        """Basic authentication from ~/.netrc (or the file in the environment variable NETRC), as curl does it."""
        path = os.environ.get("NETRC") or str(Path("~/.netrc").expanduser())
        if not os.path.exists(path):
            return None
        try:
            found = netrc.netrc(path).authenticators(urlsplit(self.base).hostname or "")
        except (OSError, netrc.NetrcParseError):
            raise Refused(f"{path} cannot be read as a netrc file") from None
        if found is None:
            return None
        return "Basic " + base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()


def _said(error: Exception, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"the server sent nothing for {timeout:g} s"
    return without_secrets(f"the connection failed: {reason or type(reason).__name__}")
