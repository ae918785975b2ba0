"""onnxruntime-web as the runtime of a build: a model, a page, and its own files from npm."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession
from polycast.targets import _kernels

from . import _probe, _site, _web_kernels

#: The release whose files are known to give right results; another one may be faster, or wrong.
VERSION = "1.30.0"

_INSTALL = f"npm install onnxruntime-web@{VERSION}"

_CLEAN = "clean | fold | clean"
_FLOAT = f"{_CLEAN} | fuse_conv_bn | fuse_gelu | fuse_layer_norm | fuse_gemm | clean"
_EVERY = "tied=True, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"
#: Images are far from 0 on average, and so is then what rounded weights miss.
_MEND = "correct_bias | clean"

RECIPES = {
    "fp32": _FLOAT,
    "fp16": f"{_FLOAT} | fp16 | clean",
    "int8-weights": f"{_FLOAT} | quantize_weights(bits=8, block=0, {_EVERY}) | quantize_embeddings | {_MEND}",
    "int4": f"{_FLOAT} | quantize_weights({_EVERY}) | quantize_embeddings(bits=4, block=32) | {_MEND}",
}

FEATURES = frozenset({"blocked-qdq", "fp16", "gather-nbits", "matmul-nbits"})


def installed() -> Path | None:
    """Give the folder of onnxruntime-web on this machine: POLYCAST_ONNXRUNTIME_WEB, or node_modules right here."""
    named = os.environ.get("POLYCAST_ONNXRUNTIME_WEB")
    folder = Path(named) if named else Path("node_modules", "onnxruntime-web")
    return folder.resolve() if (folder / "dist").is_dir() else None


def can_run() -> Answer:
    """Say whether builds run here."""
    answer = _probe.browser()[0]
    if answer.yes and installed() is None:
        return Answer(False, "onnxruntime-web is not here", _INSTALL)
    return answer


def write(model: Model, folder: Path) -> Mapping[str, Any]:
    """Write model.onnx and a page into ``folder``. Returns: the runtime facts for the manifest."""
    _web_kernels.declared(model).write(folder / "model.onnx")
    _site.copy(("onnxruntime/runner.mjs", *_site.PAGE), folder)
    return {
        "name": "onnxruntime-web",
        "versions": {"onnxruntime-web": VERSION},
        "model": "model.onnx",
        "needs": _INSTALL,
        "how_to_run": ["polycast serve .   # ?fallback=wasm behind its address: on the CPU where no GPU takes it"],
    }


def problems(model: Model) -> tuple[str, ...]:
    """Name every op that onnxruntime has no kernel for."""
    return _kernels.missing(model)


def fallback(model: Model) -> Mapping[str, str]:
    """Give the nodes that WebAssembly runs on the CPU: name -> why."""
    return _web_kernels.fallback(model)


def open_build(folder: Path, signature: Signature) -> CheckedSession:
    """Open the build in ``folder`` in the browser, with the files of onnxruntime-web beside it."""
    from ._session import Page

    web = installed()
    assert web is not None, can_run().reason
    beside = tempfile.TemporaryDirectory(prefix="polycast-", ignore_cleanup_errors=True)
    for path in folder.iterdir():
        (Path(beside.name) / path.name).symlink_to(path.resolve())
    (Path(beside.name) / "node_modules").mkdir()
    (Path(beside.name) / "node_modules" / "onnxruntime-web").symlink_to(web)
    page = Page(Path(beside.name), [port.dtype for port in signature.outputs], fallback="wasm")
    weakref.finalize(page, beside.cleanup)
    return CheckedSession(page.run, signature, page.adapter.evidence)
