"""What benchmarks/peers.py makes and opens: one function for each way from a model to something that runs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import subjects

Run = Callable[[subjects.Feeds], list[np.ndarray]]

#: OpenVINO on one thread, for latency, as onnxruntime is measured.
_OPENVINO = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}

#: As many calibration rows as NNCF and onnxruntime are given.
_ROWS = 100


def peers() -> list[str]:
    """Name the peers that are installed here."""
    there = ["ort int8 dynamic", "ort int8 static"]
    if importlib.util.find_spec("nncf"):
        there.append("nncf → ort int8")
    if importlib.util.find_spec("openvino"):
        there.append("openvino fp32")
        if importlib.util.find_spec("nncf"):
            there.append("nncf → openvino int8")
    return there


def make(name: str, model: str, calibration: str, data: str, metric: str, folder: str, max_drop: str) -> dict[str, Any]:
    """Make the build ``name`` of ``model`` in ``folder``. data, metric: what tells a loss, or "".

    Returns: ``kind`` and ``path`` for ``opener``, ``bytes`` on disk, ``seconds`` it took, and sometimes a ``note``.
    """
    rows = list(_feeds(Path(calibration)))
    started = perf_counter()
    if name == "onnxruntime fp32":
        made = {"kind": "onnx", "path": model}
    elif name.startswith("polycast "):
        budget = {"max_drop": max_drop, "data": data or None, "metrics": [metric] if metric else []}
        precision = name.removeprefix("polycast ")
        made = _polycast(precision, model, calibration if rows else None, folder, budget if precision == "auto" else {})
    else:
        makers = {
            "ort int8 dynamic": _ort_dynamic,
            "ort int8 static": _ort_static,
            "nncf → ort int8": _nncf_ort,
            "openvino fp32": _openvino,
            "nncf → openvino int8": _nncf_openvino,
        }
        if "dynamic" not in name and "fp32" not in name and not rows:
            raise SystemExit("no calibration rows")
        made = makers[name](model, rows, Path(folder))
    made["seconds"] = round(perf_counter() - started, 1)
    if "bytes" not in made:
        files = [Path(made["path"]), Path(made["path"]).with_suffix(".bin")]
        made["bytes"] = sum(file.stat().st_size for file in files if file.is_file())
    return made


def opener(made: Mapping[str, Any]) -> Run:
    """Open what ``make`` made, as its user would run it: on one thread, in a process that does nothing else."""
    if made["kind"] == "build":
        from polycast import open_build

        session = open_build(made["path"]).open(own_process=True)
        return lambda feeds: session.run(feeds)
    if made["kind"] == "onnx":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        plain = ort.InferenceSession(made["path"], options, providers=["CPUExecutionProvider"])
        return lambda feeds: plain.run(None, feeds)
    if made["kind"] == "tflite":
        return _tflite(made["path"])
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(made["path"]), "CPU", _OPENVINO | made.get("settings", {}))

    def run(feeds: subjects.Feeds) -> list[np.ndarray]:
        found = compiled(feeds)
        return [found[output] for output in compiled.outputs]

    return run


def _tflite(path: str) -> Run:
    """Open a file with one int8 input. What ran last is not quantized again: a camera gives such bytes by itself."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    [port] = interpreter.get_input_details()
    scale, zero = port["quantization"]
    last: list[Any] = [None, None]

    def run(feeds: subjects.Feeds) -> list[np.ndarray]:
        [x] = feeds.values()
        if last[0] is not x:
            last[:] = x, np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(port["index"], last[1])
        interpreter.invoke()
        found = []
        for output in interpreter.get_output_details():
            scale_out, zero_out = output["quantization"]
            codes = interpreter.get_tensor(output["index"])
            found.append((codes.astype(np.float32) - zero_out) * np.float32(scale_out))
        return found

    return run


def other_calibration(subject: str, zoo: Path, folder: Path, rows: int = 64) -> None:
    """Write calibration rows for a subject for which the scorer has none: for MiniLM, lines of another text."""
    if subject != "minilm":
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(zoo / "minilm" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    text = (zoo / "text" / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in text if len(line) > 60][::5][:rows]
    for number, line in enumerate(lines):
        ids = np.array([tokenizer.encode(line).ids])
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        np.savez(folder / f"{number:05d}.npz", **feeds)


def first_line(error: Exception) -> str:
    """Give an error's type and first line, with files named without the folders that they were in."""
    line = (str(error).strip().splitlines() or ["?"])[0]
    return re.sub(r"(?<!\S)/\S*/(?=\S)", "", f"{type(error).__name__}: {line}")[:200]


def _feeds(folder: Path) -> Iterator[subjects.Feeds]:
    for file in sorted(folder.glob("*.npz"))[:_ROWS]:
        with np.load(file) as arrays:
            yield {name: arrays[name] for name in arrays.files}


def _polycast(
    precision: str, model: str, calibration: str | None, folder: str, budget: Mapping[str, Any]
) -> dict[str, Any]:
    import polycast

    [build] = polycast.compile(model, "cpu", precision, calibration=calibration, out=folder, **budget)
    note = build.manifest["auto"]["chosen"] if precision == "auto" else ""
    return {"kind": "build", "path": str(build.path), "bytes": build.bytes, "note": note}


def _ort_dynamic(model: str, rows: list[subjects.Feeds], folder: Path) -> dict[str, Any]:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, folder / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True)
    return {"kind": "onnx", "path": str(folder / "dynamic.onnx")}


def _ort_static(model: str, rows: list[subjects.Feeds], folder: Path) -> dict[str, Any]:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(rows)

        def get_next(self) -> subjects.Feeds | None:
            return next(self.left, None)

    def quantize(per_channel: bool) -> None:
        quantize_static(
            folder / "prepared.onnx",
            folder / "static.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    onnx.save(_per_channel_opset(model), folder / "newer.onnx")
    try:
        quant_pre_process(folder / "newer.onnx", folder / "prepared.onnx")
    except Exception:  # it raises bare Exceptions where it cannot follow a shape, and goes on without on request
        quant_pre_process(folder / "newer.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    try:
        quantize(per_channel=True)
    except ValueError:  # of its own, where the bias of a product has a scale for each channel
        quantize(per_channel=False)
    return {"kind": "onnx", "path": str(folder / "static.onnx")}


def _per_channel_opset(model: str) -> onnx.ModelProto:
    """Read a model, at an opset in which a DequantizeLinear has an axis."""
    from onnx import version_converter

    proto = onnx.load(model)
    if proto.opset_import[0].version < 13:
        proto = version_converter.convert_version(proto, 17)
    proto.ir_version = max(proto.ir_version, 8)
    return proto


def _nncf_ort(model: str, rows: list[subjects.Feeds], folder: Path) -> dict[str, Any]:
    import nncf

    def quantize(fast: bool) -> onnx.ModelProto:
        return nncf.quantize(
            _per_channel_opset(model),
            nncf.Dataset(rows),
            subset_size=len(rows),
            fast_bias_correction=fast,
            model_type=nncf.ModelType.TRANSFORMER if _reads_tokens(rows) else None,
        )

    try:
        quantized = quantize(fast=False)
    except Exception:  # the slow one loses nodes of some graphs
        quantized = quantize(fast=True)
    onnx.save(quantized, folder / "nncf.onnx")
    return {"kind": "onnx", "path": str(folder / "nncf.onnx")}


def _reads_tokens(rows: list[subjects.Feeds]) -> bool:
    """Whether rows of integers go in, for which NNCF has a scheme of its own."""
    return any(array.dtype.kind == "i" and array.ndim == 2 for array in rows[0].values())


def _openvino(model: str, rows: list[subjects.Feeds], folder: Path) -> dict[str, Any]:
    return {"kind": "openvino", "path": model, "settings": {"INFERENCE_PRECISION_HINT": "f32"}}


def _nncf_openvino(model: str, rows: list[subjects.Feeds], folder: Path) -> dict[str, Any]:
    import nncf
    import openvino

    quantized = nncf.quantize(
        openvino.Core().read_model(model),
        nncf.Dataset(rows),
        subset_size=len(rows),
        fast_bias_correction=False,
        model_type=nncf.ModelType.TRANSFORMER if _reads_tokens(rows) else None,
    )
    openvino.save_model(quantized, folder / "nncf.xml")
    return {"kind": "openvino", "path": str(folder / "nncf.xml")}
