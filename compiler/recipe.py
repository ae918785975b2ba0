"""Recipe: what a precision name or a TOML file stands for: a pipeline, and the promise that it makes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import InputError, RecipeError
from .pipeline import Pipeline
from .promise import Promise
from .targetbase import Target

#: What each precision promises of the weights and MACs of Conv, ConvTranspose, Gemm and MatMul.
PROMISES: Mapping[str, Promise] = {
    "fp32": Promise(),
    "fp16": Promise("fp16", weights=0.9, macs=0.9),
    "fp16-weights": Promise("fp16", weights=0.9),
    "int8": Promise("int8", weights=0.9, macs=0.9),
    "int8-dynamic": Promise("int8", weights=0.9, macs=0.9),
    "int8-weights": Promise("int8", weights=0.9),
    "int4": Promise("int4", weights=0.9),
    "int3": Promise("int3", weights=0.9),
    "int2": Promise("int2", weights=0.9),
}


#: What serves the same end where a target does not have a precision, the nearest first.
_NEAR = {
    "bf16": ("fp16", "fp16-weights"),
    "fp16": ("fp16-weights",),
    "fp16-weights": ("fp16",),
    "int8": ("int8-dynamic", "int8-weights"),
    "int8-dynamic": ("int8", "int8-weights"),
    "int8-weights": ("int8-dynamic", "int8"),
    "int4": ("int8-weights", "int8"),
    "int3": ("int4", "int8-weights", "int8"),
    "int2": ("int3", "int4", "int8-weights", "int8"),
}


def instead(target: Target, precision: str) -> str:
    """Name what of ``target`` comes nearest to a precision that it does not have, and which runtime of its has it."""
    having = (replace(target, runtime=each) for each in target.runtimes)
    other = next((f"-t {each} has it, and " for each in having if precision in each.precisions), "")
    near = next(each for each in (*_NEAR.get(precision, ()), *target.precisions) if each in target.precisions)
    return f"{other}-p {near} comes nearest here"


@dataclass(frozen=True)
class Recipe:
    """A pipeline and what it promises. ``name`` names the build's folder: ``<target>-<name>``."""

    name: str
    pipeline: Pipeline
    promise: Promise

    @classmethod
    def of(cls, target: Target, precision: str) -> Recipe:
        """Give the recipe of ``target`` for ``precision``.

        Raises: RecipeError with the nearest spelling.
        """
        text = target.recipe(precision)
        if precision in target.declined or (text is None and precision in _NEAR):
            reason = target.declined.get(precision, f"it has {', '.join(target.precisions)}")
            raise RecipeError(f"{target} has no {precision}: {reason}", instead(target, precision))
        if text is None:
            raise RecipeError.unknown(f"precision for {target}", precision, target.precisions)
        return cls(precision, Pipeline.parse(text), PROMISES.get(precision, Promise()))

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe from TOML: ``passes`` (a list, or one text), and optionally ``name`` and ``promise``.

        Raises: InputError when there is no such file or it is not TOML; RecipeError for what stands in it.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read the recipe {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}") from error
        _only(table, ("name", "passes", "promise"), f"key of the recipe {path.name}")
        if "passes" not in table:
            raise RecipeError(f"the recipe {path.name} has no passes", 'Give it passes = ["clean", "fold"]')
        passes = table["passes"]
        if isinstance(passes, list) and all(isinstance(p, str) for p in passes):
            passes = " | ".join(passes)
        if not isinstance(passes, str):
            raise RecipeError(f"passes of the recipe {path.name} is neither a text nor a list of texts")
        name = table.get("name", path.stem)
        if not isinstance(name, str) or not name or not name.replace("-", "").replace("_", "").isalnum():
            raise RecipeError(f"name of the recipe {path.name} is {name!r}; letters, digits, - and _ name a folder")
        return cls(name, Pipeline.parse(passes), _promise(table.get("promise", {}), path))

    @classmethod
    def parse(cls, passes: str) -> Recipe:
        """Make a recipe of a pipeline's text form. It promises nothing but weights as they are given."""
        return cls("custom", Pipeline.parse(passes), Promise())


def _promise(table: object, path: Path) -> Promise:
    if not isinstance(table, dict):
        raise RecipeError(f"promise of the recipe {path.name} is not a table")
    _only(table, ("precision", "weights", "macs"), "key of promise")
    shares = {key: table.get(key, 0.0) for key in ("weights", "macs")}
    for key, share in shares.items():
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise RecipeError(f"promise.{key} of the recipe {path.name} is {share!r}, not a share from 0 to 1")
    precision = table.get("precision", "")
    if not isinstance(precision, str) or (any(shares.values()) and not precision):
        raise RecipeError(f"promise of the recipe {path.name} names no precision")
    return Promise(precision, float(shares["weights"]), float(shares["macs"]))


def _only(table: Mapping[str, Any], known: tuple[str, ...], kind: str) -> None:
    for key in table:
        if key not in known:
            raise RecipeError.unknown(kind, key, known)
