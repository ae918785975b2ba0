"""What was measured to be the fastest on one chip, by workload, kept for every later build on it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from polycast.calibrating.folder import cache_folder

Choice = TypeVar("Choice", bound=Hashable)

#: Runs a kernel once, or as often as it takes to time it. Returns: seconds a run.
Timer = Callable[[], float]
Tell = Callable[[str, int, int], None]

#: A choice takes the place of the one that the model of costs made where it is faster by more than two runs differ.
FASTER = 1.03
#: How often each is timed.
ROUNDS = 5


@dataclass(frozen=True)
class Records(Generic[Choice]):
    """The choices of one chip: a JSON file of its own, so that none is ever used on another.

    spelt: makes a choice of what is written of it; raises KeyError, TypeError or ValueError where that is damaged.
    """

    path: Path
    spelt: Callable[[Mapping[str, Any]], Choice]

    @classmethod
    def about(
        cls, what: Any, hardware: str, rules: int, spelt: Callable[[Mapping[str, Any]], Choice]
    ) -> Records[Choice]:
        """Give those for ``what``, a Cpu or a Gpu, on ``hardware``, found with the schedules of version ``rules``."""
        key = json.dumps([asdict(what), hardware, version("apache-tvm"), rules])
        name = f"{what.kind}-{what.arch}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        return cls(cache_folder() / "tuned" / name, spelt)

    def read(self) -> dict[str, Choice]:
        """Give choices by workload; a damaged file is as good as none."""
        try:
            return {key: self.spelt(each) for key, each in self._file()["fastest"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def tried(self) -> dict[str, int]:
        """Give by workload how many schedules of MetaSchedule's have been tried."""
        try:
            return {key: int(each) for key, each in self._file()["tried"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def add(self, workload: str, choice: Any) -> None:
        """Keep one more choice, whole or not at all."""
        self._write(self.read() | {workload: choice}, self.tried())

    def add_tried(self, workload: str, many: int) -> None:
        """Keep that so many more of MetaSchedule's schedules were tried."""
        known = self.tried()
        self._write(self.read(), known | {workload: known.get(workload, 0) + many})

    def _file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def _write(self, fastest: Mapping[str, Any], tried: Mapping[str, int]) -> None:
        text = {"fastest": {key: asdict(each) for key, each in fastest.items()}, "tried": dict(tried)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}.partial")
        part.write_text(json.dumps(text, indent=1, sort_keys=True), encoding="utf-8")
        part.replace(self.path)


@dataclass(frozen=True)
class Search(Generic[Choice]):
    """A search for the fastest choice of each kernel.

    choices: of a kernel, the one that is taken unmeasured first. timer: builds a kernel with a choice.
    """

    kept: Records[Choice]
    choices: Callable[[Any], Sequence[Choice]]
    timer: Callable[[Any, Choice], Timer]

    def run(self, kernels: Mapping[str, Any], until: float, tell: Tell | None = None) -> None:
        """Time every choice of every kernel, by workload, that has no record yet, until the clock says ``until``.

        What was found before an interruption is kept.
        """
        known = self.kept.read()
        waiting = [key for key in kernels if key not in known]
        for number, key in enumerate(waiting):
            if tell:
                tell("tune", number, len(waiting))
            if time.monotonic() >= until:
                break
            if (choice := self.fastest(kernels[key], until)) is not None:
                self.kept.add(key, choice)
        if tell and waiting:
            tell("tune", len(waiting), len(waiting))

    def fastest(self, kernel: Any, until: float) -> Choice | None:
        """Time the choices of one kernel in turns; None where the time ran out before all had been built."""
        first, *rest = self.choices(kernel)
        if not rest:
            return first
        timers = {}
        for choice in (first, *rest):
            if time.monotonic() >= until:
                return None
            timers[choice] = self.timer(kernel, choice)
        return fastest(timers)


def fastest(timers: Mapping[Choice, Timer]) -> Choice:
    """Time every choice in turns. Returns: the fastest, or the first, where none is faster by more than runs differ."""
    least = least_of(timers)
    first, best = next(iter(least)), min(least, key=lambda choice: least[choice])
    return best if least[best] * FASTER < least[first] else first


def least_of(timers: Mapping[Choice, Timer]) -> dict[Choice, float]:
    """Time every choice in turns. Returns: the least seconds that each took."""
    rounds: dict[Choice, list[float]] = {choice: [] for choice in timers}
    for _ in range(ROUNDS):
        for choice, timed in timers.items():
            rounds[choice].append(timed())
    return {choice: min(times) for choice, times in rounds.items()}


def workload(function: Any) -> str:
    """Give one text for kernels that compute the same."""
    import tvm_ffi

    return f"{tvm_ffi.structural_hash(function) & (2**64 - 1):016x}"


def kernels_of(module: Any) -> dict[str, Any]:
    """Give the kernels of a module, by workload."""
    from tvm import tirx

    functions = [each for each in module.functions.values() if isinstance(each, tirx.PrimFunc)]
    return {workload(each): each for each in functions}


@dataclass
class Called:
    """A kernel of a model: its name in the module, and how often a run calls what computes the same."""

    name: str
    times: int = 0


def calls_of(module: Any) -> dict[str, Called]:
    """Give what ``main`` calls, by workload."""
    import tvm
    from tvm import relax, tirx

    keys = {
        variable.name_hint: workload(function)
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    found: dict[str, Called] = {}

    def visit(expression: Any) -> None:
        callee = expression.args[0] if isinstance(expression, relax.Call) and expression.args else None
        if isinstance(callee, tvm.ir.GlobalVar) and (key := keys.get(callee.name_hint)):
            found.setdefault(key, Called(callee.name_hint)).times += 1

    relax.analysis.post_order_visit(module["main"].body, visit)
    return found
