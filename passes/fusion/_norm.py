"""Reading a normalisation by the root mean square, which RMSNorm and LayerNorm are both built on.

LayerNorm of x is RMSNorm of ``x - mean(x)``: one matcher serves both, and tells them apart by what was squared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ._match import constant, consumer, dtype_of, either, ints, is_op, new_constant, producer, rank, scalar, with_scalar

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Normalized:
    """``output = x / sqrt(mean(x**2) + epsilon) * scale``.

    shape: sizes of the last axes of x, which the mean is over. scale: None where x is not multiplied with one.
    """

    x: ir.Value
    output: ir.Value
    epsilon: float
    shape: tuple[int, ...]
    scale: ir.Value | None = None

    def operand(self, op: str) -> tuple[ir.Value, ir.Value] | None:
        """Find the ``op`` that alone reads ``output`` and combines it with a scale or a shift of ``shape``.

        Returns: its output and the scale or shift.
        """
        node = consumer(self.output, op)
        for mine, other in either(node) if node is not None else ():
            if mine is self.output and _fits(other, self.shape):
                return node.outputs[0], other  # type: ignore[union-attr]  # either() yielded from it
        return None


def squared(mean: ir.Node) -> ir.Value | None:
    """Give x where ``mean`` is the mean of ``x**2``."""
    power, product = producer(mean.inputs[0], "Pow"), producer(mean.inputs[0], "Mul")
    if power is not None and scalar(power.inputs[1]) == 2.0:
        return power.inputs[0]
    if product is not None:
        a, b = product.inputs
        return a if a is not None and b is not None and _same(a, b) else None
    return None


def centred(deviation: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
    """Give x and its ReduceMean where ``deviation`` is ``x - mean(x)``."""
    sub = producer(deviation, "Sub")
    if sub is None or sub.inputs[0] is None:
        return None
    mean = producer(sub.inputs[1], "ReduceMean")
    return (sub.inputs[0], mean) if mean is not None and mean.inputs[0] is sub.inputs[0] else None


def match(mean: ir.Node, x: ir.Value) -> Normalized | str | None:
    """Match the normalisation around ``mean``, the mean of squares, with its casts and its scale.

    x: what is normalised, which is not what is squared where its mean is taken off first.
    Returns: the reason where it is nearly one, None where it is none.
    """
    root = _root(mean)
    if root is None or isinstance(root, str):
        return root
    count = last_axes(mean, x)
    if isinstance(count, str):
        return count
    shape = tuple(d for d in tuple(x.shape or ())[-count:] if isinstance(d, int))
    if len(shape) != count:
        return "the size of the axes that the mean is over is not fixed"
    if dtype_of(x) == ir.DataType.DOUBLE:
        return "it is computed in float64, which the fused op would narrow to float32"
    deviation = squared(mean)
    assert deviation is not None
    found = _divided(Normalized(deviation, root.value, root.epsilon, shape), root)
    return _scaled(_without_casts(replace(found, x=x))) if isinstance(found, Normalized) else found


def last_axes(mean: ir.Node, x: ir.Value) -> int | str:
    """Count the last axes of ``x`` that ``mean`` runs over; the reason where it runs over others."""
    axes, axis_count = ints(mean, "axes", 1), rank(x)
    keep = mean.attributes.get("keepdims")
    if keep is not None and keep.as_int() == 0:
        return "the mean drops its axes (keepdims is 0)"
    if not axes:
        return "the axes of the mean are not constant" if len(mean.inputs) > 1 else "the mean is over all axes"
    if any(a >= 0 for a in axes) and axis_count is None:
        return f"the mean is over axes {list(axes)} of a tensor of unknown rank"
    last = sorted(a - axis_count if axis_count is not None and a >= 0 else a for a in axes)
    return len(axes) if last == list(range(-len(axes), 0)) else f"the mean is over axes {last}, not the last ones"


def shaped(value: ir.Value | None, shape: tuple[int, ...], like: ir.Value, name: str) -> ir.Value:
    """Give ``value`` in exactly ``shape``; ones of the dtype of ``like`` where it is None."""
    site = like.producer()
    assert site is not None
    if value is None:
        dtype = dtype_of(like) or ir.DataType.FLOAT
        return new_constant(f"{like.name}.{name}", np.ones(shape, dtype.numpy()), site)
    array = constant(value)
    if array is None or array.shape == shape:
        return value
    return new_constant(f"{like.name}.{name}", array.reshape(shape), site)


@dataclass(frozen=True)
class _Root:
    """``value = sqrt(mean + epsilon)``, or its inverse."""

    value: ir.Value
    epsilon: float
    inverse: bool


def _root(mean: ir.Node) -> _Root | str | None:
    add = _reader(mean.outputs[0], "Add")
    root = _reader(add.outputs[0], "Sqrt", "Pow") if add is not None else None
    if add is None or root is None:
        return None
    exponent = 0.5 if root.op_type == "Sqrt" else scalar(root.inputs[1])
    if exponent not in (0.5, -0.5):
        return None
    shifted = with_scalar(add)
    if shifted is None:
        return "epsilon is not a constant"
    if consumer(mean.outputs[0], "Add") is None or consumer(add.outputs[0], root.op_type) is None:
        return "its mean of squares is read elsewhere too"
    return _Root(root.outputs[0], shifted[1], exponent < 0)


def _reader(value: ir.Value, *ops: str) -> ir.Node | None:
    return next((use.node for use in value.uses() if is_op(use.node, *ops)), None)


def _divided(found: Normalized, root: _Root) -> Normalized | str:
    """Follow ``root`` to where it meets x: by Div, or by Mul with its inverse, which a scale may have met first."""
    value = root.value
    if not root.inverse:
        node = consumer(value, "Div", "Reciprocal")
        if node is None:
            return "its root is read elsewhere too"
        top = node.inputs[0]
        if node.op_type == "Div" and top is not None and scalar(top) != 1.0:
            return replace(found, output=node.outputs[0]) if _same(top, found.x) else _OTHER
        value = node.outputs[0]
    found = _scaled(replace(found, output=value))
    product = consumer(found.output, "Mul")
    if product is None:
        return "its inverse root is read elsewhere too"
    for mine, other in either(product):
        if mine is found.output and _same(other, found.x):
            return replace(found, output=product.outputs[0])
    return _OTHER


_OTHER = "its root divides another tensor than the one that was squared"


def _scaled(found: Normalized) -> Normalized:
    """Take in the Mul with a scale, unless there is one already."""
    scaled = found.operand("Mul") if found.scale is None else None
    return replace(found, output=scaled[0], scale=scaled[1]) if scaled is not None else found


def _without_casts(found: Normalized) -> Normalized:
    """Take in the Cast of a half-precision x to float32 and the Cast back: the fused op does both inside."""
    widen, narrow = producer(found.x, "Cast"), consumer(found.output, "Cast")
    source = widen.inputs[0] if widen is not None else None
    if source is None or narrow is None or found.scale is not None or dtype_of(found.x) != ir.DataType.FLOAT:
        return found
    to = ir.DataType(narrow.attributes["to"].as_int())
    if to not in _HALF or dtype_of(source) != to:
        return found
    return replace(found, x=source, output=narrow.outputs[0])


def _fits(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether ``value`` is of ``shape``, or a constant that is once its leading axes of size 1 are dropped."""
    array = constant(value)
    dims = array.shape if array is not None else tuple(value.shape or ())
    lead = len(dims) - len(shape)
    return dims == shape or (array is not None and lead > 0 and dims == (1,) * lead + shape)


def _same(a: ir.Value, b: ir.Value) -> bool:
    """Whether ``a`` and ``b`` are one value, or the same Sub of the same values."""
    if a is b:
        return True
    one, other = producer(a, "Sub"), producer(b, "Sub")
    return one is not None and other is not None and list(one.inputs) == list(other.inputs)
