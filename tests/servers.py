"""An HTTP server of a folder, with ranges and ETags, that can be told to misbehave."""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Server:
    """`fault(name, request number of that name)` chooses what happens to a request: None, or one of

    stall (headers and half of the body, then nothing), cut (half of the body, then the end of the connection), 500,
    503 (or any status), short (half of the body and headers that say so), flip (one bit of the body), etag (another
    ETag than before), whole (ranges are not known here), missing, long (more than was asked for), gzip (compressed,
    though it was asked not to be), `to URL` (a redirect).
    """

    folder: Path
    url: str = ""
    fault: object = None
    requests: list[tuple[str, str]] = field(default_factory=list)  # name, Range
    sent: int = 0
    login: str = ""  # an Authorization header that is wanted

    def seen(self, ending: str = ".tar") -> list[str]:
        """The ranges asked of files with this ending."""
        return [part for name, part in self.requests if name.endswith(ending)]


@contextmanager
def http_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    lock, over = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            name = unquote(self.path).lstrip("/")
            part = self.headers.get("Range", "")
            with lock:
                number = sum(name == other for other, _ in server.requests)
                server.requests.append((name, part))
                fault = server.fault(name, number) if callable(server.fault) else None
            path = server.folder / name
            if fault == "missing" or not path.is_file() or ".." in name:
                return self.send_error(404)
            if server.login and self.headers.get("Authorization") != server.login:
                return self.send_error(401)
            if str(fault).isdigit():
                return self.send_error(int(str(fault)))
            if str(fault).startswith("to "):
                self.send_response(302)
                self.send_header("Location", str(fault)[3:])
                self.send_header("Content-Length", "0")
                return self.end_headers()
            content = path.read_bytes()
            etag = f'"{path.stat().st_mtime_ns:x}-{len(content)}{number if fault == "etag" else ""}"'
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", part)
            condition = self.headers.get("If-Range")
            status, body = 200, content
            if match and fault != "whole" and condition in (None, etag):
                first, last = int(match[1]), int(match[2] or len(content) - 1)
                if first >= len(content):
                    return self.send_error(416)
                last = min(last, len(content) - 1)
                status, body = 206, content[first : last + 1]
            if fault == "flip":
                body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
            if fault == "short":
                body = body[: len(body) // 2]
            self.send_response(status)
            if fault == "gzip":
                body = gzip.compress(bytes(1 << 24))
                self.send_header("Content-Encoding", "gzip")
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body) + (fault == "long") * (1 << 20)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(content)}")
            self.end_headers()
            if fault == "long":
                body += bytes(1 << 20)
            if fault in ("stall", "cut"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                until = time.monotonic() + 30
                while fault == "stall" and not over.is_set() and time.monotonic() < until:
                    time.sleep(0.02)
                return None
            try:
                self.wfile.write(body)
            except OSError:
                return None
            with lock:
                server.sent += len(body)
            return None

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_address[1]}"
    try:
        yield server
    finally:
        over.set()
        listening.shutdown()
        listening.server_close()
