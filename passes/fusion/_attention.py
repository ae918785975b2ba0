"""Finding attention around a Softmax: what is multiplied, scaled and masked before it, and what it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ._attention_dims import Dims, show
from ._attention_sizes import Sizes
from ._match import constant, dtype_of, either, is_op, producer, scalar

#: Swaps sequence and heads: between [batch, sequence, heads, size] and [batch, heads, sequence, size].
SWAP = (0, 2, 1, 3)
_DEPTH = 12


class Mismatch(Exception):
    """Why something that looks like attention is not fused."""


@dataclass(frozen=True)
class Mask:
    """One term that masks the scores: ``value`` is added, or, with ``fill``, they are ``fill`` where it is not True."""

    value: ir.Value
    fill: ir.Value | None = None
    inverted: bool = False


@dataclass(frozen=True)
class Match:
    """One attention.

    q: [batch, heads, sequence, size]. keys: K transposed, [batch, heads, size, total]. v: [batch, heads, total, size].
    output: what ``softmax(scale * q @ keys + masks) @ v`` is called.
    """

    q: ir.Value
    keys: ir.Value
    v: ir.Value
    scale: float
    masks: tuple[Mask, ...]
    output: ir.Value


def match(softmax: ir.Node, sizes: Sizes) -> Match | None:
    """Find the attention around ``softmax``; None where it does not lie between two MatMuls.

    Raises: Mismatch with the reason, where it does and cannot be fused.
    """
    assert softmax.inputs[0] is not None
    steps = _steps_up(softmax.inputs[0])
    weighted = _weighted(softmax)
    if steps is None or weighted is None:
        return None
    product, scale, masks = _read(steps, sizes)
    q, more = _unscaled(product.inputs[0], sizes)
    keys, still_more = _unscaled(product.inputs[1], sizes)
    v = weighted.inputs[1]
    assert v is not None
    _check_softmax(softmax, sizes)
    found = Match(q, keys, v, scale * more * still_more, tuple(masks), weighted.outputs[0])
    _check(found, sizes)
    return found


def is_reshaped(softmax: ir.Node) -> bool:
    """Whether ``softmax`` lies between two MatMuls, but with a Reshape on the way to or from one of them."""
    readers = [use.node for use in softmax.outputs[0].uses()]
    after = [use.node for node in readers if is_op(node, "Reshape") for use in node.outputs[0].uses()]
    weighs = any(is_op(node, "MatMul") for node in (*readers, *after))
    return weighs and _comes_from_product(softmax.inputs[0])


def _comes_from_product(value: ir.Value | None, depth: int = 0) -> bool:
    node = producer(value, "Add", "Cast", "Div", "Identity", "MatMul", "Mul", "Reshape", "Where")
    if node is None or depth > _DEPTH:
        return False
    if node.op_type == "MatMul":
        return all(constant(v) is None for v in node.inputs)
    return any(_comes_from_product(way, depth + 1) for way in node.inputs)


def _steps_up(value: ir.Value | None, depth: int = 0) -> list[tuple[ir.Node, ir.Value]] | None:
    """Go up from the Softmax to the product of q and k.

    Returns: each node on the way with the operand that the way goes through, the MatMul first; None without one.
    """
    node = producer(value, "Add", "Cast", "Div", "Identity", "MatMul", "Mul", "Where")
    if node is None or depth > _DEPTH:
        return None
    if node.op_type == "MatMul":
        known = any(constant(v) is not None for v in node.inputs)
        return [(node, node.outputs[0])] if not known else None
    ways: Sequence[ir.Value | None] = node.inputs
    if node.op_type == "Where":
        ways = node.inputs[1:]
    elif node.op_type == "Div":
        ways = node.inputs[:1]
    for way in ways:
        found = _steps_up(way, depth + 1)
        if found is not None and way is not None:
            return [*found, (node, way)]
    return None


def _read(steps: list[tuple[ir.Node, ir.Value]], sizes: Sizes) -> tuple[ir.Node, float, list[Mask]]:
    """Read scale and masks off the way from the product to the Softmax."""
    (product, _), *others = steps
    scale = 1.0
    masks: list[Mask] = []
    for node, way in others:
        if node.outputs[0].is_graph_output():
            raise Mismatch("the scores are also a graph output")
        match node.op_type:
            case "Mul" | "Div":
                factor = sizes.number(next(v for v in node.inputs if v is not way))
                if factor is None or factor == 0:
                    raise Mismatch("scale is not constant")
                if masks:
                    raise Mismatch("the scores are scaled after the mask was added")
                scale = scale * factor if node.op_type == "Mul" else scale / factor
            case "Add":
                a, b = node.inputs
                other = b if a is way else a
                assert other is not None
                masks.append(Mask(other))
            case "Where":
                masks.append(_chosen(node, way))
            case "Cast" if not _casts_nothing(node):
                raise Mismatch("the softmax has another precision than q and k")
    if product.outputs[0].is_graph_output():
        raise Mismatch("the scores are also a graph output")
    return product, scale, masks


def _chosen(node: ir.Node, way: ir.Value) -> Mask:
    """Read ``Where(allowed, scores, fill)``, in either order, as a mask."""
    condition, yes, no = node.inputs
    fill = no if yes is way else yes
    assert condition is not None and fill is not None
    number = scalar(fill)
    if number is None or number > -1e30:
        # A row with nothing allowed is then uniform; adding the number instead would leave its softmax as it was.
        raise Mismatch(f"masked scores are set to {'a tensor' if number is None else number}, not to the lowest number")
    return Mask(condition, fill, inverted=yes is not way)


def _weighted(softmax: ir.Node) -> ir.Node | None:
    """Find the MatMul that weighs v with the softmax, past the guard that turns NaN into 0.

    Raises: Mismatch where something else reads the softmax too.
    """
    value = softmax.outputs[0]
    for _ in range(_DEPTH):
        readers = list(dict.fromkeys(use.node for use in value.uses()))
        guarded = _guarded(value, readers)
        if guarded is not None:
            value = guarded
            continue
        products = [n for n in readers if is_op(n, "MatMul") and n.inputs[0] is value]
        if products and value.is_graph_output():
            raise Mismatch("the softmax output is also a graph output")
        if products and len(readers) > 1:
            other = next(n for n in readers if n is not products[0])
            raise Mismatch(f"{other.op_type} {other.name or ''} reads the softmax output too".replace("  ", " "))
        if products:
            return products[0]
        if len(readers) != 1 or value.is_graph_output() or not _passes_on(readers[0]):
            return None
        value = readers[0].outputs[0]
    return None


def _guarded(value: ir.Value, readers: list[ir.Node]) -> ir.Value | None:
    """Follow ``Where(IsNaN(x), 0, x)``, which exporters write for rows that are masked as a whole."""
    test = next((n for n in readers if is_op(n, "IsNaN")), None)
    choice = next((n for n in readers if is_op(n, "Where")), None)
    if test is None or choice is None or len(readers) != 2:
        return None
    condition, zero, other = choice.inputs
    whole = condition is test.outputs[0] and other is value and scalar(zero) == 0
    return choice.outputs[0] if whole else None


def _passes_on(node: ir.Node) -> bool:
    return is_op(node, "Identity") or (is_op(node, "Cast") and _casts_nothing(node))


def _casts_nothing(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and dtype_of(x) == node.attributes["to"].as_int()


def _unscaled(value: ir.Value | None, sizes: Sizes) -> tuple[ir.Value, float]:
    """Split ``value`` into what it is before a constant factor, and the factor."""
    assert value is not None
    scale = 1.0
    for _ in range(_DEPTH):
        node = producer(value, "Mul", "Div")
        if node is None:
            break
        pairs = list(either(node)) if node.op_type == "Mul" else [(node.inputs[0], node.inputs[1])]
        found = next(((x, n) for x, y in pairs if (n := sizes.number(y)) is not None and x is not None), None)
        if found is None or found[1] == 0:
            break
        value, factor = found
        scale = scale * factor if node.op_type == "Mul" else scale / factor
    return value, scale


def _check_softmax(softmax: ir.Node, sizes: Sizes) -> None:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    dims = sizes.of(softmax.outputs[0])
    if axis != -1 and (dims is None or axis != len(dims) - 1):
        raise Mismatch(f"the softmax is over axis {axis}, not over the last one")


def _check(found: Match, sizes: Sizes) -> None:
    """Hold shapes against what Attention takes: it broadcasts neither batch nor heads, as MatMul would."""
    q, keys, v = sizes.of(found.q), sizes.of(found.keys), sizes.of(found.v)
    for name, dims in (("q", q), ("k", keys), ("v", v)):
        if dims is None or len(dims) != 4:
            raise Mismatch(f"{name} is {show(dims)}, not of rank 4")
    assert q is not None and keys is not None and v is not None
    if not all(isinstance(dims[1], int) for dims in (q, keys, v)):
        raise Mismatch(f"head count is unknown: shape of q is {show(q)}, of k {show(keys)}, of v {show(v)}")
    if not q[1] == keys[1] == v[1]:
        raise Mismatch(f"heads of q, k and v differ: {q[1]}, {keys[1]}, {v[1]}")
    if not (_may_equal(q[0], keys[0]) and _may_equal(q[0], v[0])):
        raise Mismatch(
            f"k or v is broadcast over the batch: shape of q is {show(q)}, of k {show(keys)}, of v {show(v)}"
        )
    if found.scale <= 0:
        raise Mismatch(f"scale is {found.scale:.7g}, which is not positive")
    scores: Dims = (*q[:3], keys[3])
    for mask in found.masks:
        _check_mask(mask, sizes.of(mask.value), scores)


def _check_mask(mask: Mask, dims: Dims | None, scores: Dims) -> None:
    if dims is None or len(dims) > 4:
        raise Mismatch(f"the mask is {show(dims)}, not of rank 4 at most")
    pairs = list(zip(reversed(dims), reversed(scores), strict=False))
    if any(d != 1 and not _may_equal(d, s) for d, s in pairs):
        raise Mismatch(f"the mask {show(dims)} does not fit the scores {show(scores)}")


def _may_equal(a: int | str, b: int | str) -> bool:
    """Whether two sizes are one as far as the graph tells: names that the model gives tell, made-up ones do not."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if isinstance(a, str) and isinstance(b, str):
        return a == b or "@" in a or "@" in b
    return 1 not in (a, b)
