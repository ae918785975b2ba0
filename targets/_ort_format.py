"""onnxruntime's own format, model.ort, and the list of operators for a build of onnxruntime that has no others.

Source: onnxruntime, core/flatbuffers/schema/ort.fbs; tools/python/util/convert_onnx_models_to_ort.py, whose "Fixed"
style this is: graph optimizations are done beforehand, and none on the device.
"""

from __future__ import annotations

import logging
import struct
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polycast.model import Model

from . import _kernels
from . import _onnxruntime as ort

#: Convolutions in blocks of channels are laid out for the CPU that converts.
_OF_ONE_CPU = ("NchwcTransformer",)

#: What a float model's int8 convolutions are best done in on ARM, whose dot products take two signed operands.
_ENTRIES = {"session.save_model_format": "ORT", "session.qdqisint8allowed": "1"}

_ROOT, _ALIGNED = "<I", 16


def write(model: Model, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write model.ort, required_operators.config and run.py. settings: as for ``_onnxruntime.write``.

    Returns: the runtime facts for the manifest.
    """
    facts = ort.write(model, folder, settings)
    with tempfile.TemporaryDirectory(prefix="polycast-") as work:
        onnx_file, ort_file = Path(work, "model.onnx"), folder / "model.ort"
        ort.declare(model, _kernels.runnable_opset(model)).write(onnx_file)
        _convert(onnx_file, ort_file, settings)
    for path in folder.glob("model.onnx*"):
        path.unlink()
    ort_file.write_bytes(in_order(ort_file.read_bytes()))
    (folder / "required_operators.config").write_text(_operators(ort_file), encoding="utf-8")
    return {**facts, "model": "model.ort", "beside": ["required_operators.config"]}


def _convert(source: Path, target: Path, settings: Mapping[str, Any]) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, settings["graph_optimization_level"])
    for key, value in {**settings.get("session", {}), **_ENTRIES}.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(_OF_ONE_CPU)
    )


def _operators(model: Path) -> str:
    """List domain, opset and operators with their types, as ``build.py --include_ops_by_config`` reads them."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="polycast-") as work:
        config = Path(work, "operators.config")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves the file to the garbage collector
            create_config_from_models([model], config, enable_type_reduction=True)
        lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))  # the comments name this machine's files


def in_order(data: bytes) -> bytes:
    """Give a model.ort with what it says of types in order: onnxruntime writes it in the order of a hash table.

    That part is written last, so that it lies before the model, which refers to nothing in front of itself.
    """
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor  # noqa: F401  # makes the next ones known
    from ort_flatbuffers_py.fbs import InferenceSession

    session = InferenceSession.InferenceSession.GetRootAs(data, 0)
    model = session.Model()._tab
    cut = min(model.Pos, model.Pos - struct.unpack_from("<i", data, model.Pos)[0])
    version = session._tab.Indirect(session._tab.Pos + session._tab.Offset(4))
    front, fields = _front(session.KernelTypeStrResolver())
    front += bytes((cut - len(front)) % _ALIGNED)
    for field, place in zip(fields, (version, model.Pos), strict=True):
        struct.pack_into(_ROOT, front, field, place - cut + len(front) - field)
    return bytes(front) + data[cut:]


def _front(types: Any) -> tuple[bytearray, tuple[int, int]]:
    """Write the root and what ``types`` says. Returns: it, and where it refers to the version and to the model."""
    import flatbuffers
    from ort_flatbuffers_py.fbs import (
        ArgTypeAndIndex,
        InferenceSession,
        KernelTypeStrArgsEntry,
        KernelTypeStrResolver,
        OpIdKernelTypeStrArgsEntry,
    )

    builder = flatbuffers.Builder()

    def vector(offsets: list[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def argument(one: Any) -> int:
        ArgTypeAndIndex.Start(builder)
        ArgTypeAndIndex.AddArgType(builder, one.ArgType())
        ArgTypeAndIndex.AddIndex(builder, one.Index())
        return int(ArgTypeAndIndex.End(builder))

    def of_type(one: Any) -> int:
        arguments = vector([argument(one.Args(i)) for i in range(one.ArgsLength())])
        name = builder.CreateString(one.KernelTypeStr())
        KernelTypeStrArgsEntry.Start(builder)
        KernelTypeStrArgsEntry.AddKernelTypeStr(builder, name)
        KernelTypeStrArgsEntry.AddArgs(builder, arguments)
        return int(KernelTypeStrArgsEntry.End(builder))

    def of_operator(one: Any) -> int:
        listed = [one.KernelTypeStrArgs(i) for i in range(one.KernelTypeStrArgsLength())]
        kinds = vector([of_type(each) for each in sorted(listed, key=lambda each: each.KernelTypeStr())])
        name = builder.CreateString(one.OpId())
        OpIdKernelTypeStrArgsEntry.Start(builder)
        OpIdKernelTypeStrArgsEntry.AddOpId(builder, name)
        OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, kinds)
        return int(OpIdKernelTypeStrArgsEntry.End(builder))

    operators = [types.OpKernelTypeStrArgs(i) for i in range(types.OpKernelTypeStrArgsLength())]
    listed = vector([of_operator(each) for each in sorted(operators, key=lambda each: each.OpId())])
    KernelTypeStrResolver.Start(builder)
    KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, listed)
    resolver = KernelTypeStrResolver.End(builder)
    InferenceSession.Start(builder)
    InferenceSession.AddOrtVersion(builder, resolver)  # a place to write to: what it refers to comes later
    InferenceSession.AddModel(builder, resolver)
    InferenceSession.AddKernelTypeStrResolver(builder, resolver)
    builder.Finish(InferenceSession.End(builder), b"ORTM")
    front = builder.Output()
    root = InferenceSession.InferenceSession.GetRootAs(front, 0)._tab
    return front, (root.Pos + root.Offset(4), root.Pos + root.Offset(6))
