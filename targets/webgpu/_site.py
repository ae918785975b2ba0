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

#: What a browser without WebGPU runs, for those who ask for it.
_NO_GPU = (
    "# No WebGPU? A build of -t webgpu@onnxruntime-web beside this one runs on the CPU: serve the folder of both, and",
    "# open THIS/?fallback=../THAT/ (in an app: load(url, { fallback: '../THAT/' }) of runner.mjs)",
)

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
        "how_to_run": ["polycast serve .   # or any server of static files", "python -m http.server", *_NO_GPU],
    }
