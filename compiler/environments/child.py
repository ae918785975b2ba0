"""The parent's side: a build that is open in a process with another environment."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from polycast.errors import InputError, ToolchainError

from . import loop


class Child:
    """The build in ``folder``, opened by ``runner`` under ``python``. It ends with this object, or with this process.

    python: the interpreter of the environment, or the command that starts it.
    runner: a file with ``open_session(folder, own_process=…)``.
    Raises: ToolchainError where the process ends before it answers, with the last line that it says.
    """

    def __init__(self, python: Path | Sequence[str], runner: Path, folder: Path) -> None:
        command = [python] if isinstance(python, Path) else [*python]
        self._said: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, "-I", "-B", loop.__file__, runner, folder.resolve()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        self._end = weakref.finalize(self, _end, self._process, self._said)
        self.providers: list[str] = self._answer()[0]["providers"]

    def close(self) -> None:
        """End the process. It has nothing to save."""
        self._end()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once. Returns: the outputs in the model's order.

        Raises: InputError with what the runtime says; ToolchainError where the process ends, saying how.
        """
        assert self._process.stdin is not None
        try:
            loop.send(self._process.stdin, {}, list(feeds.items()))  # type: ignore[arg-type]
        except OSError:
            raise self._ended() from None
        facts, outputs = self._answer()
        if "error" in facts:
            raise InputError(str(facts["error"]))
        return list(outputs.values())

    def _answer(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._process.stdout is not None
        message = loop.receive(self._process.stdout)  # type: ignore[arg-type]
        if message is None:
            raise self._ended()
        return message

    def _ended(self) -> ToolchainError:
        status = self._process.wait()
        self._said.seek(0)
        last = (self._said.read().strip().splitlines() or ["no message"])[-1]
        how = f"crashed with {signal.Signals(-status).name}" if status < 0 else f"left with status {status}"
        return ToolchainError(f"the process of this runtime {how}: {last}")


def _end(process: subprocess.Popen[bytes], said: IO[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, said):
        try:
            if stream is not None:
                stream.close()
        except OSError:
            pass  # what was written last found no reader
