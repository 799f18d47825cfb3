"""python -m gamut.serve: a page in the browser that says what is heard in a recording, and when; with a Whisper also
what is said."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from gamut.commands import command, parser_of, positive
from gamut.errors import GamutError, RecipeError, missing
from gamut.tag.arguments import add_choice, add_model, choice_of, open_model

EXAMPLE = """examples:
  python -m gamut.serve runs/esc50/test-1-seed-0
  python -m gamut.serve models/whisper-tiny --head runs/whisper_at --transcribe --language en --every 2
"""
PORT = 7860
# The browser may ask nobody but this page's own server for anything.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; frame-ancestors 'self'"
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise RecipeError(f"The page is made with {missing('gradio', 'serve')}")
    with (
        _listening(arguments.host, arguments.port) as listening,
        tempfile.TemporaryDirectory(prefix="gamut-serve-") as uploads,
    ):
        # Before gradio is imported: it would ask the network for newer versions and count its users.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads, "HF_HUB_DISABLE_TELEMETRY": "1"}
        model, options = open_model(arguments)
        application = _application(arguments, model, options)
        host, port = listening.getsockname()[:2]
        if not _only_here(host):
            print(
                f"warning: {host} is open to others: whoever reaches this machine can send recordings, without a "
                "password, and they travel unencrypted. (Browsers lend a microphone only to localhost and https.)",
                file=sys.stderr,
            )
        shown = f"[{host}]" if ":" in host else host
        print(f"Open http://{shown}:{port} in a browser; Ctrl-C ends it.", flush=True)
        _run(application, listening)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("serve", __doc__, EXAMPLE)
    add_model(parser)
    add_choice(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="0.0.0.0: open to others (default: only here)"
    )
    parser.add_argument(
        "--port", type=int, default=PORT, metavar="N", help="0: any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--largest", type=positive, default=100, metavar="MB", help="of an upload (default: %(default)s)"
    )
    parser.add_argument(
        "--longest", type=positive, default=1800, metavar="S", help="of a recording (default: %(default)s)"
    )
    return parser


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise GamutError(
            f"Port {port} of {host} cannot be had ({why}): choose another with --port, or end what has it."
        ) from error


def _only_here(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _application(arguments: argparse.Namespace, model: Any, options: dict[str, Any]) -> Any:
    """The page and what answers for it, as an ASGI application."""
    import fastapi
    import gradio

    from gamut.serve.page import STYLE, Limits, Listener, page

    limits = Limits(arguments.largest, float(arguments.longest))
    listener = Listener(model, options, choice_of(arguments, model), limits)
    blocks = page(listener, f"With `{arguments.model}`", limits)
    fonts = ["system-ui", "sans-serif"]  # those of gradio's own themes would be fetched
    theme = gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    application = gradio.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks, path="/", footer_links=[],
        run_history=False, max_file_size=limits.megabytes * 1_000_000, ssr_mode=False, enable_monitoring=False,
        pwa=False, mcp_server=False, show_error=False, theme=theme, css=STYLE,
    )  # fmt: skip
    return _Guarded(application)


class _Guarded:
    """An ASGI application whose answers carry the policy."""

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await self._application(scope, receive, sending)


def _run(application: Any, listening: socket.socket) -> None:
    import uvicorn

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)  # uvicorn ends in order, and then raises it again: temporary files go, too
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=2))
    # A page that is open is cut off at the end, which is no error to tell with its stack.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run(sockets=[listening])


if __name__ == "__main__":
    sys.exit(main())
