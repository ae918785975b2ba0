"""The files that a build for the browser ships as they are: runner, page, service worker."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polycast.targetbase import Answer

#: What it takes to write these files.
ALWAYS = Answer(True, "nothing else is needed")

#: What shows a build, whatever its runner is.
PAGE = ("index.html", "style.css", "page.mjs", "golden.mjs", "sw.js")

_FOLDER = Path(__file__).parent / "site"


def copy(names: tuple[str, ...], folder: Path) -> None:
    """Copy files of the site into ``folder``; one from a folder below lands beside the others."""
    for name in names:
        (folder / Path(name).name).write_bytes((_FOLDER / name).read_bytes())


def write(folder: Path) -> Mapping[str, Any]:
    """Write runner and page into ``folder``. Returns: the runtime facts for the manifest."""
    copy(("runner.mjs", "files.mjs", *PAGE), folder)
    return {
        "name": "runner",
        "versions": {"apache-tvm": version("apache-tvm")},
        "needs": "",
        "how_to_run": ["polycast serve .   # or any server of static files", "python -m http.server"],
    }
