"""onnxruntime, as the runtime of several targets: sessions, and what a build for it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polycast.errors import InputError, UnsupportedError
from polycast.model import Model, Signature
from polycast.profiling import ProfiledSession
from polycast.targetbase import Answer

from . import _kernels, _run, _runner
from . import _run_onnxruntime as runner


def available() -> Answer:
    """Say whether onnxruntime can be imported here."""
    try:
        return Answer(True, f"onnxruntime {version('onnxruntime')}")
    except PackageNotFoundError:
        return Answer(False, "onnxruntime is not installed", "pip install onnxruntime")


def write(model: Model, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write model.onnx and what runs it.

    settings: ``graph_optimization_level``, ``session`` entries, and ``own_process`` entries, which hold for a process.
    Returns: the runtime facts for the manifest.
    """
    declare(model, _kernels.runnable_opset(model)).write(folder / "model.onnx")
    _runner.write(folder, runner)
    return {
        "name": "onnxruntime",
        "versions": {"onnxruntime": version("onnxruntime")},
        "model": "model.onnx",
        "needs": "pip install numpy onnxruntime",
        "how_to_run": ["python run.py --input x.npz", "python run.py --verify"],
        **settings,
    }


def declare(model: Model, opset: int) -> Model:
    """Give ``model`` as one of another opset, at which every node means the same."""
    if opset == model.opset:
        return model
    graph = model.draft()
    graph.opset_imports[""] = opset
    return replace(model, graph=graph)


def open_build(folder: Path, signature: Signature, *, own_process: bool = False) -> ProfiledSession:
    """Open the build in ``folder`` as its own run.py does; all of it only where the process is its own."""
    start = partial(runner.open_session, folder, _run.threads(), own_process=own_process)
    try:
        session = start()
    except Exception as error:
        line = _first_line(error).replace(f"{folder}/", "")
        if "NOT_IMPLEMENTED" in line:  # the op has a kernel, but not for the types that this model uses
            hint = "Its kernels take other types than this model's: most take float32, so export it in that"
            raise UnsupportedError(f"onnxruntime cannot run this build: {line}", hint) from error
        raise InputError(f"onnxruntime cannot open the build: {line}", _runner.DAMAGED) from error
    return ProfiledSession(
        lambda feeds: session.run(None, feeds), signature, reopen=lambda adjust: start(adjust=adjust)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
