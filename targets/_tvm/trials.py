"""Kernels that are built and timed in another process, which a bad schedule may take with it, or keep for too long."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from .records import Timer

#: Seconds that building and timing one schedule may take.
LIMIT = 20.0


class Trials:
    """Times choices in a process of its own, begun anew where one of them ends it. timer: builds a kernel."""

    def __init__(self, timer: Callable[[Any, Any], Timer]) -> None:
        from tvm.support.popen_pool import PopenWorker

        self._timer = timer
        self._worker = PopenWorker(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def seconds(self, kernel: Any, choice: Any) -> float | None:
        """Build and time one choice. Returns: None where that failed or took too long."""
        try:
            self._worker.send(_seconds, (self._timer, kernel, choice), timeout=LIMIT)
            return float(self._worker.recv())
        except Exception:  # whatever TVM, LLVM or a driver makes of a schedule that is no good
            return None

    def close(self) -> None:
        """End the process."""
        self._worker.kill()


def _seconds(timer: Callable[[Any, Any], Timer], kernel: Any, choice: Any) -> float:
    return timer(kernel, choice)()
