#!/usr/bin/env python3
"""Load a model of 2 GB, send it through ``clean | fold`` and write it; print the peak memory beside its size."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import subjects
from onnx import TensorProto, helper

#: The peak must stay under this many times the bytes of the model.
MOST = 1.5

WIDTH = 4096


def write_model(path: Path, size: int) -> int:
    """Write layers of MatMul, Add, Relu with ``size`` bytes of weights in all, and something to clean and to fold.

    One layer at a time, so that making the model costs no memory. Returns: the bytes of its weights.
    """
    layers = max(1, -(-size // (4 * WIDTH * WIDTH)))
    nodes, tensors, value = [], [], "x"
    rng = np.random.default_rng(0)
    with (path.parent / f"{path.name}.data").open("wb") as data:
        for layer in range(layers):
            start = data.tell()
            data.write((rng.standard_normal((WIDTH, WIDTH), np.float32) / 64).tobytes())
            tensors.append(_external(f"w{layer}", [WIDTH, WIDTH], f"{path.name}.data", start, data.tell() - start))
            tensors.append(helper.make_tensor(f"b{layer}", TensorProto.FLOAT, [], [0.5]))
            nodes += [
                helper.make_node("Identity", [value], [f"i{layer}"]),
                helper.make_node("MatMul", [f"i{layer}", f"w{layer}"], [f"m{layer}"]),
                helper.make_node("Add", [f"b{layer}", f"b{layer}"], [f"c{layer}"]),
                helper.make_node("Add", [f"m{layer}", f"c{layer}"], [f"a{layer}"]),
                helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"]),
            ]
            value = f"r{layer}"
        total = data.tell()
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path)
    return total


def _external(name: str, dims: list[int], file: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def line(model: Path, out: Path) -> None:
    """Go the line in this process and print what it took as JSON."""
    import polycast
    from polycast.evaluating.footprint import peak

    started = perf_counter()
    loaded = polycast.load(model)
    passed = polycast.Pipeline.parse("clean | fold").run(loaded)
    passed.write(out)
    seconds = perf_counter() - started
    sites = [step.sites for step in passed.history]
    print(json.dumps({"peak_bytes": peak(), "seconds": seconds, "sites": sites}))


def main() -> int:
    """Run the benchmark. Returns: 1 where the peak is over MOST."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument(
        "--folder", type=Path, help="where to put twice the size of the model (default: a temporary one)"
    )
    parser.add_argument("--json", type=Path, default=subjects.RESULTS / "large_model.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polycast-large-", dir=options.folder) as folder:
        model, out = Path(folder) / "large.onnx", Path(folder) / "out.onnx"
        size = write_model(model, int(options.gigabytes * 1e9))
        command = [sys.executable, __file__, "--child", model, out]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        written = sum(path.stat().st_size for path in Path(folder).glob("out.onnx*"))
    ratio = found["peak_bytes"] / size
    head = ["weights", "written", "peak memory", "peak / weights", "seconds", "sites of clean, fold"]
    sizes = [f"{value / 1e9:.2f} GB" for value in (size, written, found["peak_bytes"])]
    cells = [*sizes, f"{ratio:.2f}", f"{found['seconds']:.1f}", ", ".join(map(str, found["sites"]))]
    print(subjects.table(head, [cells]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": subjects.machine(), "weight_bytes": size, "written_bytes": written, "peak_ratio": ratio} | found
    options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return ratio > MOST


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        line(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        raise SystemExit(main())
