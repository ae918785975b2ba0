#!/usr/bin/env python3
"""Ask onnxruntime-web itself which ops its WebGPU provider takes: the table that ``--max-cpu-share`` goes by.

For every op, version and type that ONNX's own node tests have an example of, a model of that one node is opened in a
browser, and the session says where it puts the node. Writes targets/webgpu/onnxruntime_web.json: op -> version ->
types. Run it again for another release of onnxruntime-web.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from polycast.serve import served
from polycast.targets.webgpu import _chromium
from polycast.targets.webgpu._web_kernels import TABLE, governing

#: Versions of ONNX that builds are declared at.
OPSETS = range(17, 25)

#: Types that are asked about, where the op allows them.
TYPES = ("float", "float16", "int32", "uint32", "int64", "bool", "uint8", "int8", "uint4", "int4")

#: So many models are opened in one call.
BATCH = 20

OPEN = """async () => {
  globalThis.said = [];
  for (const kind of ["log", "warn", "error", "info", "debug"]) console[kind] = (...all) => said.push(all.join(" "));
  const dist = new URL("node_modules/onnxruntime-web/dist/", location.href);
  globalThis.ort = await import(new URL("ort.webgpu.bundle.min.mjs", dist).href);
  ort.env.wasm.wasmPaths = dist.href;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "verbose";
}"""

ASK = """async (models) => {
  const found = [];
  for (const text of models) {
    said.length = 0;
    const model = new Uint8Array(await (await fetch("data:;base64," + text)).arrayBuffer());
    const options = { executionProviders: ["webgpu"], logSeverityLevel: 0, logVerbosityLevel: 1,
      graphOptimizationLevel: "disabled" };
    try {
      await (await ort.InferenceSession.create(model, options)).release();
    } catch (error) {
      said.push(String(error));
    }
    found.push(said.some((line) => line.includes("placed on [WebGpuExecutionProvider]")));
  }
  return found;
}"""


@dataclass(frozen=True)
class Question:
    """One node of one type: ``model`` serialized."""

    op: str
    version: int
    kind: str
    model: bytes


def questions() -> Iterator[Question]:
    """Make a model for every op, version and type."""
    asked = set()
    for example in examples():
        [node] = example.graph.node
        for opset in OPSETS:
            try:
                schema = onnx.defs.get_schema(node.op_type, opset, "")
            except onnx.defs.SchemaError:
                continue
            for kind in TYPES:
                key = (node.op_type, schema.since_version, kind)
                if key not in asked and (model := retyped(example, schema, opset, kind)) is not None:
                    asked.add(key)
                    yield Question(*key, model.SerializeToString())
    for width in ("float", "float16"):
        for op, model in contributed(width).items():
            yield Question(op, 1, width, model.SerializeToString())


def examples() -> list[onnx.ModelProto]:
    """Give ONNX's node tests that are one node without a graph inside."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return [case.model for case in cases if case.model is not None and _is_plain(case.model)]


def _is_plain(model: onnx.ModelProto) -> bool:
    nodes = model.graph.node
    return (
        len(nodes) == 1 and not nodes[0].domain and all(a.type != onnx.AttributeProto.GRAPH for a in nodes[0].attribute)
    )


def retyped(example: onnx.ModelProto, schema: onnx.defs.OpSchema, opset: int, kind: str) -> onnx.ModelProto | None:
    """Give ``example`` at ``opset``, what has the type that decides being ``kind``; None where that is no model."""
    model, [node] = onnx.ModelProto(), example.graph.node
    model.CopyFrom(example)
    letter = governing(schema)
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == letter), [])
    if f"tensor({kind})" not in allowed:
        return None
    typed = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for at, name in enumerate(names):
            parameter = parameters[min(at, len(parameters) - 1)] if parameters else None
            if name in typed and parameter is not None and parameter.type_str == letter:
                if not typed[name].type.HasField("tensor_type"):
                    return None
                typed[name].type.tensor_type.elem_type = getattr(TensorProto, kind.upper())
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = 10
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return model


def contributed(width: str) -> dict[str, onnx.ModelProto]:
    """Give models of the ops of com.microsoft that recipes for the browser make."""
    kind = getattr(TensorProto, width.upper())
    value = helper.make_tensor_value_info
    product = helper.make_node(
        "MatMulNBits", ["a", "b", "s"], ["y"], domain="com.microsoft", K=32, N=8, bits=4, block_size=32
    )
    lookup = helper.make_node(
        "GatherBlockQuantized", ["t", "i", "s"], ["y"], domain="com.microsoft", block_size=32, bits=4, quantize_axis=1
    )
    scales = value("s", kind, [8, 1])
    graphs = {
        "com.microsoft.MatMulNBits": helper.make_graph(
            [product],
            "g",
            [value("a", kind, [1, 32]), value("b", TensorProto.UINT8, [8, 1, 16]), scales],
            [value("y", kind, [1, 8])],
        ),
        "com.microsoft.GatherBlockQuantized": helper.make_graph(
            [lookup],
            "g",
            [value("t", TensorProto.UINT8, [8, 16]), value("i", TensorProto.INT64, [2]), scales],
            [value("y", kind, [2, 32])],
        ),
    }
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return {op: helper.make_model(graph, opset_imports=sets, ir_version=10) for op, graph in graphs.items()}


def main() -> None:
    """Ask, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("node_modules", type=Path, help="the folder with onnxruntime-web in it")
    options = parser.parse_args()
    asked = list(questions())
    taken: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "node_modules").symlink_to(options.node_modules.resolve())
        (Path(folder) / "manifest.json").write_text("{}")
        with served(Path(folder)) as url:
            tab = _chromium.Tab(url + "manifest.json")
            tab.call(OPEN)
            for start in range(0, len(asked), BATCH):
                batch = asked[start : start + BATCH]
                answers = tab.call(ASK, [base64.b64encode(each.model).decode() for each in batch])
                for each, is_taken in zip(batch, answers, strict=True):
                    versions = taken.setdefault(each.op, {})
                    versions.setdefault(str(each.version), []).extend([each.kind] * is_taken)
                print(f"{start + len(batch)} of {len(asked)}", flush=True)
            tab.close()
    table = {op: {at: " ".join(sorted(kinds)) for at, kinds in each.items() if kinds} for op, each in taken.items()}
    lines = [f"  {json.dumps(op)}: {json.dumps(each)}" for op, each in sorted(table.items()) if each]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(lines)} of {len(taken)} ops have kernels")


if __name__ == "__main__":
    main()
