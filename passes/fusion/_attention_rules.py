"""The shape of what each operator gives, from the shapes and the contents of what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ._attention_dims import Dim, Dims, Known, broadcast, product, symbol
from ._match import ints

_Dims = list[Dims | None]


def _constant(sizes: Known, node: ir.Node) -> _Dims | None:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    return [tuple(d for d in tensor.shape if isinstance(d, int))] if tensor is not None else None


def _like_first(sizes: Known, node: ir.Node) -> _Dims:
    return [sizes.of(node.inputs[0])]


def _broadcast(sizes: Known, node: ir.Node) -> _Dims:
    return [broadcast([sizes.of(v) for v in node.inputs])]


def _matmul(sizes: Known, node: ir.Node) -> _Dims | None:
    a, b = (sizes.of(v) for v in node.inputs)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = broadcast([a[:-2], b[:-2]])
    return [(*batch, a[-2], b[-1])] if batch is not None else None


def _gemm(sizes: Known, node: ir.Node) -> _Dims | None:
    a, b = (sizes.of(v) for v in node.inputs[:2])
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    return [(a[flag(node, "transA")], b[1 - flag(node, "transB")])]


def _transpose(sizes: Known, node: ir.Node) -> _Dims | None:
    x = sizes.of(node.inputs[0])
    if x is None:
        return None
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(x))[::-1]
    return [tuple(x[p] for p in perm)]


def _reshape(sizes: Known, node: ir.Node) -> _Dims | None:
    target = sizes.numbers(node.inputs[1])
    if target is None:
        return None
    x, output = sizes.of(node.inputs[0]), node.outputs[0]
    dims: list[Dim] = []
    open_at = None
    for i, size in enumerate(target):
        if size == 0 and not flag(node, "allowzero"):
            dims.append(x[i] if x is not None and i < len(x) else symbol(output, i))
        elif size == -1:
            open_at = i
            dims.append(1)
        else:
            dims.append(size if isinstance(size, (int, str)) else symbol(output, i))
    if open_at is not None:
        rest = _quotient(x, dims)
        dims[open_at] = rest if rest is not None else symbol(output, open_at)
    return [tuple(dims)]


def _quotient(whole: Dims | None, part: Sequence[Dim]) -> Dim | None:
    """Divide the product of ``whole`` by that of ``part``, where the result is one size."""
    if whole is None:
        return None
    (n, above), (m, below) = product(whole), product(part)
    left = above - below
    if below - above or m == 0 or n % m:
        return None
    if not left:
        return n // m
    return next(iter(left)) if n == m and left.total() == 1 else None


def _unsqueeze(sizes: Known, node: ir.Node) -> _Dims | None:
    x, axes = sizes.of(node.inputs[0]), ints(node, "axes", 1)
    if x is None or axes is None:
        return None
    rank = len(x) + len(axes)
    new, old = {a % rank for a in axes}, iter(x)
    return [tuple(1 if i in new else next(old) for i in range(rank))]


def _squeeze(sizes: Known, node: ir.Node) -> _Dims | None:
    x, axes = sizes.of(node.inputs[0]), ints(node, "axes", 1)
    if x is None or axes is None:
        return None
    gone = {a % len(x) for a in axes}
    return [tuple(d for i, d in enumerate(x) if i not in gone)]


def _concat(sizes: Known, node: ir.Node) -> _Dims | None:
    parts = [sizes.of(v) for v in node.inputs]
    known = [p for p in parts if p is not None]
    if not known:
        return None
    axis = node.attributes["axis"].as_int() % len(known[0])
    dims = list(broadcast(known) or known[0])
    along = [p[axis] if p is not None else None for p in parts]
    if all(isinstance(d, int) for d in along):
        dims[axis] = sum(d for d in along if isinstance(d, int))
    else:
        dims[axis] = along[0] if len(along) == 1 and along[0] is not None else symbol(node.outputs[0], axis)
    return [tuple(dims)]


def _expand(sizes: Known, node: ir.Node) -> _Dims | None:
    x, target = sizes.of(node.inputs[0]), sizes.numbers(node.inputs[1])
    if x is None or target is None:
        return None
    wanted = tuple(n if isinstance(n, (int, str)) else symbol(node.outputs[0], i) for i, n in enumerate(target))
    return [broadcast([x, wanted])]


def _slice(sizes: Known, node: ir.Node) -> _Dims | None:
    x = sizes.of(node.inputs[0])
    if x is None:
        return None
    starts, ends = sizes.numbers(node.inputs[1]), sizes.numbers(node.inputs[2])
    if starts is None or ends is None:
        return None
    axes = sizes.numbers(_given(node, 3)) if _given(node, 3) is not None else tuple(range(len(starts)))
    steps = sizes.numbers(_given(node, 4)) if _given(node, 4) is not None else (1,) * len(starts)
    if axes is None or steps is None:
        return None
    dims = list(x)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not isinstance(axis, int):
            return None
        size = dims[axis]
        if isinstance(size, int) and isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
            dims[axis] = len(range(size)[start:end:step])
        elif (start, step) == (0, 1) and isinstance(end, int) and end >= 2**31 - 1:
            continue
        elif (start, step) == (0, 1) and isinstance(end, str):
            dims[axis] = end
        else:
            dims[axis] = symbol(node.outputs[0], axis % len(x))
    return [tuple(dims)]


def _split(sizes: Known, node: ir.Node) -> _Dims | None:
    x = sizes.of(node.inputs[0])
    if x is None:
        return None
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(x)
    parts = ints(node, "split", 1) or sizes.integers(_given(node, 1))
    size, count = x[axis], len(node.outputs)
    if parts is None and _given(node, 1) is None and isinstance(size, int):
        each = math.ceil(size / count)
        parts = (*[each] * (count - 1), size - each * (count - 1))
    if parts is None or len(parts) != count:
        return [(*x[:axis], symbol(v, axis), *x[axis + 1 :]) for v in node.outputs]
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def _gather(sizes: Known, node: ir.Node) -> _Dims | None:
    x, indices = sizes.of(node.inputs[0]), sizes.of(node.inputs[1])
    if x is None or indices is None:
        return None
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(x)
    return [(*x[:axis], *indices, *x[axis + 1 :])]


def _reduce(sizes: Known, node: ir.Node) -> _Dims | None:
    x, axes = sizes.of(node.inputs[0]), ints(node, "axes", 1)
    if x is None or axes is None:
        return None
    gone = {a % len(x) for a in axes}
    if "keepdims" in node.attributes and not flag(node, "keepdims"):
        return [tuple(d for i, d in enumerate(x) if i not in gone)]
    return [tuple(1 if i in gone else d for i, d in enumerate(x))]


def _attention(sizes: Known, node: ir.Node) -> _Dims | None:
    q, v = sizes.of(node.inputs[0]), sizes.of(node.inputs[2])
    if q is None or v is None or len(q) != len(v):
        return None
    if len(q) == 4:
        return [(*q[:3], v[3])]
    heads, kv_heads = (node.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads"))
    return [(*q[:2], v[2] // kv_heads * heads)] if isinstance(v[2], int) else None


def _given(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def flag(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None and not attribute.is_ref() else 0


DIMS: dict[str, Callable[[Known, ir.Node], _Dims | None]] = {
    **dict.fromkeys(
        "Abs Cast CastLike Ceil Clip Cos Dropout Erf Exp Floor Gelu Identity IsInf IsNaN LayerNormalization Log Neg "
        "Not RMSNormalization Reciprocal Relu Round RotaryEmbedding Sigmoid Sign Sin Softmax Sqrt Tanh Trilu".split(),
        _like_first,
    ),
    **dict.fromkeys(
        "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Sum Where Xor".split(),
        _broadcast,
    ),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
    "Attention": _attention,
    "Concat": _concat,
    "Constant": _constant,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
