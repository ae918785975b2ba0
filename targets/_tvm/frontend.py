"""A model as a Relax function: static shapes, 32-bit integers inside, stored weights left as they are stored."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from polycast.model import Model, Port, most_of, name_of

from . import converters
from .scope import Scope, inside, narrow
from .stored import Lazy

#: Converters by domain and op type.
Table = Mapping[tuple[str, str], converters.Convert]


@dataclass(frozen=True)
class Imported:
    """A Relax module with one function ``main(*inputs, *weights)``.

    inputs, outputs: ports with the dtypes that they have inside. weights: by parameter name, in the function's order.
    """

    module: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: dict[str, np.ndarray]


def dynamic(model: Model) -> list[str]:
    """Name each input without a fixed shape, with what fixes it, and with why no runner takes its rows one by one."""
    ports = [p for p in model.signature.inputs if p.shape is None or not all(isinstance(dim, int) for dim in p.shape)]
    found, batch = [], model.signature.batch
    for port in ports:
        why = f"; {model.unsplit}" if batch and model.unsplit else ""
        sizes = {batch: str(most_of(batch) or 1)} if batch and why else {}
        shape = ",".join(str(d) if isinstance(d, int) else sizes.get(d, "N") for d in port.shape or ("N",))
        found.append(f"input {port} has no fixed shape{why} (--shape {port.name}={shape})")
    return found


def problems(model: Model, table: Table = converters.OWN, *, any_size: bool = False) -> tuple[str, ...]:
    """Name every op and input that cannot be imported: sorted, all at once; any_size: inputs may be open."""
    found = (not any_size and dynamic(model)) or _Import(model, table).run()[1]
    return tuple(sorted(set(found)))


def in_bfloat16(model: Model) -> tuple[str, ...]:
    """Name every op that gives bfloat16, as which a CPU stores numbers and does not compute."""
    nodes = [node for node in model.graph.graph if any(v.dtype == ir.DataType.BFLOAT16 for v in node.outputs)]
    return tuple(sorted({f"ai.onnx.{node.op_type} of bfloat16" for node in nodes}))


def load(model: Model, table: Table = converters.OWN) -> Imported:
    """Import ``model``, of which ``problems`` names none, by the converters of ``table``."""
    imported, found = _Import(model, table).run()
    assert imported is not None, found
    return imported


@dataclass
class _Import:
    model: Model
    table: Table = field(default_factory=lambda: converters.OWN)
    values: dict[ir.Value, Any] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: list[Any] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)

    def run(self) -> tuple[Imported | None, list[str]]:
        from tvm import relax

        graph = self.model.graph.graph
        entries = [v for v in graph.inputs if v.name not in graph.initializers]
        bb = relax.BlockBuilder()
        variables = [self._variable(v) for v in entries]
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), bb.function("main"):
            warnings.simplefilter("ignore")
            with bb.dataflow():
                for node in graph:
                    self._convert(node, bb)
                results = [] if self.found else [self._result(v, bb) for v in graph.outputs]
                out = bb.emit_output(relax.Tuple(results))
            bb.emit_func_output(out, [*variables, *self.parameters])
        if self.found:
            return None, self.found
        outputs = [
            Port(v.name or "", str(r.ty.dtype.dtype), tuple(map(_dim, r.ty.shape)))
            for v, r in zip(graph.outputs, results, strict=True)
        ]
        return Imported(bb.get(), tuple(map(self._port, entries)), tuple(outputs), self.weights), []

    def _result(self, value: ir.Value, bb: Any) -> Any:
        from tvm import relax

        found = self._read(value)
        found = found.tensor(bb, self._keep) if isinstance(found, Lazy) else found
        return bb.normalize(relax.op.shape_to_tensor(found) if isinstance(found, relax.ShapeExpr) else found)

    def _port(self, value: ir.Value) -> Port:
        port = next(p for p in self.model.signature.inputs if p.name == value.name)
        return Port(port.name, inside(port.dtype), port.shape)

    def _variable(self, value: ir.Value) -> Any:
        from tvm import relax

        port = self._port(value)
        shape = [self._size(dim) for dim in port.shape or ()]
        self.values[value] = relax.Var(f"input_{len(self.values)}", relax.TensorType(shape, port.dtype))
        return self.values[value]

    def _size(self, dim: int | str) -> Any:
        """Give a dimension as Relax has it: one variable for each symbol."""
        from tvm import tirx

        if isinstance(dim, str) and dim not in self.sizes:
            self.sizes[dim] = tirx.Var(dim, "int64")
        return self.sizes[dim] if isinstance(dim, str) else dim

    def _keep(self, array: np.ndarray) -> Any:
        """Make ``array`` a parameter: a constant would be widened when constants are folded."""
        from tvm import relax

        key = tensor_key(array)
        if key not in self.kept:
            name = f"weight_{len(self.weights)}"
            self.weights[name] = array
            self.kept[key] = relax.Var(name, relax.TensorType(array.shape, array.dtype.name))
            self.parameters.append(self.kept[key])
        return self.kept[key]

    def _read(self, value: ir.Value) -> Any:
        from tvm import relax

        if value not in self.values:
            assert value.const_value is not None, value.name
            self.values[value] = relax.const(narrow(value.const_value.numpy()))
        return self.values[value]

    def _convert(self, node: ir.Node, bb: Any) -> None:
        what = f"{node.domain or 'ai.onnx'}.{node.op_type}"
        convert = converters.find(node, self.table)
        if convert is None:
            self._refuse(node, f"{what} (opset {self.model.graph.opset_imports.get(node.domain, '?')})")
            return
        if any(v is not None and v not in self.values and v.const_value is None for v in node.inputs):
            return  # what it reads could not be imported, and was named
        if misfit := _misfit(node):
            self._refuse(node, f"{what} at {name_of(node)}: {misfit}")
            return
        scope = Scope(node, self._read, bb, self.model.opset, self._keep)
        try:
            results = [each if isinstance(each, Lazy) else _narrowed(bb, each) for each in convert(scope)]
        except Exception as error:  # the importer raises whatever its checks raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            self._refuse(node, f"{what} at {name_of(node)}: {line}")
            return
        if lost := [value.name for value in node.outputs[len(results) :] if value.uses() or value.is_graph_output()]:
            self._refuse(node, f"{what} at {name_of(node)}: nothing gives {', '.join(map(str, lost))}")
            return
        self.values |= dict(zip(node.outputs, results, strict=False))

    def _refuse(self, node: ir.Node, why: str) -> None:
        """Name a node that cannot be imported, and go on behind it where the types of its outputs are known."""
        from tvm import relax

        self.found.append(why)
        for value in node.outputs:
            shape = [d for d in value.shape or () if isinstance(d, int)]
            if value.shape is not None and len(shape) == len(value.shape) and value.dtype is not None:
                type_ = relax.TensorType(shape, inside(value.dtype.numpy().name))
                self.values[value] = relax.Var("missing", type_)


#: Ops to which a number that was clipped is another; elsewhere it stands for no limit, or for no index at all.
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Mod", "Pow"}


def _misfit(node: ir.Node) -> str:
    """Say what no kernel could hold of what ``node`` reads and gives."""
    if node.op_type in _ARITHMETIC and any(map(_is_wide, node.inputs)):
        return "integers that do not fit 32 bits"
    # Elsewhere an input of no elements stands for an option that is not given.
    held = (*node.outputs, *(node.inputs if node.op_type == "Concat" else ()))
    is_empty = any(v is not None and v.shape is not None and 0 in v.shape.dims for v in held)
    return "a tensor of no elements" if is_empty else ""


def _is_wide(value: ir.Value | None) -> bool:
    """Whether this is a constant that ``narrow`` would have to clip."""
    stored = value.const_value if value is not None else None
    if stored is None or stored.dtype not in (ir.DataType.INT64, ir.DataType.UINT64):
        return False
    array = stored.numpy()
    return not np.array_equal(narrow(array), array)


def _narrowed(bb: Any, result: Any) -> Any:
    from tvm import relax

    result = bb.normalize(result) if isinstance(result, relax.Expr) else result
    if isinstance(getattr(result, "ty", None), relax.TensorType) and str(result.ty.dtype.dtype) == "int64":
        return bb.emit(relax.op.astype(result, "int32"))
    return bb.emit(result) if isinstance(getattr(result, "ty", None), relax.TensorType) else result


def _dim(found: Any) -> int | str:
    from tvm import tirx

    return int(found) if isinstance(found, (int, tirx.IntImm)) else str(found)


def tensor_key(array: np.ndarray) -> str:
    """Give one text for equal arrays, and another for every other."""
    start = repr((array.dtype.name, array.shape)).encode()
    return hashlib.sha256(start + np.ascontiguousarray(array).data.tobytes()).hexdigest()
