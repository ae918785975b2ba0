"""A folder is served to this machine alone, with the types and headers that a browser insists on."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from polycast.errors import InputError
from polycast.serve import page_of, served


def test_types_and_headers(tmp_path: Path) -> None:
    types = {"a.mjs": "text/javascript", "b.wasm": "application/wasm", "c.json": "application/json"}
    for name in types:
        (tmp_path / name).write_text("{}")
    with served(tmp_path) as url:
        assert url.startswith("http://127.0.0.1:")
        for name, kind in types.items():
            with urllib.request.urlopen(url + name) as answer:
                assert answer.headers["Content-Type"] == kind
                assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


def test_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}"), served(Path(), port):
            pass


def test_only_a_build_with_a_page_is_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no build"):
        page_of(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="has no page"):
        page_of(tmp_path)
    (tmp_path / "index.html").write_text("")
    assert page_of(tmp_path) == tmp_path


def test_command_prints_the_address_and_ends_cleanly_on_ctrl_c(tmp_path: Path) -> None:
    for name in ("manifest.json", "index.html"):
        (tmp_path / name).write_text("{}")
    command = [sys.executable, "-u", "-m", "polycast", "serve", "--no-browser", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stderr
        with urllib.request.urlopen(child.stdout.readline().strip()) as answer:
            assert answer.status == 200
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 0
        assert child.stderr.read() == ""
