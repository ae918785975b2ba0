"""Giving an Attention its plainest form: grouped heads, caches as caches, and [batch, sequence, hidden] throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ._attention import SWAP
from ._attention_dims import Dims, same_number
from ._attention_sizes import Sizes
from ._match import producer, remove_dead, take_over

_KEEPS_DTYPE = {"Add", "Concat", "Expand", "Reshape", "RotaryEmbedding", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


def insert(
    before: ir.Node,
    sizes: Sizes,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str | Sequence[int] | ir.TensorProtocol] | None = None,
) -> ir.Value:
    """Put a new node in front of ``before``; gives its output."""
    assert before.graph is not None
    node = ir.node(op, inputs, attributes or {})
    before.graph.insert_before(before, node)
    if op in _KEEPS_DTYPE and inputs[0] is not None and inputs[0].dtype is not None:
        node.outputs[0].dtype = inputs[0].dtype
    sizes.note(node)
    return node.outputs[0]


def literal(before: ir.Node, sizes: Sizes, array: np.ndarray) -> ir.Value:
    """Put a constant in front of ``before``."""
    value = insert(before, sizes, "Constant", [], {"value": ir.tensor(array)})
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    sizes.set(value, array.shape)
    return value


def transposed(value: ir.Value, perm: Sequence[int], before: ir.Node, sizes: Sizes) -> ir.Value:
    """Give ``value`` with its axes permuted; two transposes in a row are one, or none."""
    inner = producer(value, "Transpose")
    if inner is not None and "perm" in inner.attributes and inner.inputs[0] is not None:
        first = inner.attributes["perm"].as_ints()
        value, perm = inner.inputs[0], [first[p] for p in perm]
    if list(perm) == list(range(len(perm))):
        return value
    return insert(before, sizes, "Transpose", [value], {"perm": list(perm)})


def keys_of(transposed_keys: ir.Value, before: ir.Node, sizes: Sizes) -> ir.Value:
    """Give k: [batch, heads, total, size] from its transpose, undoing what the exporter did where that is seen."""
    inner = _flat_transpose(transposed_keys, sizes)
    return inner if inner is not None else transposed(transposed_keys, (0, 1, 3, 2), before, sizes)


def _flat_transpose(value: ir.Value, sizes: Sizes) -> ir.Value | None:
    """See through ``Reshape(Transpose(Reshape(x)))`` that swaps the last two axes with the others flattened."""
    last = producer(value, "Reshape")
    swap = producer(last.inputs[0], "Transpose") if last is not None else None
    first = producer(swap.inputs[0], "Reshape") if swap is not None else None
    if swap is None or first is None or swap.attributes["perm"].as_ints() != (0, 2, 1):
        return None
    x, flat, out = sizes.of(first.inputs[0]), sizes.of(first.outputs[0]), sizes.of(value)
    if x is None or flat is None or out is None or len(x) != 4:
        return None
    # All four tensors have equally many elements, so the first axes agree where the others do.
    return first.inputs[0] if flat[1:] == x[2:] and out[1:] == (x[1], x[3], x[2]) else None


def simplify(attention: ir.Node, sizes: Sizes) -> bool:
    """Bring ``attention``, whose inputs are of rank 4, into its plainest form. Says whether that changed it."""
    dims = sizes.of(attention.inputs[0])
    if dims is None or len(dims) != 4 or (len(attention.outputs) > 3 and attention.outputs[3].uses()):
        return False
    grouped = _group_heads(attention, sizes)
    cached = _take_caches(attention, sizes)
    return _drop_head_axis(cached or attention, sizes) or grouped or cached is not None


def _group_heads(attention: ir.Node, sizes: Sizes) -> bool:
    """Let query heads share the heads of k and v, where those are repeated for them."""
    k, v = (_unrepeated(x, sizes) for x in attention.inputs[1:3])
    if k is None or v is None or k[2] != v[2]:
        return False
    old = [x.producer() for x in attention.inputs[1:3] if x is not None]
    for i, (x, axis, _) in enumerate((k, v), 1):
        attention.replace_input_with(i, x if axis == 1 else transposed(x, SWAP, attention, sizes))
    remove_dead(*old)
    return True


def _unrepeated(value: ir.Value | None, sizes: Sizes) -> tuple[ir.Value, int, int] | None:
    """See through the repetition of each head of ``value``: [batch, heads, total, size].

    Returns: what is repeated, its axis of heads (1, or 2 where a Transpose follows) and how often.
    """
    if value is None:
        return None
    swap = producer(value, "Transpose")
    if swap is not None and swap.attributes["perm"].as_ints() == SWAP:
        found = _repeated(swap.inputs[0], 2, sizes)
        return (found[0], 2, found[1]) if found is not None else None
    found = _repeated(value, 1, sizes)
    return (found[0], 1, found[1]) if found is not None else None


def _repeated(value: ir.Value | None, axis: int, sizes: Sizes) -> tuple[ir.Value, int] | None:
    """Read ``value`` as a tensor of rank 4 of which each slice along ``axis`` is repeated: that tensor, and how often.

    It is written as Unsqueeze, then Expand or a Concat of the same several times, then Reshape.
    """
    joined = producer(value, "Reshape")
    many = producer(joined.inputs[0], "Expand", "Concat") if joined is not None else None
    one = producer(many.inputs[0], "Unsqueeze", "Reshape") if many is not None else None
    if value is None or many is None or one is None:
        return None
    if many.op_type == "Concat" and any(x is not many.inputs[0] for x in many.inputs):
        return None
    x, out = sizes.of(one.inputs[0]), sizes.of(value)
    single, several = sizes.of(one.outputs[0]), sizes.of(many.outputs[0])
    if x is None or out is None or single is None or several is None or len(x) != 4 or len(several) != 5:
        return None
    heads, times = x[axis], several[axis + 1]
    if not isinstance(heads, int) or not isinstance(times, int):
        return None
    as_expected = (
        single == (*x[: axis + 1], 1, *x[axis + 1 :])
        and several == (*x[: axis + 1], times, *x[axis + 1 :])
        and same_number(out, (*x[:axis], heads * times, *x[axis + 1 :]))
    )
    return (one.inputs[0], times) if as_expected and one.inputs[0] is not None else None


def _take_caches(attention: ir.Node, sizes: Sizes) -> ir.Node | None:
    """Let the Attention append to the caches itself, where k and v are a cache with the new ones behind it.

    Returns: the Attention that does, in the place of ``attention``; None where there are no caches.
    """
    if len(attention.inputs) > 4 or len(attention.outputs) > 1 or _flag(attention, "is_causal"):
        return None
    k, v = (_appended(x, attention) for x in attention.inputs[1:3])
    if k is None or v is None or k is v:
        return None
    q, _, _, *mask = attention.inputs
    inputs = [q, k.inputs[1], v.inputs[1], mask[0] if mask else None, k.inputs[0], v.inputs[0]]
    kept = tuple(attention.attributes.values())
    assert attention.graph is not None
    new = ir.Node("", "Attention", inputs, kept, num_outputs=3, name=attention.name)
    attention.graph.insert_before(attention, new)
    for was, now in zip((attention.outputs[0], k.outputs[0], v.outputs[0]), new.outputs, strict=True):
        dims = sizes.of(was)
        take_over(was, now)
        if dims is not None:
            sizes.set(now, dims)
    remove_dead(attention, k, v)
    return new


def _appended(value: ir.Value | None, attention: ir.Node) -> ir.Node | None:
    """Find the Concat that appends to a cache: [batch, heads, total, size], read by ``attention`` alone."""
    join = producer(value, "Concat")
    if join is None or len(join.inputs) != 2 or join.attributes["axis"].as_int() not in (2, -2):
        return None
    return join if all(use.node is attention for use in join.outputs[0].uses()) else None


def split_heads(value: ir.Value | None, sizes: Sizes) -> tuple[ir.Value, Dims] | None:
    """See through the splitting of heads: ``value`` as Reshape and Transpose of an x: [batch, sequence, hidden].

    Returns: x, and [batch, sequence, heads, size].
    """
    swap = producer(value, "Transpose")
    if swap is None or swap.attributes["perm"].as_ints() != SWAP:
        return None
    return merged_heads(swap.inputs[0], sizes)


def merged_heads(value: ir.Value | None, sizes: Sizes) -> tuple[ir.Value, Dims] | None:
    """See through the Reshape that splits the heads of an x: [batch, sequence, hidden]; gives what split_heads does."""
    node = producer(value, "Reshape")
    if node is None:
        return None
    x, out = sizes.of(node.inputs[0]), sizes.of(value)
    if x is None or out is None or len(x) != 3 or len(out) != 4 or node.inputs[0] is None:
        return None
    heads, size = out[2:]
    whole = isinstance(heads, int) and isinstance(size, int) and same_number(x, (*out[:2], heads * size))
    return (node.inputs[0], out) if whole else None


def _drop_head_axis(attention: ir.Node, sizes: Sizes) -> bool:
    """Give ``attention`` q, k and v as [batch, sequence, hidden], where that is what they were split from."""
    splits = [split_heads(x, sizes) for x in attention.inputs[:3]]
    merges = _merges(attention.outputs[0], sizes)
    if merges is None or any(s is None for s in splits):
        return False
    (q, (batch, sequence, heads, _)), (k, (*_, kv_heads, _)), (v, (*_, size)) = (s for s in splits if s is not None)
    assert isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(size, int)
    old = [x.producer() for x in attention.inputs[:3] if x is not None]
    for i, x in enumerate((q, k, v)):
        attention.replace_input_with(i, x)
    attention.attributes.add(ir.AttrInt64("q_num_heads", heads))
    attention.attributes.add(ir.AttrInt64("kv_num_heads", kv_heads))
    output = attention.outputs[0]
    if output.type is not None:
        output.shape = ir.Shape([d if isinstance(d, int) else None for d in (batch, sequence, heads * size)])
    sizes.set(output, (batch, sequence, heads * size))
    for merge in merges:
        _merge_no_more(merge, output, sizes)
    remove_dead(*old)
    return True


def _merges(output: ir.Value, sizes: Sizes) -> list[ir.Node] | None:
    """List the Reshapes that, after a Transpose, merge the heads of ``output``; None where something else reads it."""
    if output.is_graph_output():
        return None
    swaps = [use.node for use in output.uses()]
    if any(producer(n.outputs[0], "Transpose") is None or n.attributes["perm"].as_ints() != SWAP for n in swaps):
        return None
    if any(n.outputs[0].is_graph_output() for n in swaps):
        return None
    merges = [use.node for n in swaps for use in n.outputs[0].uses()]
    return merges if all(_merges_heads(n, sizes) for n in merges) else None


def _merges_heads(node: ir.Node, sizes: Sizes) -> bool:
    """Whether ``node`` reshapes to something that does not depend on heads being apart."""
    target = sizes.numbers(node.inputs[1]) if node.op_type == "Reshape" and node.domain == "" else None
    return target is not None and 0 not in target[2:]


def _merge_no_more(merge: ir.Node, output: ir.Value, sizes: Sizes) -> None:
    swap = merge.inputs[0].producer() if merge.inputs[0] is not None else None
    if same_number(sizes.of(merge.outputs[0]), sizes.of(output)) and not merge.outputs[0].is_graph_output():
        merge.outputs[0].replace_all_uses_with(output)
        remove_dead(merge)
    else:
        merge.replace_input_with(0, output)
    remove_dead(swap)


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() != 0
