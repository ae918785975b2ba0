"""What the browser of this machine runs WebGPU on."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from polycast.errors import PolycastError
from polycast.serve import served
from polycast.targetbase import Answer, Evidence

from . import _chromium

_ASK = """async () => {
  const adapter = await navigator.gpu?.requestAdapter();
  const { vendor, architecture, description } = adapter?.info ?? {};
  return adapter && [vendor, architecture, description].filter(Boolean).join(" ");
}"""

#: Adapters that compute on the CPU.
_SOFTWARE = ("swiftshader", "llvmpipe", "lavapipe", "basic render")


@cache
def browser() -> tuple[Answer, Evidence, str]:
    """Start the browser and ask it for an adapter. Returns: whether there is one, its evidence, and its name."""
    if os.name != "posix":
        return Answer(False, "a browser is driven through pipes of POSIX only", "polycast serve BUILD"), "not run", ""
    if _chromium.program() is None:
        return Answer(False, "no Chromium or Chrome is installed", "apt install chromium"), "not run", ""
    try:
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder, served(Path(folder)) as url:
            tab = _chromium.Tab(url)
            try:
                name = tab.call(_ASK)
            finally:
                tab.close()
    except (PolycastError, OSError) as error:
        return Answer(False, f"the browser does not start: {error}", "Run it once by hand"), "not run", ""
    if not name:
        return Answer(False, "the browser has no WebGPU adapter", "Update it and the graphics driver"), "not run", ""
    return Answer(True, f"a browser with WebGPU on {name}"), "emulated" if is_software(name) else "device", name


def is_software(adapter: str) -> bool:
    """Whether the adapter of this name computes on the CPU, so that its times say nothing of a GPU."""
    return any(word in adapter.lower() for word in _SOFTWARE)
