"""What onnxruntime's CPU kernels can run, read from its own kernel table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache

import onnx
import onnx_ir as ir

from polycast.model import Model

#: End of a kernel's range that has none. Such a kernel serves the version it was written for and no later one.
OPEN = 2**31 - 1


@cache
def _kernels() -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Ranges of opset versions by (domain, op)."""
    from onnxruntime.capi import _pybind_state as state

    table: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            table.setdefault((kernel.domain, kernel.op_name), []).append(kernel.version_range)
    return table


def missing(model: Model) -> tuple[str, ...]:
    """Name every op without a CPU kernel, as ``domain.Op (opset N, n nodes)``, sorted."""
    opset = runnable_opset(model)
    counts: Counter[tuple[str, str]] = Counter()
    for node in model.graph.graph.all_nodes():
        version = opset if node.domain == "" else model.graph.opset_imports.get(node.domain, 1)
        if not _runs(node, version) and node.op_identifier() not in model.graph.functions:
            counts[node.domain, node.op_type] += 1
    imports = {**model.graph.opset_imports, "": opset}
    return tuple(
        f"{domain or 'ai.onnx'}.{op} (opset {imports.get(domain, '?')}, {n} node{'s' * (n > 1)})"
        for (domain, op), n in sorted(counts.items())
    )


def older_opset(model: Model) -> tuple[str, ...]:
    """Say which opset has the kernels that ``model`` lacks at its own, and which of its ops are newer than that."""
    nodes = [node for node in model.graph.graph.all_nodes() if node.domain == ""]
    opset = runnable_opset(model)
    lacking = {node.op_type for node in nodes if not _runs(node, opset)}
    for older in range(opset - 1, 0, -1) if lacking else ():
        newer = {node.op_type for node in nodes if not _means_the_same(node, older, opset)}
        if lacking & newer:
            break
        if all(_runs(node, older) for node in nodes if node.op_type not in newer):
            has = f"onnxruntime has {_spelt(lacking)} at opset {older}, and {_spelt(newer)} came later"
            return (f"{has}: export that by its parts, or name --passes without the fusion that wrote it",)
    return ()


def _spelt(ops: Iterable[str]) -> str:
    return " and ".join(f"ai.onnx.{op}" for op in sorted(ops))


def runnable_opset(model: Model) -> int:
    """Give the highest opset, up to the model's, at which every op of the default domain has a kernel.

    onnxruntime 1.32 lacks the opset-22 kernel of eight ops, RoiAlign among them, whose opset 22 only admits more
    types. Declaring an older opset runs them, as long as every node means the same there.
    Returns: the model's own opset where no older one runs it either.
    """
    nodes = [node for node in model.graph.graph.all_nodes() if node.domain == ""]
    opset = model.opset
    while opset > 1 and not all(_runs(node, opset) for node in nodes):
        opset -= 1
        if not all(_means_the_same(node, opset, model.opset) for node in nodes):
            return model.opset
    return opset if opset > 1 else model.opset


def equal_opsets(model: Model) -> Iterator[int]:
    """Yield the opsets, from the model's own downwards, at which every node means the same and has a kernel."""
    nodes = [node for node in model.graph.graph.all_nodes() if node.domain == ""]
    for opset in range(model.opset, 0, -1):
        if not all(_means_the_same(node, opset, model.opset) for node in nodes):
            return
        if all(_runs(node, opset) for node in nodes):
            yield opset


def serves(ranges: Iterable[tuple[int, int]], since: int) -> bool:
    """Whether a kernel of one of ``ranges`` is one for the version of an op that opset ``since`` brought."""
    return any(first == since or first < since <= last < OPEN for first, last in ranges)


def _runs(node: ir.Node, version: int) -> bool:
    if node.op_type == "Constant" and not node.domain:
        return True  # becomes an initializer when a session opens, so it has no kernel
    schema = _schema(node.op_type, node.domain, version)
    ranges = _kernels().get((node.domain, node.op_type), ())
    if schema is None:  # com.microsoft has no schemas outside onnxruntime
        return bool(ranges)
    if serves(ranges, schema.since_version):
        return True
    # An op that ONNX defines by other ops runs as those; the stubs of onnx 1.23 lack both names.
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def _means_the_same(node: ir.Node, older: int, newer: int) -> bool:
    """Whether the op is the same at both opsets, but for the types that it admits."""
    then, now = _schema(node.op_type, "", older), _schema(node.op_type, "", newer)
    if then is None or now is None:
        return False
    return then.since_version == now.since_version or _interface(then) == _interface(now)


def _interface(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    attributes = {name: (a.type, a.required, str(a.default_value)) for name, a in schema.attributes.items()}
    return attributes, [i.name for i in schema.inputs], [o.name for o in schema.outputs]


@cache
def _schema(op: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
