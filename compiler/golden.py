"""Golden: the sample inputs and reference outputs that go into a build, and how near a build comes to them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .errors import InputError
from .model import Model, graphs
from .reference import Original, open_model, open_original
from .samples import Samples
from .seeded import seeded_feeds
from .targetbase import Session
from .verify import difference

#: Agreement is measured on this many samples at most, and this many of them, if they are small, go into the build.
SAMPLES, KEPT, KEPT_BYTES = 16, 3, 4 << 20

#: A model may move by this many times what it moves when only its own rounding changes.
AMPLIFY = 8.0

#: Ops that add up many terms: where float rounding comes from.
_REDUCING = {"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Attention", "GlobalAveragePool"}


@dataclass(frozen=True)
class Golden:
    """Inputs, and what the untouched model gives for them with onnxruntime's optimizations off.

    source: ``calibration``, ``data``, ``example`` (of the framework it came from) or ``seeded``; ``none`` with the
    reason where the original refuses all of ours.
    """

    source: str
    feeds: tuple[Mapping[str, np.ndarray], ...] = ()
    outputs: tuple[list[np.ndarray], ...] = ()
    reason: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Concrete input shapes, at which MACs are counted."""
        return {name: array.shape for name, array in self.feeds[0].items()} if self.feeds else {}

    def write(self, path: Path, names: list[str]) -> int:
        """Write the first samples, as ``<i>/input/<name>`` and ``<i>/output/<name>``. Returns: how many."""
        arrays: dict[str, np.ndarray] = {}
        size = kept = 0
        for feeds, outputs in islice(zip(self.feeds, self.outputs, strict=True), KEPT):
            size += sum(a.nbytes for a in (*feeds.values(), *outputs))
            if (kept and size > KEPT_BYTES) or any(a.dtype == object for a in (*feeds.values(), *outputs)):
                break
            arrays |= {f"{kept}/input/{name}": array for name, array in feeds.items()}
            arrays |= {f"{kept}/output/{name}": array for name, array in zip(names, outputs, strict=True)}
            kept += 1
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # names that are no identifiers are fine
        return kept


def make_golden(model: Model, samples: Samples | None, source: str) -> Golden:
    """Run the original on the user's samples, or on seeded inputs where there are none.

    Returns: golden of source ``none`` where onnxruntime cannot open the original: a pass of the user's own may be
    what turns its ops into known ones.
    Raises: InputError when the user's samples do not fit the model, or where it takes or gives text.
    """
    _hold_numbers(model)
    try:
        original = open_original(model, optimized=False)
    except InputError as error:
        return Golden("none", reason=error.message)
    if samples is not None:
        feeds = tuple(sample.feeds for sample in islice(samples, SAMPLES))
        return Golden(source, feeds, tuple(original.run(f) for f in feeds))
    return _seeded(model, original)


def _hold_numbers(model: Model) -> None:
    texts = {
        kind: [str(port) for port in ports if port.dtype == "str"]
        for kind, ports in (("input", model.signature.inputs), ("output", model.signature.outputs))
    }
    if found := [f"{kind} {port}" for kind, ports in texts.items() for port in ports]:
        raise InputError(
            f"builds take and give numbers, and this model has strings: {', '.join(found)}",
            "Cut the nodes that read or write text off (onnx.utils.extract_model), and run those beside the build",
        )


def first_taken(original: Original, candidates: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> Golden:
    """Run the first inputs that ``original`` takes, and that give no NaN and no infinity; by what they come from.

    Returns: golden of source ``none`` with the reason where it takes none of them.
    """
    reason, refused = "", set()
    for source, feeds in candidates:
        shapes = tuple(array.shape for array in feeds.values())
        if (source, shapes) in refused:
            continue
        try:
            outputs = original.run(feeds)
        except InputError as error:
            reason = error.message
            refused.add((source, shapes))
            continue
        if all(np.isfinite(o).all() for o in outputs if o.dtype.kind == "f"):
            return Golden(source, (feeds,), (outputs,))
        reason = "the original gives NaN or infinity on seeded inputs"
    return Golden("none", reason=reason)


def _seeded(model: Model, original: Original) -> Golden:
    """Run the original on inputs of ours, and where it has a batch, on another number of rows too.

    Runners may take rows one by one, and passes may take the sizes that they see for all there are.
    """
    example = [("example", model.example)] if model.example else []
    found = first_taken(original, chain(example, (("seeded", feeds) for feeds in seeded_feeds(model))))
    symbol = model.signature.batch
    if found.source != "seeded" or symbol is None:
        return found
    sizes = {
        dim: size
        for port in model.signature.inputs
        for dim, size in zip(port.shape or (), found.shapes[port.name], strict=True)
        if isinstance(dim, str) and dim != "?"
    }
    sizes[symbol] = 1 if sizes[symbol] == 2 else 2
    more = first_taken(original, (("seeded", feeds) for feeds in seeded_feeds(model, sizes=sizes)))
    return replace(found, feeds=found.feeds + more.feeds, outputs=found.outputs + more.outputs)


@dataclass(frozen=True)
class Agreement:
    """How near a build comes to the original on the golden samples.

    worst: largest deviation of any output, relative to the largest reference value of that output; for integer
    and boolean outputs the share that differs. sqnr_db: signal to quantization noise of all float outputs, in dB, or
    None where they are equal. same_top1: share of rows with the same largest entry, or None without such an output.
    graph: of a lossy build, how near its own graph comes to the original when plain onnxruntime runs it.
    """

    n: int
    source: str
    worst: float
    sqnr_db: float | None
    same_top1: float | None
    tolerance: float
    output: str = ""
    reason: str = ""
    graph: Agreement | None = None

    @property
    def noise(self) -> float:
        """Root mean square of the error over that of the outputs, of all float outputs; 0 where they are equal."""
        return 0.0 if self.sqnr_db is None else float(10 ** (-self.sqnr_db / 20))

    @property
    def within(self) -> bool:
        """Whether every output stays inside the tolerance. False on NaN."""
        return self.worst <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Spell for a manifest, rounded to six digits so that a rebuild has the same bytes."""

        def short(x: float | None) -> float | None:
            return None if x is None or not np.isfinite(x) else float(f"{x:.6g}")

        if not self.n:
            return {"n": 0, "not_run": self.reason}
        return {
            "n": self.n,
            "samples": self.source,
            "worst": short(self.worst),
            "worst_output": self.output,
            "sqnr_db": short(self.sqnr_db),
            "same_top1": short(self.same_top1),
            "tolerance": short(self.tolerance),
            "within_tolerance": self.within,
            **({"graph": self.graph.to_json()} if self.graph else {}),
        }


def agree(golden: Golden, session: Session, names: list[str], tolerance: float) -> Agreement:
    """Run ``session`` on the golden inputs and compare."""
    if not golden.feeds:
        return Agreement(0, golden.source, 0.0, None, None, tolerance, reason=golden.reason)
    worst, output = 0.0, ""
    signal = noise = same = rows = 0.0
    for feeds, wanted in zip(golden.feeds, golden.outputs, strict=True):
        for name, want, found in zip(names, wanted, session.run(feeds), strict=True):
            gap = difference(want, np.asarray(found))
            if not gap <= worst:
                worst, output = gap, name
            if want.dtype.kind == "f" and want.shape == found.shape:
                a, b = want.astype(np.float64), found.astype(np.float64)
                signal += float(np.sum(a * a))
                noise += float(np.sum((a - b) ** 2))
                if a.ndim >= 2 and a.shape[-1] > 1 and a.size:
                    hits = a.argmax(-1) == b.argmax(-1)
                    same, rows = same + float(hits.sum()), rows + hits.size
    sqnr = 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else None
    return Agreement(len(golden.feeds), golden.source, worst, sqnr, same / rows if rows else None, tolerance, output)


def rounding_tolerance(model: Model) -> float:
    """Bound what reordering float operations may do, relative to the largest output value.

    A sum of K terms errs by about ``eps * sqrt(K)``, and L such sums in a row by L times that; eps is that of the
    narrowest float in the signature. Source: Higham, Accuracy and Stability of Numerical Algorithms, section 4.2.
    """
    longest, depth = 1, 1
    for graph in graphs(model.graph):
        for node in graph:
            if node.op_type in _REDUCING or node.op_type.startswith("Reduce") or "Normalization" in node.op_type:
                depth += 1
                longest = max(longest, *(_terms(value) for value in node.inputs if value is not None))
    floats = [np.finfo(p.dtype).eps for p in (*model.signature.inputs, *model.signature.outputs) if p.dtype in _FLOATS]
    return float(max(floats, default=np.finfo(np.float32).eps)) * sqrt(longest) * depth


_FLOATS = ("float16", "float32", "float64")


def _terms(value: ir.Value) -> int:
    """Terms that a sum over this constant operand has: all but its output axis."""
    if value.const_value is None or value.const_value.dtype == ir.DataType.STRING:
        return 1
    shape = value.const_value.shape.numpy()
    if len(shape) < 2 or not all(shape):
        return 1
    return max(shape) if len(shape) == 2 else int(np.prod(shape[1:]))


def own_rounding(model: Model, golden: Golden, names: list[str], seeds: int = 3) -> float:
    """Measure how far the original itself moves when only its rounding changes.

    Its optimizations are switched on; then its float weights and inputs are moved by one unit in the last place, with
    other signs for each seed. A model with a threshold, a sort or a recurrence inside can amplify rounding far beyond
    ``rounding_tolerance``, and no pass is to blame for that.
    """
    moved = agree(golden, open_original(model, optimized=True), names, 0.0).worst
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
            session = open_model(_nudged_model(model, rng), Path(folder))
            for feeds, wanted in zip(golden.feeds, golden.outputs, strict=True):
                found = session.run({name: _nudge(array, rng) for name, array in feeds.items()})
                gaps = (difference(want, np.asarray(got)) for want, got in zip(wanted, found, strict=True))
                moved = max(moved, *gaps)
    return moved


def _nudged_model(model: Model, rng: np.random.Generator) -> Model:
    draft = model.draft()
    for graph in graphs(draft):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None and value.const_value.dtype.is_floating_point():
                    value.const_value = ir.tensor(_nudge(value.const_value.numpy(), rng), name=value.name)
    return replace(model, graph=draft)


def _nudge(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.name not in _FLOATS:
        return array
    toward = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype)
    # A shape, a bound or an epsilon has to stay what it is, and so does zero.
    return np.where(array == 0, array, np.nextafter(array, toward)).astype(array.dtype) if array.ndim else array
