"""Options: what the command line takes that click has no type for, and options that belong together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

#: A size, or one that is not gone over.
_SIZE = re.compile(r"(\.\.)?[1-9]\d*")

#: A file or a folder.
PATH = click.Path(path_type=Path)


class Shape(click.ParamType[tuple[str, tuple[int | str, ...]]]):
    """The name of an input and its sizes: ``input=1,128``; ``input=..8,128`` for a batch of any size up to 8."""

    name = "input=1,128"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int | str, ...]]:
        """See ``click.ParamType``."""
        name, equals, sizes = str(value).rpartition("=")
        spelt = [size.strip() for size in sizes.split(",")] if sizes else []
        if not equals or not name or not all(_SIZE.fullmatch(size) for size in spelt):
            self.fail(f"{value!r} is not NAME=SIZE,SIZE… with sizes of 1 and up, or ..8 for up to 8", param, ctx)
        return name, tuple(size if size.startswith("..") else int(size) for size in spelt)


def of_a_device(command: Callable[..., None]) -> Callable[..., None]:
    """Add what names a device, and how a build is run there."""
    options = (
        click.option(
            "--ssh", "host", default="", metavar="HOST", help="On a device with Linux, as ssh takes its name."
        ),
        click.option("--adb", is_flag=True, help="On a device with Android."),
        click.option("--serial", default="", metavar="S", help="Which one, as adb devices lists it."),
        click.option(
            "--runs", type=click.IntRange(0), default=50, show_default=True, help="Runs there that are timed."
        ),
        click.option("--runner", type=PATH, metavar="F", help="The native runner, compiled for the device."),
        click.option("--lib", "libraries", type=PATH, multiple=True, metavar="F", help="Libraries to lay beside it."),
        click.option("--json", "as_json", is_flag=True, help="Print what the device gave as one JSON object."),
    )
    for option in reversed(options):
        command = option(command)
    return command
