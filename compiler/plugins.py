"""Finding passes and targets: one class a file inside the package, and entry points from outside it."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

from .errors import RecipeError

T = TypeVar("T")


def discover(package: ModuleType, base: type[T], group: str) -> dict[str, type[T]]:
    """Find every concrete subclass of ``base`` in ``package`` (modules that begin with "_" aside) and under ``group``.

    Returns: class by its file-style name, sorted; a class's ``name`` says what that is.
    Raises: RecipeError when an installed entry point cannot be imported or is no such class.
    """
    found: dict[str, type[T]] = {}
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        for thing in vars(importlib.import_module(info.name)).values():
            if _is_concrete(thing, base) and thing.__module__ == info.name:
                found[_name(thing)] = thing
    for point in entry_points(group=group):
        try:
            thing = point.load()
        except Exception as error:
            raise RecipeError(
                f"entry point {point.name!r} of group {group!r} cannot be loaded: {error}",
                f"Mend or uninstall {point.dist.name if point.dist else point.value}",
            ) from error
        if not _is_concrete(thing, base):
            raise RecipeError(f"entry point {point.name!r} of group {group!r} is no {base.__name__}")
        found[_name(thing)] = thing
    return dict(sorted(found.items()))


def _is_concrete(thing: object, base: type[T]) -> bool:
    return isinstance(thing, type) and issubclass(thing, base) and not getattr(thing, "__abstractmethods__", None)


def _name(thing: type) -> str:
    name = thing.name  # type: ignore[attr-defined]  # a ClassVar of Target, a classmethod of Pass
    return str(name() if callable(name) else name)
