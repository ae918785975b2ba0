"""Commands: what makes and evaluates one build of a sweep again, as a user would type it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Spelling:
    """What a sweep was asked for. options: what else ``compile`` takes. limits: what ``evaluate`` is told.

    Of either, what is None is not given.
    """

    source: object
    data: object
    calibration: object = None
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    options: Mapping[str, str | float | None] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    limits: Mapping[str, str | float | None] = field(default_factory=dict)
    out: Path = Path("out")

    @property
    def is_whole(self) -> bool:
        """Whether model and samples are files, which alone can be typed."""
        return all(each is None or isinstance(each, str | Path) for each in (self.source, self.data, self.calibration))

    def both(self, name: str, target: str, precision: str) -> tuple[str, str]:
        """Spell what builds ``name``, and what evaluates it."""
        return self.compile(target, precision), self.evaluate(name)

    def compile(self, target: str, precision: str) -> str:
        """Spell the command that builds; ``auto`` is told what its build is held to."""
        words = ["polycast", "compile", str(self.source), "-t", target, "-p", precision]
        words += _option("calibration", self.calibration) + _option("data", self.data)
        for name, dims in self.shapes.items():
            words += ["--shape", f"{name}={','.join(map(str, dims))}"]
        words += _options(self.options)
        if precision == "auto":
            words += self._goals()
        return shlex.join([*words, "-o", str(self.out)])

    def evaluate(self, name: str) -> str:
        """Spell the command that evaluates."""
        words = ["polycast", "evaluate", str(self.out / name), "--against", str(self.source)]
        return shlex.join([*words, *_option("data", self.data), *self._goals()])

    def _goals(self) -> list[str]:
        words = [word for metric in self.metrics for word in ("--metric", metric)]
        return words + _options(self.limits)


def _options(given: Mapping[str, object]) -> list[str]:
    return [word for name, value in given.items() for word in _option(name.replace("_", "-"), value)]


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [f"--{name}", str(value)]
