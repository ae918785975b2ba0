"""The contract of a target: what it can do, what it writes, how its builds are run."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from .errors import InputError, PolycastError, RecipeError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    from .model import Model, Signature

Evidence = Literal["device", "emulated", "predicted", "not run"]


@dataclass(frozen=True)
class Answer:
    """Yes, or no with the reason and the command that mends it."""

    yes: bool
    reason: str
    mend: str = ""


@dataclass(frozen=True)
class Probe:
    """What can be built and what can be run on this machine: two separate answers."""

    build: Answer
    run: Answer
    evidence: Evidence
    hardware: str = ""


class Session(Protocol):
    """A build (or a model) that is open and runs."""

    evidence: Evidence

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once. ``feeds``: input name -> array of the signature's dtype; gives the outputs in the model's order.

        Raises: InputError naming the input, for a missing or unknown name, or a wrong dtype or shape.
        """
        ...


@runtime_checkable
class Profiling(Protocol):
    """A session that can say where its time goes. A runtime that cannot leaves ``profile`` out."""

    def profile(self, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Give the seconds that each op type takes in one run, the median of several, by name of the op type."""
        ...


@runtime_checkable
class NodeProfiling(Protocol):
    """A session that can say where its time goes, node by node. A runtime that cannot leaves it out."""

    def profile_nodes(self, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Give the seconds that each node takes in one run, the median of several, by the name the runtime gives it."""
        ...


@dataclass
class CheckedSession:
    """A session made of a plain function, which holds what it is given to the signature first.

    call: the runtime's own run. Feeds of the names, dtypes and shapes that ran last are not checked again,
    since a small model runs in less time than a check takes.
    """

    call: Callable[[dict[str, np.ndarray]], list[np.ndarray]]
    signature: Signature
    evidence: Evidence = "device"
    _last: list[tuple[object, ...]] | None = field(default=None, repr=False)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; see ``Session``."""
        layout: list[tuple[object, ...]] = [(name, array.dtype, array.shape) for name, array in feeds.items()]
        if layout != self._last:
            self.signature.check(feeds)
        try:
            outputs = self.call(feeds if type(feeds) is dict else dict(feeds))
        except PolycastError:
            raise
        except Exception as error:  # a runtime's own error types share no base class
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the model does not run on these inputs: {line}") from error
        self._last = layout
        return outputs


def widen(problems: Iterable[str]) -> str:
    """Say what to do where it is a type of half the bytes that kernels lack; nothing where it is something else."""
    if not any("float16" in problem for problem in problems):
        return ""
    return "Export the model in float32: -p says how narrow a build is, and polycast targets which precisions there are"


def cut(problems: Iterable[str]) -> str:
    """Say what to do where an op is lacking whatever its types and sizes are; nothing where it is something else."""
    ops = (problem for problem in problems if "." in problem.partition(" ")[0])
    if not any("float16" not in op and "--shape" not in op for op in ops):
        return ""
    return "End the model before what is lacking (onnx.utils.extract_model), and compute the rest beside the build"


@dataclass(frozen=True)
class Target(ABC):
    """A kind of hardware that a build is for, and what executes it there: ``cuda:sm_90``, ``cuda:sm_90@onnxruntime``.

    arch: what follows the colon, one of ``arches``; empty for the target's own choice.
    runtime: what follows the @, one of ``runtimes``; empty for the first of them.
    """

    name: ClassVar[str]
    arches: ClassVar[tuple[str, ...]] = ()
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    arch: str = ""
    runtime: str = ""

    def __post_init__(self) -> None:
        if self.arch not in ("", *self.arches):
            raise RecipeError.unknown(f"architecture of {self.name}", self.arch, self.arches)
        if self.runtime not in ("", *self.runtimes):
            raise RecipeError.unknown(f"runtime of {self.name}", self.runtime, self.runtimes)
        if self.runtime == self.runtimes[0]:
            object.__setattr__(self, "runtime", "")  # one spelling for one thing

    def __str__(self) -> str:
        return self.name + (f":{self.arch}" if self.arch else "") + (f"@{self.runtime}" if self.runtime else "")

    @property
    def executor(self) -> str:
        """The runtime that executes the builds, by name."""
        return self.runtime or self.runtimes[0]

    @property
    def label(self) -> str:
        """The spelling as part of a file name: ``cuda-sm_90``."""
        return str(self).replace(":", "-").replace("@", "-")

    @property
    @abstractmethod
    def features(self) -> frozenset[str]:
        """What this target can do beyond plain ONNX; passes ask for these, never for a target's name."""

    @abstractmethod
    def probe(self) -> Probe:
        """Look at this machine. Never raises."""

    @abstractmethod
    def recipe(self, precision: str) -> str | None:
        """Give the pipeline text for ``precision``, or None where the target does not have that precision."""

    @property
    def declined(self) -> Mapping[str, str]:
        """Precisions that the field knows and this target gains nothing from, each with the reason."""
        return {}

    @property
    @abstractmethod
    def precisions(self) -> tuple[str, ...]:
        """Every precision that ``recipe`` knows."""

    @abstractmethod
    def problems(self, model: Model) -> tuple[str, ...]:
        """Name every op and feature of ``model`` that this target lacks: sorted, all at once."""

    def mends(self, model: Model) -> tuple[str, ...]:
        """Say what could be done about what ``problems`` names, where that is in the model and not in the runtime."""
        return ()

    def check(self, model: Model, precision: str = "") -> None:
        """Raise UnsupportedError with every problem of ``model``, where it has any, and with what could be done."""
        if problems := self.problems(model):
            own = self.mends(model)
            # onnxruntime lists its kernels by op and version; that one takes no bfloat16 shows when a model is opened.
            other = "" if own or "bfloat16" in str(problems) else self._taken_by(model, precision)
            hints = (other, *own, widen(problems), cut(problems))
            raise UnsupportedError(
                f"{self} lacks what this model needs: {', '.join(problems)}", ". ".join(filter(None, hints))
            )

    def _taken_by(self, model: Model, precision: str) -> str:
        """Name the first other runtime that is here, has the precision and lacks nothing of ``model``."""
        for runtime in self.runtimes:
            other = replace(self, runtime=runtime)
            has_it = precision in other.precisions or precision not in self.precisions
            if runtime != self.executor and has_it and other._takes(model):
                return f"-t {self.name}{f':{self.arch}' if self.arch else ''}@{runtime} takes this model"
        return ""

    def _takes(self, model: Model) -> bool:
        """Whether builds for this target can be made here, of ``model`` too."""
        try:
            return not self.problems(model) and self.probe().build.yes
        except Exception:  # of a runtime that was not asked for: what stops it is not what the user has to hear
            return False

    def fallback(self, model: Model) -> Mapping[str, str] | None:
        """Say which nodes of ``model`` the runtime leaves to the CPU: the name of the node -> why.

        Returns: None where the target has no notion of it: all runs where it is for, or nothing does.
        """
        return None

    def made_with(self) -> Mapping[str, object]:
        """Name what builds depend on beside this package and the libraries that it uses, as JSON can spell it.

        Schedules that were tuned, tools that are called, what is found out about this machine: where any of it changes,
        a build that is kept is made again.
        """
        return {}

    @property
    def interpreter(self) -> tuple[str, ...]:
        """The command that starts the Python in which a build's own runner runs here: this one, or an emulator's."""
        return (sys.executable,)

    def set_up(self) -> str:
        """Make what the runtime needs beside what is installed, an environment of its own. Returns: where it is.

        Raises: RecipeError where it needs none; ToolchainError where it cannot be made.
        """
        raise RecipeError(f"{self} needs no environment of its own", "polycast targets says what each one needs")

    @abstractmethod
    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """Write what a user ships (model, runner, how-to-run lines) into ``folder``.

        Returns: facts for the manifest: ``{"runtime": …, "versions": {…}, "how_to_run": […]}``. No timestamps.
        """

    @abstractmethod
    def open(self, folder: Path, *, own_process: bool = False) -> Session:
        """Open a build on this hardware, or on the best stand-in there is, and say which (``Session.evidence``).

        own_process: nothing else runs in this process, as where the build's own runner does. Only then may what holds
        for the whole process be set, such as the floating-point mode. A target that has nothing of the kind ignores it.
        """

    @property
    def chosen_on(self) -> str:
        """The target of this very machine whose builds are the same files, so that what is best is chosen by it.

        Returns: its spelling; nothing where builds are measured as they are, or not at all.
        """
        return ""

    def tuned(self, minutes: float, progress: Callable[[str, int, int], None] | None = None) -> Target:
        """Give this target, whose ``write`` tries schedules on this machine for so many minutes first.

        Raises: RecipeError with the reason where there is nothing to try, or nothing to try it on.
        """
        if not minutes:
            return self
        run = self.probe().run
        reason = f"{self.executor} chooses its kernels itself" if run.yes else run.reason
        raise RecipeError(f"{self} cannot be tuned here: {reason}", "" if run.yes else run.mend)

    def kernels(self, folder: Path) -> Mapping[str, Any] | None:
        """Say which kernels the runtime really takes for the weights of a build, after its own optimization.

        Returns: ``integer`` of ``of`` kernels multiply integers; ``ops`` by kernel; ``float``, the nodes that do not.
        None where the runtime does not tell.
        """
        return None
