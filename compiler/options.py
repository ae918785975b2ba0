"""Options: what the command line takes that click has no type for."""

from __future__ import annotations

from typing import Any

import click


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """The name of an input and its sizes: ``input=1,128``."""

    name = "input=1,128"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """See ``click.ParamType``."""
        name, equals, sizes = str(value).rpartition("=")
        try:
            dims = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        except ValueError:
            dims = (-1,)
        if not equals or not name or any(dim < 1 for dim in dims):
            self.fail(f"{value!r} is not NAME=SIZE,SIZE… with sizes of 1 and up", param, ctx)
        return name, dims
