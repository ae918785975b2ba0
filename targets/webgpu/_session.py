"""A build that runs in a browser, as a session in Python: arrays go there and back as base64."""

from __future__ import annotations

import base64
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polycast.serve import served
from polycast.targetbase import Evidence

from . import _chromium

_OPEN = """async (options) => {
  const { load } = await import(new URL("runner.mjs", location.href).href);
  window.model = await load(new URL("./", location.href), options);
  return window.model.adapter;
}"""

_CALL = """async (feeds) => {
  const arrays = { float32: Float32Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array,
    uint64: BigUint64Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array, float16: globalThis.Float16Array };
  const given = {};
  for (const [name, dtype, shape, text] of feeds) {
    given[name] = new arrays[dtype](await (await fetch("data:;base64," + text)).arrayBuffer());
    given[name].shape = shape;
  }
  const results = await window.model.call(given);
  return Promise.all(results.map(({ data, shape }) => new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve([reader.result.slice(reader.result.indexOf(",") + 1), shape]);
    reader.readAsDataURL(new Blob([data]));
  })));
}"""


@dataclass(frozen=True)
class Adapter:
    """What a page found: its name, and whether it is software."""

    name: str
    software: bool

    @property
    def evidence(self) -> Evidence:
        """What its figures count for."""
        return "emulated" if self.software else "device"


class Page:
    """The build in ``folder``, open in a tab of the browser that this process has."""

    def __init__(self, folder: Path, dtypes: list[str], **options: object) -> None:
        """Open it. dtypes: of the outputs. options: for the ``load`` of its runner.mjs."""
        self.dtypes = dtypes
        stack = ExitStack()
        try:
            url = stack.enter_context(served(folder))
            self.tab = _chromium.Tab(url + "manifest.json")
            stack.callback(self.tab.close)
            found = self.tab.call(_OPEN, options)
        except BaseException:
            stack.close()
            raise
        self.adapter = Adapter(found["name"], found["software"])
        self.close = weakref.finalize(self, stack.close)

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; all rows of the inputs in one round trip."""
        given = [
            [name, array.dtype.name, list(array.shape), base64.b64encode(array.tobytes()).decode()]
            for name, array in feeds.items()
        ]
        return [
            np.frombuffer(base64.b64decode(text), dtype).reshape(shape)
            for (text, shape), dtype in zip(self.tab.call(_CALL, given), self.dtypes, strict=True)
        ]
