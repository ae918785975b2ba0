"""A headless Chromium over its DevTools pipe, with nothing but the standard library."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from polycast.errors import ToolchainError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

#: Without --enable-unsafe-webgpu there is no software adapter, and on Linux no hardware one either.
_FLAGS = (
    "--headless", "--enable-unsafe-webgpu", "--enable-features=Vulkan", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip


def program() -> str | None:
    """Give the path of a Chromium or Chrome on this machine: POLYCAST_CHROMIUM, or the first one in PATH."""
    return os.environ.get("POLYCAST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Browser:
    """One running browser. Its tabs share one pipe, so that commands are answered one at a time."""

    process: subprocess.Popen[bytes]
    read: int
    write: int
    sent: int = 0
    buffer: bytearray = field(default_factory=bytearray)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=1000))

    @classmethod
    def start(cls, path: str, profile: str) -> Browser:
        """Start the program at ``path`` with the user data folder ``profile``."""
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        become = (
            f"import os, sys; os.dup2({theirs_in}, 3); os.dup2({theirs_out}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        )
        root = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses to run as root
        command = [sys.executable, "-I", "-c", become, path, *_FLAGS, *root, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        return cls(process, ours_in, ours_out)

    def ask(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and wait for its answer.

        Raises: ToolchainError where the browser refuses it or has gone.
        """
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params} | ({"sessionId": session} if session else {})
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self.write, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self.sent:
                if "error" in answer:
                    raise ToolchainError(f"the browser refuses {method}: {answer['error'].get('message')}")
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, event: str, session: str) -> None:
        """Wait until a tab has said ``event``; what was said before counts."""

        def told(message: dict[str, Any]) -> bool:
            return message.get("method") == event and message.get("sessionId") == session

        while not any(map(told, self.events)):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        searched = 0
        while (end := self.buffer.find(b"\0", searched)) < 0:
            searched = len(self.buffer)
            more = os.read(self.read, 1 << 20)
            if not more:
                raise ToolchainError("the browser has ended by itself", "Run it once by hand to see what it lacks")
            self.buffer += more
        message: dict[str, Any] = json.loads(bytes(self.buffer[:end]))
        del self.buffer[: end + 1]
        return message

    def stop(self) -> None:
        """End it and wait for its end."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)
        os.close(self.write)


@cache
def running() -> Browser:
    """Give the browser of this process; it ends with the process.

    Raises: ToolchainError where there is none on this machine.
    """
    path = program()
    if path is None:
        raise ToolchainError("no Chromium or Chrome is installed here", "apt install chromium")
    profile = tempfile.TemporaryDirectory(prefix="polycast-browser-", ignore_cleanup_errors=True)
    browser = Browser.start(path, profile.name)
    atexit.register(profile.cleanup)
    atexit.register(browser.stop)
    return browser


class Tab:
    """A page of the browser; closed when nothing refers to it any more."""

    def __init__(self, url: str) -> None:
        """Open ``url`` and wait until it is loaded."""
        self.browser = running()
        target = self.browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.close = weakref.finalize(self, _close, self.browser, target)
        self.browser.ask("Page.enable", self.session)
        self.browser.ask("Page.navigate", self.session, url=url)
        self.browser.wait("Page.loadEventFired", self.session)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call the JavaScript function ``function`` in the page, wait for its promise, and give its value.

        Raises: ToolchainError with what it throws.
        """
        spelled = ", ".join(map(json.dumps, arguments))
        answer = self.browser.ask(
            "Runtime.evaluate",
            self.session,
            expression=f"({function})({spelled})",
            returnByValue=True,
            awaitPromise=True,
        )
        if thrown := answer.get("exceptionDetails"):
            said = thrown.get("exception", {}).get("description") or thrown.get("text", "")
            raise ToolchainError(f"the page says: {said.splitlines()[0] if said else 'nothing'}")
        return answer["result"].get("value")


def _close(browser: Browser, target: str) -> None:
    if browser.process.poll() is None:
        try:
            browser.ask("Target.closeTarget", targetId=target)
        except (OSError, ToolchainError):
            return  # the browser has ended before its tab
