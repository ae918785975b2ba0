"""Finding rotary embeddings: x turned by cos and sin, in halves or in pairs, in the ways that it is written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ._attention import Mismatch
from ._attention_dims import show
from ._attention_sizes import Sizes
from ._match import constant, consumer, either, is_op, producer


@dataclass(frozen=True)
class Rotation:
    """One rotary embedding of x: rank 4, its last axis turned; ``output`` has the shape of x.

    cos, sin: broadcast against x; of its size, both halves alike, or with ``halved`` of half its size.
    interleaved: whether neighbours are turned together, or what is half the size apart.
    """

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    output: ir.Value
    interleaved: bool
    halved: bool


@dataclass(frozen=True)
class _Part:
    """Every ``step``-th element of the last axis of ``x`` from ``start`` on, half of them in all."""

    x: ir.Value
    start: int
    step: int


def match(node: ir.Node, sizes: Sizes) -> Rotation | None:
    """Find the rotary embedding around ``node``, a Concat of rotate_half or the Sub of its real part.

    Raises: Mismatch with the reason, where it is one and cannot be fused.
    """
    return _rotate_half(node, sizes) if node.op_type == "Concat" else _pairwise(node, sizes)


def _rotate_half(concat: ir.Node, sizes: Sizes) -> Rotation | None:
    """Match ``x * cos + Concat(-x[half:], x[:half]) * sin``."""
    if len(concat.inputs) != 2 or not _is_last(concat, sizes):
        return None
    negated = producer(concat.inputs[0], "Neg")
    if negated is None:
        return None
    high, low = _part(negated.inputs[0], sizes), _part(concat.inputs[1], sizes)
    if high is None or low is None or high.x is not low.x or (low.start, low.step, high.step) != (0, 1, 1):
        return None
    by_sin = consumer(concat.outputs[0], "Mul")
    total = consumer(by_sin.outputs[0], "Add") if by_sin is not None else None
    if by_sin is None or total is None:
        raise Mismatch("the rotated half is not multiplied with sin and added")
    sin = next(b for a, b in either(by_sin) if a is concat.outputs[0])
    other = next(b for a, b in either(total) if a is by_sin.outputs[0])
    by_cos = producer(other, "Mul")
    cos = next((b for a, b in either(by_cos) if a is low.x), None) if by_cos is not None else None
    if cos is None:
        raise Mismatch("what is added to the rotated half is not x * cos")
    return Rotation(low.x, cos, sin, total.outputs[0], interleaved=False, halved=False)


def _pairwise(real: ir.Node, sizes: Sizes) -> Rotation | None:
    """Match ``a * cos - b * sin`` beside ``a * sin + b * cos``, joined again in the order that they were taken in."""
    first, second = (producer(v, "Mul") for v in real.inputs)
    if first is None or second is None:
        return None
    for a, cos in either(first):
        for b, sin in either(second):
            one, two = _part(a, sizes), _part(b, sizes)
            if one is None or two is None or one.x is not two.x or one.start != 0 or one.step != two.step:
                continue
            output = _joined(real, (a, b), (cos, sin), one.step, sizes)
            return Rotation(one.x, cos, sin, output, interleaved=one.step == 2, halved=True)
    return None


def _joined(
    real: ir.Node, parts: tuple[ir.Value, ir.Value], turn: tuple[ir.Value, ir.Value], step: int, sizes: Sizes
) -> ir.Value:
    """Follow the real part to where it is joined with the imaginary one, and see that this is what it should be."""
    value = real.outputs[0]
    if step == 2:
        value = _one_reader(value, "Unsqueeze").outputs[0]
    concat = _one_reader(value, "Concat")
    if len(concat.inputs) != 2 or concat.inputs[0] is not value or not _is_last(concat, sizes):
        raise Mismatch("real and imaginary part are not joined along the last axis")
    other, output = concat.inputs[1], concat.outputs[0]
    if step == 2:
        unsqueeze = producer(other, "Unsqueeze")
        other = unsqueeze.inputs[0] if unsqueeze is not None else None
        output = _one_reader(output, "Reshape").outputs[0]
        x = _part(parts[0], sizes)
        if x is None or sizes.of(output) != sizes.of(x.x):
            raise Mismatch("the turned pairs are not put back in their order")
    imaginary = producer(other, "Add")
    if imaginary is None or not _adds_up(imaginary, parts, turn):
        raise Mismatch("the imaginary part is not a * sin + b * cos")
    return output


def _adds_up(imaginary: ir.Node, parts: tuple[ir.Value, ir.Value], turn: tuple[ir.Value, ir.Value]) -> bool:
    (a, b), (cos, sin) = parts, turn
    products = [producer(v, "Mul") for v in imaginary.inputs]
    found = [set(p.inputs) for p in products if p is not None]
    return found in ([{a, sin}, {b, cos}], [{b, cos}, {a, sin}])


def _one_reader(value: ir.Value, op: str) -> ir.Node:
    node = consumer(value, op)
    if node is None:
        raise Mismatch(f"no {op} alone reads what is turned")
    return node


def _part(value: ir.Value | None, sizes: Sizes) -> _Part | None:
    """Read ``value`` as one half of the last axis of something of rank 4."""
    node = producer(value, "Slice", "Split")
    x = node.inputs[0] if node is not None else None
    dims = sizes.of(x)
    if node is None or x is None or value is None or dims is None or len(dims) != 4:
        return None
    size, half = dims[3], sizes.of(value)
    if not isinstance(size, int) or half is None or half[3] != size // 2 or size % 2:
        return None
    if node.op_type == "Split":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return _Part(x, node.outputs.index(value) * half[3], 1) if axis in (3, -1) and len(node.outputs) == 2 else None
    starts, axes, steps = (sizes.integers(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 3, 4))
    if starts is None or len(starts) != 1 or axes not in ((3,), (-1,)):
        return None
    step = steps[0] if steps else 1
    start = starts[0] + size if starts[0] < 0 else starts[0]
    fits = (step == 1 and start in (0, size // 2)) or (step == 2 and start in (0, 1))
    return _Part(x, start, step) if fits else None


def _is_last(concat: ir.Node, sizes: Sizes) -> bool:
    axis, dims = concat.attributes["axis"].as_int(), sizes.of(concat.outputs[0])
    return axis == -1 or (dims is not None and axis == len(dims) - 1)


def head_axis(rotation: Rotation, sizes: Sizes) -> int:
    """Tell the axis of heads of x, 1 or 2: cos and sin are the same for all heads, and differ between positions.

    Raises: Mismatch where they do not tell.
    """
    x, cos, sin = (sizes.of(v) for v in (rotation.x, rotation.cos, rotation.sin))
    if cos is None or sin is None or x is None or not 2 <= len(cos) <= 4 or len(cos) != len(sin):
        raise Mismatch(f"cos is {show(cos)}, sin {show(sin)}")
    full = (*[1] * (4 - len(cos)), *cos)
    if (full[1] == 1) == (full[2] == 1):
        raise Mismatch(f"cos {show(cos)} does not tell the heads of x {show(x)} from its positions")
    axis = 1 if full[1] == 1 else 2
    if full[0] != 1 and full[0] != x[0] and isinstance(full[0], int):
        raise Mismatch(f"cos {show(cos)} does not fit x {show(x)}")
    if not isinstance(x[axis], int):
        raise Mismatch(f"head count is unknown: x is {show(x)}")
    if cos[-1] != (x[3] // 2 if rotation.halved else x[3]) or sin[-1] != cos[-1]:  # type: ignore[operator]
        raise Mismatch(f"cos {show(cos)} does not fit x {show(x)}")
    return axis


def repeats(value: ir.Value | None, sizes: Sizes) -> bool:
    """Whether both halves of the last axis of ``value`` are alike, as far as the graph tells."""
    for _ in range(16):
        node = value.producer() if value is not None else None
        if node is None:
            return _repeats_as_constant(value)
        if is_op(node, "Concat"):
            return _is_last(node, sizes) and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        if is_op(node, "Mul", "Div") and sizes.number(node.inputs[1]) is not None:
            value = node.inputs[0]
        elif is_op(node, "Mul") and sizes.number(node.inputs[0]) is not None:
            value = node.inputs[1]
        elif is_op(node, "Cast", "Cos", "Identity", "Sin") or _keeps_last(node, sizes):
            value = node.inputs[0]
        else:
            return _repeats_as_constant(value)
    return False


def _keeps_last(node: ir.Node, sizes: Sizes) -> bool:
    """Whether ``node`` moves, picks or adds axes and leaves the last one as it is."""
    x, out = sizes.of(node.inputs[0]), sizes.of(node.outputs[0])
    if x is None or out is None or len(x) < 2 or x[-1] != out[-1] or not isinstance(x[-1], int) or x[-1] == 1:
        return False
    if is_op(node, "Gather"):
        return "axis" not in node.attributes or node.attributes["axis"].as_int() == 0
    if is_op(node, "Transpose"):
        return node.attributes["perm"].as_ints()[-1] == len(x) - 1
    return is_op(node, "Expand", "Reshape", "Slice", "Squeeze", "Unsqueeze")


def _repeats_as_constant(value: ir.Value | None) -> bool:
    array = constant(value)
    if array is None or array.ndim == 0 or array.shape[-1] % 2:
        return False
    half = array.shape[-1] // 2
    return bool((array[..., :half] == array[..., half:]).all())
