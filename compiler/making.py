"""Making: all that a build depends on, and the builds that would come out the same again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycast.evaluating.budget import Budget
from polycast.metrics import Metric

from . import fingerprint
from .build import Build
from .kept import Record, Shelf
from .model import Model
from .recipe import Recipe
from .samples import Samples
from .targetbase import Target

Data = str | Path | Samples | None


@dataclass(frozen=True)
class Making:
    """What the builds of one model depend on, and the folder where they lie.

    shared: what all of them depend on, under the word that says what changed.
    """

    shelf: Shelf
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model, out: Path, *, calibration: Data = None, data: Data = None, **options: object) -> Making:
        """Take the fingerprints of ``model``, of the samples, of this package and of the libraries that it uses.

        options: the numbers and words that builds depend on; one that is None or 0 is as good as not given.
        """
        beside = folder_of(model)
        example = fingerprint.of_arrays(model.example) if model.example else None
        return cls(
            Shelf(out),
            {
                "model": [model.digest, model.origin.sha256, model.name, Path(_uri(model)).name, example],
                "calibration": fingerprint.of_data(calibration),
                "data": fingerprint.of_data(data),
                "tokenizer": [fingerprint.of_files(beside / name) for name in ("tokenizer.json", "config.json")],
                "polycast": fingerprint.of_package(),
                "libraries": fingerprint.versions(),
                **{name: value for name, value in options.items() if value},
            },
        )

    def facts(
        self, target: Target, recipes: Sequence[Recipe], chosen_by: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Give all that one build depends on; recipes: what it may be made by. chosen_by: of ``choosing``."""
        passes = [one for recipe in recipes for one in recipe.pipeline.passes]
        return {
            **self.shared,
            "target": str(target),
            "features": sorted(target.features),
            "tools": dict(target.made_with()),
            "recipe": [[recipe.name, str(recipe.pipeline), recipe.promise.asked()] for recipe in recipes],
            "plugins": fingerprint.of_others([target, *passes]),
            **(chosen_by or {}),
        }

    def kept(self, name: str, target: Target, facts: Mapping[str, Any]) -> Build | None:
        """Give the build ``name`` where it lies whole, and making it again would give the same.

        One that could not be run where it was made, and can be run now, is made again: that is what it lacks.
        """
        record = self.shelf.record(name)
        if record is None or not record.fits(facts) or (build := self.shelf.build(name, record)) is None:
            return None
        return None if build.manifest["evidence"] == "not run" and target.probe().run.yes else build

    def changed(self, name: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Say what the build ``name`` was made from and is another now; nothing where it is not known."""
        record = self.shelf.record(name)
        return tuple(record.changed(facts)) if record else ()

    def keep(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write down what the build ``name``, which lies in its folder now, was made from."""
        self.shelf.keep(name, Record(facts))


def choosing(target: Target, rivals: Sequence[Target], budget: Budget, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Give what the choice among builds depends on: who competes, what for, and the machine that times them."""
    return {
        "rivals": [[str(rival), sorted(rival.features), dict(rival.made_with())] for rival in rivals],
        "budget": repr(budget),
        "metrics": [[metric.name, fingerprint.of_others([getattr(metric, "function", metric)])] for metric in metrics],
        "machine": machine(target),
    }


def machine(target: Target) -> list[Any]:
    """Name the hardware, and how much of it may be used."""
    return [target.probe().hardware, os.cpu_count(), os.environ.get("POLYCAST_THREADS")]


def folder_of(model: Model) -> Path:
    """Give the folder that ``model`` came from: where a text's tokenizer is looked for."""
    came_from = Path(_uri(model))
    return came_from if came_from.is_dir() else came_from.parent


def _uri(model: Model) -> str:
    return model.origin.uri.removeprefix("hf:").partition("?")[0]
