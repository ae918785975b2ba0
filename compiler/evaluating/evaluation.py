"""Evaluation: a build's measurements beside the original's, and its form in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polycast.build import Build
from polycast.errors import InputError
from polycast.measure import Measurement

from .budget import Verdict
from .scoring import Difference

SCHEMA = 1


@dataclass(frozen=True)
class Subject:
    """The build that an evaluation is about; promise: ``asked`` and ``reached``."""

    name: str
    target: str
    precision: str
    path: str
    promise: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, build: Build) -> Subject:
        """Describe ``build``."""
        return cls(build.path.resolve().name, build.target, build.precision, str(build.path), build.promise)


@dataclass(frozen=True)
class Evaluation:
    """A build's measurements beside the original's.

    against, data: what it was held against and scored on; n: how many samples, 0 where nobody evaluated it yet.
    baseline: the original's measurements. not_run: for each that is missing, why. differences: build minus original.
    costs: where the build is slower, the seconds that a run of it takes more, by op type, or why nobody knows.
    """

    build: Subject
    against: str
    data: str
    n: int
    baseline: Mapping[str, Measurement]
    measurements: Mapping[str, Measurement]
    differences: Mapping[str, Difference]
    not_run: Mapping[str, str]
    budgets: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    costs: Mapping[str, float] | str = field(default_factory=dict)

    @property
    def missed(self) -> tuple[Verdict, ...]:
        """The budgets that the build misses."""
        return tuple(verdict for verdict in self.budgets if not verdict.met)

    def cell(self, name: str) -> Measurement | str:
        """Give a measurement, or the reason why there is none."""
        default = "was not asked for" if self.n else "needs polycast evaluate"
        return self.measurements.get(name) or self.not_run.get(name, default)

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON: no NaN, no infinity; what is missing stands in ``not_run`` with its reason."""
        return {
            "schema": SCHEMA,
            "build": {**vars(self.build), "promise": dict(self.build.promise)},
            "against": self.against,
            "data": self.data,
            "n": self.n,
            "baseline": {name: m.to_json() for name, m in self.baseline.items()},
            "measurements": {name: m.to_json() for name, m in self.measurements.items()},
            "differences": {name: d.to_json() for name, d in self.differences.items()},
            "not_run": dict(self.not_run),
            "budgets": [verdict.to_json() for verdict in self.budgets],
            "notes": list(self.notes),
            "costs": self.costs if isinstance(self.costs, str) else dict(self.costs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "evaluation") -> Evaluation:
        """Read what ``to_json`` wrote. Raises: InputError for another schema, or where something is missing."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"{where} has schema {data.get('schema')!r}, this polycast reads {SCHEMA}")
        try:
            return cls(
                Subject(**data["build"]),
                data["against"],
                data["data"],
                data["n"],
                {name: Measurement.from_json(name, m) for name, m in data["baseline"].items()},
                {name: Measurement.from_json(name, m) for name, m in data["measurements"].items()},
                {name: Difference.from_json(name, d) for name, d in data["differences"].items()},
                data["not_run"],
                tuple(Verdict.from_json(v) for v in data["budgets"]),
                tuple(data["notes"]),
                data.get("costs", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where} is no evaluation: {type(error).__name__}: {error}") from error
