"""Program: what converters read values from, emit operators into, and give results to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from ._attributes import integer
from .ends import FUSED, End, constant, implied
from .kernels import lacking
from .layout import Order, between, broadcast, moves_data, physical, plain
from .quantized import Stored, is_weight, stored
from .tensors import Grid, Operator, Subgraph, Tensor

#: How the schema numbers the activations that an operator applies to its own result.
_ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}


class Unsupported(Exception):
    """What a converter cannot write, and why."""


@dataclass(frozen=True)
class Held:
    """A tensor that holds a value, its axes in ``order``; codes of the value where the tensor has a grid."""

    tensor: Tensor
    order: Order


class Program:
    """The file as it grows, node by node.

    open_dims: whether the sizes are those of an example, so that none may become part of the file without need.
    integer: whether the node that is being converted computes on codes; ``read`` then gives codes, and floats if not.
    hybrid: whether it computes on floats that its kernel rounds as it runs; ``read`` then gives codes of constants.
    grid: the grid of its results; None for floats. ends: where its results end. makers: what makes each tensor.
    """

    def __init__(self, name: str, open_dims: bool = False) -> None:
        self.open_dims = open_dims
        self.subgraph = Subgraph(name)
        self.held: dict[ir.Value, list[Held]] = {}
        self.arrays: dict[ir.Value, np.ndarray] = {}
        self.shapes: dict[ir.Value, tuple[int, ...]] = {}
        self.done: set[ir.Node] = set()
        self.makers: dict[Tensor, Operator] = {}
        self.integer = False
        self.hybrid = False
        self.grid: Grid | None = None
        self.ends: dict[ir.Value, End] = {}
        self._fuses = False
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._stored: dict[ir.Value, Stored | None] = {}
        self._widened: dict[Tensor, Tensor] = {}
        self._reshaped: dict[tuple[Tensor, tuple[int, ...]], Tensor] = {}
        self._base = name
        self._taken: set[str] = set()

    # What a node is.

    def begin(self, node: ir.Node, ends: dict[ir.Value, End], fuses: bool, grid: Grid | None) -> None:
        """Turn to ``node``. fuses: whether its operator applies activations. grid: of its codes; None for floats."""
        self.ends, self.grid, self.integer = ends, grid, grid is not None
        self._fuses = fuses
        self.hybrid = bool(integer(node, "hybrid", 0))
        self._base = next((v.name for v in node.outputs if v.name), node.op_type)

    def begin_output(self, value: ir.Value) -> None:
        """Turn to an output of the graph, which is floats in ONNX's order."""
        self.ends, self.grid, self.integer, self.hybrid, self._fuses = {}, None, False, False, False
        self._base = value.name or "output"

    @property
    def activation(self) -> int:
        """The activation that the operator of this node has to apply to its own result."""
        end = next(iter(self.ends.values()))
        if not self._fuses or end.activation is None or (self.grid is not None and implied(end, self.grid)):
            return 0
        return _ACTIVATIONS[FUSED.get(end.bounds, "NONE")]  # any other is implied by the grid that follows

    def refuse(self, reason: str) -> NoReturn:
        """Give up on this node. Raises: Unsupported."""
        raise Unsupported(reason)

    # What a value is.

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """Give what a constant holds; None for an activation, and for a constant behind a DequantizeLinear."""
        if value is None:
            return None
        known = self.arrays.get(value)
        return known if known is not None else constant(value)

    def stored(self, value: ir.Value | None) -> Stored | None:
        """Give the codes of a constant that is stored as integers behind a DequantizeLinear; None for any other."""
        if value is None:
            return None
        if value not in self._stored:
            self._stored[value] = stored(value)
        return self._stored[value]

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Give the shape of ``value``, its axes in ONNX's order."""
        if value in self.shapes:
            return self.shapes[value]
        array = self.array(value)
        if array is not None:
            return array.shape
        if value.shape is None or not value.shape.is_static():
            self.refuse(f"the shape of {value.name} is not fixed")
        return tuple(value.shape.numpy())

    def dtype(self, value: ir.Value) -> str:
        """Give the dtype of ``value``, as numpy names it."""
        array = self.arrays.get(value)
        if array is not None:
            return array.dtype.name
        if value.dtype is None:
            self.refuse(f"the type of {value.name} is not known")
        return value.dtype.numpy().name

    def has_codes(self, value: ir.Value) -> bool:
        """Whether codes of ``value`` are at hand."""
        return any(held.tensor.grid is not None for held in self.held.get(value, ()))

    def orders(self, value: ir.Value) -> list[Order]:
        """Give the orders in which ``value`` is at hand; none for a constant, which lies in any."""
        return [held.order for held in self.held.get(value, ())]

    # Reading.

    def read(self, value: ir.Value, order: Order | None = None, at: int | None = None) -> Tensor:
        """Give the tensor that holds ``value``, its axes in ``order``, or in ONNX's: codes where the node is integer.

        at: where one more axis of size 1 is put.
        """
        order = plain(len(self.shape(value))) if order is None else order
        array, codes = self.array(value), self.stored(value)
        if array is None and codes is None:
            tensor = self._moved(value, self._at_hand(value), order)
            return tensor if at is None else self.with_axis(tensor, at)
        widens = codes is not None and not (self.integer or self.hybrid)
        if codes is not None and widens and codes.codes.dtype == np.int32:
            array, widens = codes.values(), False
        if array is not None:
            tensor = self.constant(array.transpose(order) if array.ndim else array, value.name)
        else:
            assert codes is not None
            tensor = self.constant(*codes.moved(order), name=value.name)
        tensor = tensor if at is None else self.with_axis(tensor, at)
        return self.dequantized(tensor) if widens else tensor  # last, or kernels would not see a constant

    def read_weight(self, value: ir.Value, x: ir.Value, order: Order) -> Tensor:
        """Give the weight that ``x`` is multiplied by: its codes wherever ``x`` has codes too.

        A product of codes whose result has no grid is one of floats by codes: the kernel puts the floats on a grid of
        their own as it runs, and multiplies integers.
        """
        codes = self.stored(value)
        if codes is None or not is_weight(codes, order[0]) or not self.has_codes(x):
            return self.read(value, order)
        return self.constant(*codes.moved(order), name=value.name)

    def codes(self, value: ir.Value) -> tuple[Tensor, Order]:
        """Give codes of ``value``, and their order, whatever this node computes on."""
        found = next(held for held in self.held[value] if held.tensor.grid is not None)
        return found.tensor, found.order

    def grid_of(self, value: ir.Value) -> Grid | None:
        """Give the grid of the codes of ``value``."""
        return next((held.tensor.grid for held in self.held.get(value, ()) if held.tensor.grid is not None), None)

    def _at_hand(self, value: ir.Value) -> list[Held]:
        """Give the tensors that hold ``value`` as this node reads it; floats are made of codes where there are none."""
        every = self.held.get(value, [])
        wanted = [held for held in every if (held.tensor.grid is not None) == self.integer]
        if not wanted and every and not self.integer:
            first = every[0]
            wanted = [Held(self.dequantized(first.tensor), first.order)]
            self.held[value].extend(wanted)
        if not wanted:
            self.refuse(f"{value.name} is not at hand")
        return wanted

    def _moved(self, value: ir.Value, at_hand: list[Held], order: Order) -> Tensor:
        shape = self.shape(value)
        for held in at_hand:
            if held.order == order:
                return held.tensor
        near = next((held for held in at_hand if not moves_data(shape, held.order, order)), at_hand[0])
        tensor = self.reordered(near.tensor, near.order, order)
        self.held[value].append(Held(tensor, order))
        return tensor

    def reordered(self, tensor: Tensor, held: Order, order: Order) -> Tensor:
        """Bring a tensor whose axes lie in ``held`` into ``order``."""
        permutation = between(held, order)
        shape = physical(tensor.shape, permutation)
        sizes = dict(zip(held, tensor.shape, strict=True))
        if held == order:
            return tensor
        if not self.open_dims and not moves_data([sizes[axis] for axis in sorted(sizes)], held, order):
            return self.reshaped(tensor, shape)
        return self.emit("TRANSPOSE", [tensor, self.ints(permutation)], shape, grid=tensor.grid)

    def reshaped(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Give ``tensor`` another shape."""
        shape = tuple(shape)
        maker = self.makers.get(tensor)
        if maker is not None and maker.kind == "RESHAPE" and maker.inputs[0] is not None:
            tensor = maker.inputs[0]
        if shape == tensor.shape:
            return tensor
        if (tensor, shape) not in self._reshaped:
            made = self.emit("RESHAPE", [tensor, self.ints(shape)], shape, grid=tensor.grid, newShape=list(shape))
            made.least = tensor.least
            self._reshaped[tensor, shape] = made
        return self._reshaped[tensor, shape]

    # Emitting.

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: str = "",
        grid: Grid | str | None = "own",
        **options: Any,
    ) -> Tensor:
        """Emit an operator of one result.

        shape, dtype: of the result; the dtype of the first input where none is given. grid: of the result; "own" is
        that of the results of this node. options: fields of the operator's table.
        """
        return self.emit_many(kind, inputs, [shape], dtype, grid, **options)[0]

    def emit_many(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shapes: Sequence[Sequence[int]],
        dtype: str = "",
        grid: Grid | str | None = "own",
        **options: Any,
    ) -> list[Tensor]:
        """Emit an operator of several results. Raises: Unsupported where no kernel takes ``inputs``."""
        if reason := lacking(kind, inputs):
            self.refuse(f"no kernel for {reason}")
        first = next(tensor for tensor in inputs if tensor is not None)
        kept = self.grid if isinstance(grid, str) else grid
        results = [Tensor(self.name(), dtype or first.dtype, tuple(shape), grid=kept) for shape in shapes]
        operator = Operator(kind, list(inputs), results, options)
        self.subgraph.operators.append(operator)
        self.makers |= dict.fromkeys(results, operator)
        return results

    def dequantized(self, codes: Tensor) -> Tensor:
        """Give the floats that ``codes`` stand for; a constant is widened once."""
        if codes.data is None:
            return self.emit("DEQUANTIZE", [codes], codes.shape, "float32", None)
        if codes not in self._widened:
            self._widened[codes] = self.emit("DEQUANTIZE", [codes], codes.shape, "float32", None)
        return self._widened[codes]

    def requantized(self, tensor: Tensor, grid: Grid) -> Tensor:
        """Put floats, or codes of another grid, on ``grid``."""
        return tensor if tensor.grid == grid else self.emit("QUANTIZE", [tensor], tensor.shape, "int8", grid)

    def fixed_grid(self, scale: float, zero: int) -> Grid | None:
        """Give the grid of a kernel that gives its codes on that one alone; None for floats."""
        return Grid((scale,), zero) if self.integer else None

    def constant(self, array: np.ndarray, grid: Grid | str | None = None, name: str | None = None) -> Tensor:
        """Give a constant tensor; the same one for the same numbers."""
        if isinstance(grid, str):
            grid, name = None, grid
        array = np.asarray(array, order="C")
        key = (array.dtype.name, array.shape, grid, array.tobytes())
        if key not in self._constants:
            unique = self.name(name or "constant")
            self._constants[key] = Tensor(unique, array.dtype.name, array.shape, array, grid)
        return self._constants[key]

    def ints(self, numbers: Sequence[int]) -> Tensor:
        """Give a vector of int32: a shape, a permutation, axes."""
        return self.constant(np.array(numbers, np.int32), name="ints")

    def number(self, number: float, dtype: str = "float32") -> Tensor:
        """Give one number."""
        return self.constant(np.array(number, dtype), name="number")

    def with_axis(self, tensor: Tensor, at: int) -> Tensor:
        """Give a constant one more axis, of size 1, before axis ``at``."""
        if tensor.data is None:
            return self.reshaped(tensor, (*tensor.shape[:at], 1, *tensor.shape[at:]))
        grid = tensor.grid
        if grid is not None and grid.axis is not None and grid.axis >= at:
            grid = Grid(grid.scale, grid.zero, grid.axis + 1)
        return self.constant(np.expand_dims(tensor.data, at), grid, tensor.name)

    # Giving.

    def give(self, value: ir.Value, tensor: Tensor, order: Order | None = None) -> None:
        """Let ``tensor``, its axes in ``order``, be ``value``, a result of the node that is being converted.

        What its end says is done with it: an activation that the operator did not apply, the grid that follows.
        """
        order = plain(len(tensor.shape)) if order is None else order
        end = self.ends.get(value, End(value))
        if self.integer and end.grid is not None:
            self._give_codes(end, tensor, order)
        elif not self.integer and self._fuses and end.activation is not None:
            tensor = self._activated(tensor, end)
            tensor.least = max(end.bounds[0], tensor.least if tensor.least is not None else -np.inf)
            self.done.add(end.activation)
            self._hold(end.value, tensor, order)
        else:
            self._hold(value, tensor, order)

    def _give_codes(self, end: End, tensor: Tensor, order: Order) -> None:
        assert end.grid is not None
        if end.activation is not None:
            self.done.add(end.activation)
            if not implied(end, end.grid):
                tensor = self._activated(tensor, end)
        tensor = self.requantized(tensor, end.grid)
        for node in end.quantize:
            self.done.add(node)
            self._hold(node.outputs[0], tensor, order)
        if not end.quantize:
            self._hold(end.value, tensor, order)

    def _activated(self, tensor: Tensor, end: End) -> Tensor:
        """Apply the activation of ``end``, unless what made ``tensor`` has done so, or its grid has no other codes."""
        kind, maker = FUSED[end.bounds], self.makers.get(tensor)
        while maker is not None and maker.kind == "RESHAPE" and maker.inputs[0] is not None:
            maker = self.makers.get(maker.inputs[0])
        fused = maker is not None and maker.options.get("fusedActivationFunction") == _ACTIVATIONS[kind]
        if fused or (self._fuses and tensor.grid is not None and implied(end, tensor.grid)):
            return tensor
        return self.emit(kind, [tensor], tensor.shape, grid=tensor.grid)

    def _hold(self, value: ir.Value, tensor: Tensor, order: Order) -> None:
        self.held.setdefault(value, []).append(Held(tensor, order))
        sizes = dict(zip(order, tensor.shape, strict=True))
        self.shapes.setdefault(value, tuple(sizes[axis] for axis in range(len(sizes))))

    def alias(self, value: ir.Value, source: ir.Value) -> None:
        """Let ``value`` be what ``source`` is."""
        for held in list(self.held[source]):
            self._hold(value, held.tensor, held.order)

    # Several at once.

    def common_order(self, values: Sequence[ir.Value | None], rank: int) -> Order:
        """Give the order of ``rank`` axes in which the fewest elements of ``values`` have to be moved."""
        present = [v for v in values if v is not None and self.array(v) is None and self.stored(v) is None]
        full = [v for v in present if len(self.shape(v)) == rank]
        wishes = list(dict.fromkeys(order for v in full for order in self.orders(v))) or [plain(rank)]
        return min(wishes, key=lambda order: sum(self._cost(v, order) for v in present))

    def _cost(self, value: ir.Value, order: Order) -> int:
        shape = self.shape(value)
        own = broadcast(order, len(shape), len(order))
        free = any(not moves_data(shape, held, own) for held in self.orders(value))
        return 0 if free else int(np.prod(shape))

    def read_broadcast(self, value: ir.Value, order: Order) -> Tensor:
        """Read ``value`` as an operand of an elementwise operator whose result lies in ``order``."""
        shape, rank = self.shape(value), len(order)
        if not shape or len(shape) == rank:
            return self.read(value, order if shape else None)
        whole = (1,) * (rank - len(shape)) + shape
        array = self.array(value)
        if array is not None:
            return self.constant(array.reshape(whole).transpose(order), name=value.name)
        own = broadcast(order, len(shape), rank)
        return self.reshaped(self.read(value, own), physical(whole, order))

    def name(self, wish: str = "") -> str:
        """Give a name that no tensor has yet, as near to ``wish`` as can be."""
        wish = wish or self._base
        name, count = wish, 0
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name
