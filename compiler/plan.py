"""plan(): what the passes of a recipe would do to a model, with nothing written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polycast import targets as target_catalogue

from .load import load
from .model import Model
from .passbase import PassContext
from .pipeline import Progress
from .recipe import Recipe

if TYPE_CHECKING:
    from .load import Source


@dataclass(frozen=True)
class Plan:
    """What ``show`` says of a model: what the passes of a recipe would do to it."""

    model: Model
    lowered: Model


def plan(
    source: Source,
    target: str = "cpu",
    precision: str = "fp32",
    passes: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Run the passes of a recipe on a model and write nothing."""
    kind = target_catalogue.find(target)
    recipe = Recipe.of(kind, precision) if passes is None else Recipe.parse(passes)
    model = load(source)
    return Plan(model, recipe.pipeline.run(model, PassContext(kind.features), progress=progress))
