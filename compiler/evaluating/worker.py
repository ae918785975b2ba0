"""Worker: one model, open in a process of its own just as its user runs it, that answers what it takes there."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Timer
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polycast.errors import PolycastError, ToolchainError
from polycast.measure import Stopwatch
from polycast.model import Signature
from polycast.targetbase import Evidence, NodeProfiling, Profiling, Session

from .footprint import Footprint, peak, reset_peak

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

#: A worker that gives no answer for so many seconds is ended.
PATIENCE = 600.0
_CHILD = "from polycast.evaluating.worker import serve; serve()"


@dataclass(frozen=True)
class SavedFeeds:
    """Inputs for one run in a file that a worker reads; ``names`` of its arrays, in their order."""

    file: str
    names: list[str]


@contextmanager
def saved(feeds: Feeds) -> Iterator[SavedFeeds]:
    """Save ``feeds`` for workers, for as long as this lasts."""
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        file = Path(folder) / "feeds.npz"
        np.savez(file, *(a.astype(np.str_) if a.dtype == object else a for a in feeds.values()))
        yield SavedFeeds(str(file), list(feeds))


@dataclass(frozen=True)
class Opening:
    """What a worker opens: a ``build``, or the ``original``, an ONNX file of this signature for plain onnxruntime."""

    kind: Literal["build", "original"]
    path: str
    feeds: SavedFeeds
    signature: Mapping[str, Any] = field(default_factory=dict)


class Worker:
    """One open model in a process of its own. It opens it, runs it once, and waits for questions.

    The process ends with ``close``, or with this one. A question that it does not answer raises ToolchainError with
    the last line that it wrote to stderr.
    """

    def __init__(self, opening: Opening) -> None:
        self._held = ExitStack()
        self._stderr = self._held.enter_context(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
        self._process = self._held.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
            )
        )
        try:
            opened = self._ask(asdict(opening))
        except BaseException:
            self.close()
            raise
        self.evidence: Evidence = opened["evidence"]
        self.footprint = Footprint(opened["memory"], opened["load_seconds"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. It has nothing to save."""
        self._process.kill()
        assert self._process.stdin is not None
        with suppress(OSError):  # what was written last found no reader
            self._process.stdin.close()
        self._held.close()

    def warm_up(self) -> float:
        """See ``polycast.measure.Timed``."""
        return float(self._ask({"question": "warm_up"})["seconds"])

    def time(self, times: int) -> list[float]:
        """See ``polycast.measure.Timed``."""
        return list(self._ask({"question": "time", "times": times})["seconds"])

    def profile(self) -> dict[str, float] | None:
        """Give the seconds of one run by op type, or None where the runtime does not tell."""
        by_op: dict[str, float] | None = self._ask({"question": "profile"})["seconds"]
        return by_op

    def profile_nodes(self) -> dict[str, float] | None:
        """Give the seconds of one run by node, or None where the runtime does not tell."""
        by_node: dict[str, float] | None = self._ask({"question": "profile_nodes"})["seconds"]
        return by_node

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line and read one. Raises: ToolchainError when the process ends, or gives no answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        late: list[float] = []

        def give_up() -> None:
            late.append(PATIENCE)
            self._process.kill()

        patience = Timer(PATIENCE, give_up)
        patience.start()
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            patience.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        if late:
            raise ToolchainError(f"the measuring process gave no answer in {late[0]:g} s")
        status = self._process.wait()
        self._stderr.seek(0)
        last = (self._stderr.read().strip().splitlines() or ["no message"])[-1]
        raise ToolchainError(f"the measuring process left with status {status}: {last}")


def serve() -> None:
    """Be a worker: read what to open, then a question a line, and answer each with a line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints is no answer

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    try:
        opening = json.loads(sys.stdin.readline())
        feeds = _read(SavedFeeds(**opening["feeds"]))
        start = _opener(opening)
        before = reset_peak()
        started = perf_counter()
        session = start()
        load_seconds = perf_counter() - started
        session.run(feeds)
        answer(evidence=session.evidence, memory=max(0, peak() - before), load_seconds=load_seconds)
        watch = Stopwatch(lambda: session.run(feeds))
        for line in sys.stdin:
            question = json.loads(line)
            if question["question"] == "warm_up":
                answer(seconds=watch.warm_up())
            elif question["question"] == "time":
                answer(seconds=watch.time(question["times"]))
            elif question["question"] == "profile_nodes":
                answer(seconds=session.profile_nodes(feeds) if isinstance(session, NodeProfiling) else None)
            else:
                answer(seconds=session.profile(feeds) if isinstance(session, Profiling) else None)
    except PolycastError as error:
        sys.exit(error.message)


def _read(given: SavedFeeds) -> Feeds:
    with np.load(given.file, allow_pickle=False) as arrays:
        loaded = [arrays[key] for key in arrays.files]
    return {
        name: array.astype(object) if array.dtype.kind == "U" else array
        for name, array in zip(given.names, loaded, strict=True)
    }


def _opener(opening: Mapping[str, Any]) -> Callable[[], Session]:
    """Give what opens it. What is imported here is not counted: onnxruntime is what nearly every build runs on."""
    importlib.import_module("onnxruntime")
    path = Path(opening["path"])
    if opening["kind"] == "original":
        from polycast.reference import open_file

        signature = Signature.from_json(opening["signature"])
        return lambda: open_file(path, signature)
    from polycast.build import open_build
    from polycast.targets import catalogue

    catalogue()
    build = open_build(path)
    return lambda: build.open(own_process=True)
