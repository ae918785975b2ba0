#!/usr/bin/env python3
"""Quantize a float16 decoder of 3 billion weights to 4 bits and write the build; print peak memory and MB/s of weights.

The decoder has the dimensions of Llama 3.2 3B, a vocabulary of 32,000 that is not tied, and random weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx_ir as ir
import subjects

#: The peak must stay under this many bytes of resident memory.
MOST = 2 << 30

WIDTH, INNER, LAYERS, HEADS, KEY_HEADS, VOCABULARY = 3072, 8192, 28, 24, 8, 32_000

#: Random numbers that are made once; each weight is those of them that follow a random one, again and again.
POOL = (1 << 24) - 3

HALF = ir.DataType.FLOAT16


class Decoder:
    """Builds the graph and, beside it, the file of its weights: one tensor at a time, so that it costs no memory."""

    def __init__(self, path: Path, layers: int) -> None:
        self.path, self.layers = path, layers
        self.data = path.with_name(f"{path.name}.data")
        self.rng = np.random.default_rng(0)
        self.pool = self.rng.standard_normal(POOL, np.float32)
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def weight(self, name: str, *shape: int) -> ir.Value:
        """Write a random weight; its products with normal rows are normal again."""
        count = shape[0] * shape[1]
        piece = (np.roll(self.pool, self.rng.integers(POOL)) * shape[0] ** -0.5).astype(np.float16)
        with self.data.open("ab") as file:
            offset = file.tell()
            for start in range(0, count, POOL):
                piece[: count - start].tofile(file)
        tensor = ir.ExternalTensor(
            self.data.name, offset, 2 * count, HALF, shape=ir.Shape(shape), name=name, base_dir=self.path.parent
        )
        return self._constant(tensor)

    def ones(self, name: str, *shape: int) -> ir.Value:
        """Make the scale of a norm."""
        return self._constant(ir.tensor(np.ones(shape, np.float16), name=name))

    def _constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.constants.append(value)
        return value

    def op(self, op: str, *inputs: ir.Value, name: str, **attributes: float) -> ir.Value:
        """Add a node with one output."""
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def layer(self, x: ir.Value, at: str) -> ir.Value:
        """Add one layer: grouped-query attention, then a gated feed-forward."""
        keys = WIDTH // HEADS * KEY_HEADS
        h = self.op("RMSNormalization", x, self.ones(f"{at}/norm1.weight", WIDTH), name=f"{at}/norm1")
        q, k, v = (
            self.op("MatMul", h, self.weight(f"{at}/{each}.weight", WIDTH, size), name=f"{at}/{each}")
            for each, size in (("q", WIDTH), ("k", keys), ("v", keys))
        )
        heads = {"q_num_heads": HEADS, "kv_num_heads": KEY_HEADS, "is_causal": 1}
        a = self.op("Attention", q, k, v, name=f"{at}/attention", **heads)
        o = self.op("MatMul", a, self.weight(f"{at}/o.weight", WIDTH, WIDTH), name=f"{at}/o")
        x = self.op("Add", x, o, name=f"{at}/add1")
        h = self.op("RMSNormalization", x, self.ones(f"{at}/norm2.weight", WIDTH), name=f"{at}/norm2")
        gate, up = (
            self.op("MatMul", h, self.weight(f"{at}/{each}.weight", WIDTH, INNER), name=f"{at}/{each}")
            for each in ("gate", "up")
        )
        gate = self.op("Mul", gate, self.op("Sigmoid", gate, name=f"{at}/sigmoid"), name=f"{at}/silu")
        h = self.op("Mul", gate, up, name=f"{at}/gated")
        down = self.op("MatMul", h, self.weight(f"{at}/down.weight", INNER, WIDTH), name=f"{at}/down")
        return self.op("Add", x, down, name=f"{at}/add2")

    def write(self) -> int:
        """Write the model. Returns: the bytes of its weights."""
        ids = ir.val("ids", ir.DataType.INT64, ["batch", "length"])
        x = self.op("Gather", self.weight("embedding", VOCABULARY, WIDTH), ids, name="embed")
        for number in range(self.layers):
            x = self.layer(x, f"layer{number}")
        x = self.op("RMSNormalization", x, self.ones("norm.weight", WIDTH), name="norm")
        y = self.op("MatMul", x, self.weight("head.weight", WIDTH, VOCABULARY), name="head")
        y.type, y.shape = ir.TensorType(HALF), ir.Shape(["batch", "length", VOCABULARY])
        graph = ir.Graph(
            [ids], [y], nodes=self.nodes, initializers=self.constants, opset_imports={"": 23}, name="decoder"
        )
        ir.save(ir.Model(graph, ir_version=11), self.path)
        return self.data.stat().st_size


def line(model: Path, out: Path, precision: str) -> None:
    """Go the line in this process and print what it took as JSON."""
    import polycast
    from polycast.evaluating.footprint import peak
    from polycast.passbase import PassContext
    from polycast.recipe import Recipe
    from polycast.shares import count
    from polycast.targets import find

    target = find("cpu")
    started = perf_counter()
    loaded = polycast.load(model)
    stages = {"load": perf_counter() - started}
    recipe = Recipe.of(target, precision)
    lowered = recipe.pipeline.run(loaded, PassContext(target.features))
    stages |= {step.what: step.seconds for step in lowered.history}
    write = perf_counter()
    target.write(lowered, out)
    stages["write"] = perf_counter() - write
    facts = {
        "peak_bytes": peak(),
        "seconds": perf_counter() - started,
        "stages": stages,
        "sites": {step.what: step.sites for step in lowered.history if step.sites},
        "shares": count(lowered).to_json()["weights"],
    }
    print(json.dumps(facts))


def check(out: Path) -> float:
    """Run the build on a few tokens; it must give numbers. Returns: the seconds that opening it took."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    started = perf_counter()
    session = ort.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])
    seconds = perf_counter() - started
    (logits,) = session.run(None, {"ids": np.arange(8)[None]})
    assert np.isfinite(logits).all() and np.ptp(logits) > 0
    return seconds


def main() -> int:
    """Run the benchmark. Returns: 1 where the peak is over MOST."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--run", action="store_true", help="open the build and run it too; takes several GB of memory")
    parser.add_argument("--folder", type=Path, help="where to put 1.6 times the model (default: a temporary one)")
    parser.add_argument("--json", type=Path, default=subjects.RESULTS / "large_quantize.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polycast-large-", dir=options.folder) as folder:
        needed = 2 * 2 * 110_000_000 * (options.layers + 2)
        if shutil.disk_usage(folder).free < needed:
            parser.error(f"{folder} has no {needed / 1e9:.0f} GB left; give another --folder")
        model, out = Path(folder) / "decoder.onnx", Path(folder) / "build"
        out.mkdir()
        size = Decoder(model, options.layers).write()
        command = [sys.executable, __file__, "--child", model, out, options.precision]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        if options.run:
            found["open_seconds"] = check(out)
        written = sum(path.stat().st_size for path in out.iterdir())
    rate = size / found["seconds"] / 1e6
    head = ["weights", "written", "peak memory", "seconds", "MB/s", "longest stage"]
    sizes = [f"{value / 1e9:.2f} GB" for value in (size, written, found["peak_bytes"])]
    longest = max(found["stages"], key=found["stages"].get)
    cells = [*sizes, f"{found['seconds']:.1f}", f"{rate:.0f}", f"{longest}: {found['stages'][longest]:.1f} s"]
    print(subjects.table(head, [cells]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": subjects.machine(), "weight_bytes": size, "written_bytes": written, "mb_per_s": rate} | found
    options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return found["peak_bytes"] > MOST


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        line(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        raise SystemExit(main())
