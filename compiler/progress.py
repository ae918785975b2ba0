"""Progress on stderr: one bar on a terminal, nothing where stderr is a file; and lines that stay, on either."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


class Progress:
    """A context manager that is called as work goes on: ``progress("clean", 3, 12)``.

    aloud: how the stages begin that get a line that stays, once each, before they begin.
    """

    def __init__(self, *aloud: str) -> None:
        self._aloud = aloud
        self._said: set[str] = set()
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (SpinnerColumn(), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say what is being done, and how much of it is done."""
        if stage.startswith(self._aloud) and stage not in self._said:
            self._said.add(stage)
            self.say(stage)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=stage, completed=done, total=total or None)

    def say(self, line: str) -> None:
        """Write a line that stays, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)
