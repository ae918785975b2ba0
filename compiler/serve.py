"""Serve a folder on this machine alone, as a browser wants it served."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .errors import InputError

#: A module is refused under another type, and the table of the operating system may have another.
_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".wgsl": "text/plain; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}


class _Files(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, **_TYPES}  # noqa: RUF012  # as its base class has it
    protocol_version = "HTTP/1.1"

    def end_headers(self) -> None:
        """Isolate the page, which lets wasm have threads, and let every reload ask whether a file has changed."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the browser's own console names what is missing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that has gone away."""


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve ``folder`` on 127.0.0.1 while the context lasts; port 0 takes a free one. Gives the URL.

    Raises: InputError where the port is taken.
    """
    try:
        server = _Server(("127.0.0.1", port), partial(_Files, directory=str(folder)))
    except OSError as error:
        raise InputError(f"cannot serve on port {port}: {error.strerror}", "Give another port, or none") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def show(build: Path, *, browser: bool, say: Callable[[str], object]) -> None:
    """Serve the page of ``build`` until Ctrl-C. browser: whether to open it in one; say: takes the address."""
    folder = page_of(build)
    with suppress(KeyboardInterrupt), served(folder) as url:
        say(url)
        if browser:
            webbrowser.open(url)
        threading.Event().wait()


def page_of(build: Path) -> Path:
    """Give the folder to serve for ``build``.

    Raises: InputError where it has no page.
    """
    if not (build / "manifest.json").is_file():
        raise InputError(f"{build} is no build", "A build is the folder that polycast compile writes")
    if not (build / "index.html").is_file():
        raise InputError(f"{build} has no page to show", "polycast serve is for builds of -t webgpu")
    return build
