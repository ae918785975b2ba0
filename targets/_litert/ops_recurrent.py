"""Recurrent layers, step by step: as many operators as there are steps, and the sums of ONNX to the bit of rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ._attributes import integer, operand, text
from .program import Program
from .quantized import Stored
from .registry import converts
from .tensors import Grid, Tensor

#: Every step is written out: a file of more of them than this is larger than its weights, and slow to open.
_STEPS = 128

_ACTIVATIONS = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "Relu": "RELU"}

#: The activations of a layer that names none.
_USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@dataclass(frozen=True)
class Cell:
    """One direction of a layer, hidden: H units.

    r: [gates * H, H], bias: [gates * H], peepholes: [3 * H] or None. activations: LiteRT's names, in ONNX's order.
    """

    to: Program
    hidden: int
    r: Stored
    bias: np.ndarray
    peepholes: np.ndarray | None
    activations: tuple[str, ...]
    linear_before_reset: bool = False

    def act(self, which: int, x: Tensor) -> Tensor:
        """Apply the activation of that number."""
        return self.to.emit(self.activations[which], [x], x.shape)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """Add two tensors of one shape, or one and a vector."""
        return self.to.emit("ADD", [a, b], a.shape)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two tensors of one shape, or one and a vector."""
        return self.to.emit("MUL", [a, b], a.shape)

    def recurrence(self, x: Tensor, bias: np.ndarray, rows: slice = slice(None)) -> Tensor:
        """Give ``x @ r.T + bias``, or some columns of it, x: [B, H]."""
        return product(self.to, x, _rows(self.r, rows), bias[rows])

    def gates(self, sums: Tensor) -> list[Tensor]:
        """Cut [B, gates * H] into [B, H] for each gate."""
        count = sums.shape[1] // self.hidden
        if count == 1:
            return [sums]
        at = self.to.number(1, "int32")
        return self.to.emit_many(
            "SPLIT", [at, sums], [(sums.shape[0], self.hidden)] * count, sums.dtype, numSplits=count
        )

    def peephole(self, which: int) -> Tensor | None:
        """Give the weights by which the state opens a gate: [H]."""
        if self.peepholes is None:
            return None
        return self.to.constant(self.peepholes[which * self.hidden : (which + 1) * self.hidden], name="peephole")


State = tuple[Tensor, ...]
Step = Callable[[Cell, Tensor, State], State]


def _lstm(cell: Cell, x: Tensor, state: State) -> State:
    """One step. x: what the input adds to the sums, [B, 4 * H]: input, output, forget gate, candidate."""
    hidden, memory = state
    sums = cell.add(x, cell.recurrence(hidden, np.zeros_like(cell.bias)))
    i, o, f, c = cell.gates(sums)

    def peeped(gate: Tensor, which: int, at: Tensor) -> Tensor:
        weights = cell.peephole(which)
        return gate if weights is None else cell.add(gate, cell.multiply(at, weights))

    i, f = cell.act(0, peeped(i, 0, memory)), cell.act(0, peeped(f, 2, memory))
    memory = cell.add(cell.multiply(f, memory), cell.multiply(i, cell.act(1, c)))
    return cell.multiply(cell.act(0, peeped(o, 1, memory)), cell.act(2, memory)), memory


def _gru(cell: Cell, x: Tensor, state: State) -> State:
    """One step. x: what the input adds to the sums, [B, 3 * H]: update, reset gate, candidate."""
    (hidden,), size = state, cell.hidden
    xz, xr, xh = cell.gates(x)
    split = 3 * size if cell.linear_before_reset else 2 * size
    sums = cell.gates(cell.recurrence(hidden, cell.bias, slice(split)))
    z, r = cell.act(0, cell.add(xz, sums[0])), cell.act(0, cell.add(xr, sums[1]))
    if cell.linear_before_reset:
        candidate = cell.multiply(r, sums[2])
    else:
        candidate = cell.recurrence(cell.multiply(r, hidden), cell.bias, slice(split, None))
    h = cell.act(1, cell.add(xh, candidate))
    rest = cell.to.emit("SUB", [hidden, h], h.shape)
    return (cell.add(h, cell.multiply(z, rest)),)


def _rnn(cell: Cell, x: Tensor, state: State) -> State:
    """One step. x: what the input adds to the sums, [B, H]."""
    return (cell.act(0, cell.add(x, cell.recurrence(state[0], np.zeros_like(cell.bias)))),)


_STEP: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


@converts("LSTM", "GRU", "RNN")
def recurrent(node: ir.Node, to: Program) -> None:
    """Write x: [T, B, I] -> y: [T, directions, B, H], and the states after the last step: [directions, B, H]."""
    x = node.inputs[0]
    assert x is not None
    swapped = bool(integer(node, "layout", 0))
    tensor = to.read(x, (1, 0, 2) if swapped else None)
    _check(node, to, tensor.shape[0])
    directions = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[text(node, "direction", "forward")]
    states = _starts(node, to, len(directions), tensor.shape[1], swapped)
    steps, ends = [], []
    for at, direction in enumerate(directions):
        hidden, last = _direction(node, to, tensor, at, direction, tuple(state[at] for state in states))
        steps.append(hidden)
        ends.append(last)
    _give_steps(node, to, steps, swapped)
    for which, value in enumerate(node.outputs[1:]):
        parts = [to.reshaped(end[which], (1, *end[which].shape)) for end in ends]
        whole = _joined(to, parts, 0)
        to.give(value, whole, (1, 0, 2) if swapped else None)


def _check(node: ir.Node, to: Program, steps: int) -> None:
    lengths = operand(node, 4)
    known = to.array(lengths)
    if lengths is not None and (known is None or any(int(length) != steps for length in known)):
        to.refuse("sequences of other lengths than the tensor")
    if steps > _STEPS:
        to.refuse(f"{steps} steps; up to {_STEPS} are written out")
    for name, usual in (("clip", 0.0), ("input_forget", 0)):
        if name in node.attributes and float(node.attributes[name].value) != usual:
            to.refuse(f"its {name}")
    if unknown := set(_named(node)) - set(_ACTIVATIONS):
        to.refuse(f"the activation {min(unknown)}")


def _named(node: ir.Node) -> Sequence[str]:
    if "activations" in node.attributes:
        return tuple(node.attributes["activations"].as_strings())
    return _USUAL[node.op_type] * (2 if text(node, "direction", "forward") == "bidirectional" else 1)


def _starts(node: ir.Node, to: Program, directions: int, batch: int, swapped: bool) -> list[list[Tensor]]:
    """Give the states before the first step: by state, by direction, [B, H]; zeros where none are given."""
    hidden = integer(node, "hidden_size", 0)
    starts = []
    for index in (5, 6)[: 2 if node.op_type == "LSTM" else 1]:
        value = operand(node, index)
        if value is None:
            zeros = to.constant(np.zeros((batch, hidden), np.float32), name="zeros")
            starts.append([zeros] * directions)
            continue
        whole = to.read(value, (1, 0, 2) if swapped else None)
        shape = (batch, hidden)
        cut = [_cut(to, whole, at, shape) for at in range(directions)]
        starts.append(cut)
    return starts


def _cut(to: Program, tensor: Tensor, at: int, shape: tuple[int, ...]) -> Tensor:
    """Give one entry along the first axis."""
    if len(tensor.shape) and tensor.shape[0] == 1:
        return to.reshaped(tensor, shape)
    begin = to.ints([at] + [0] * len(shape))
    return to.reshaped(to.emit("SLICE", [tensor, begin, to.ints((1, *shape))], (1, *shape)), shape)


def _direction(
    node: ir.Node, to: Program, x: Tensor, at: int, direction: int, state: State
) -> tuple[list[Tensor], State]:
    """Go through the steps one way. Returns: the hidden state after each step, in the order of x; the last states."""
    w, r = (_weight(node, to, index, at) for index in (1, 2))
    bias, peepholes = (_of_direction(node, to, index, at) for index in (3, 7))
    gates = len(w.codes)
    named = _named(node)
    each = len(_USUAL[node.op_type])
    activations = tuple(_ACTIVATIONS[name] for name in named[at * each : (at + 1) * each])
    both = np.zeros(2 * gates, np.float32) if bias is None else bias
    of_input, of_state = both[:gates], both[gates:]
    keeps = node.op_type == "GRU"  # whose state's bias lies inside what the reset gate multiplies
    before = bool(integer(node, "linear_before_reset", 0))
    cell = Cell(to, r.codes.shape[1], r, of_state, peepholes, activations, before)
    steps, batch, width = x.shape
    flat = to.reshaped(x, (steps * batch, width))
    sums = product(to, flat, w, of_input if keeps else of_input + of_state)
    rows = to.reshaped(sums, (steps, batch, gates))
    found: list[Tensor] = []
    for step in range(steps)[::direction]:
        state = _STEP[node.op_type](cell, _cut(to, rows, step, (batch, gates)), state)
        found.append(state[0])
    return found[::direction], state


def _weight(node: ir.Node, to: Program, index: int, at: int) -> Stored:
    """Give the weight of one direction: [gates * H, K], as it is stored."""
    value = node.inputs[index]
    known = to.stored(value)
    if known is not None and known.grid is None:
        return Stored(known.codes[at], None)
    if known is None or known.grid is None or known.grid.axis != 1:
        array = _of_direction(node, to, index, at)
        assert array is not None
        return Stored(array, None)
    codes = known.codes[at]
    return Stored(codes, Grid(known.grid.scale, known.grid.zero, 0))


def _rows(weight: Stored, rows: slice) -> Stored:
    grid = weight.grid
    return Stored(weight.codes[rows], grid and Grid(grid.scale[rows], grid.zero, grid.axis))


def product(to: Program, x: Tensor, weight: Stored, bias: np.ndarray) -> Tensor:
    """Give ``x @ weight.T + bias``, x: [rows, K], weight: [N, K]."""
    tensor = to.constant(weight.codes, weight.grid, "weight")
    tensor = tensor if tensor.dtype == "float32" else to.dequantized(tensor)
    return to.emit("FULLY_CONNECTED", [x, tensor, to.constant(bias, name="bias")], (x.shape[0], len(weight.codes)))


def _of_direction(node: ir.Node, to: Program, index: int, at: int) -> np.ndarray | None:
    value = operand(node, index)
    if value is None:
        return None
    array, known = to.array(value), to.stored(value)
    if array is None and known is None:
        to.refuse("its weights are not constant")
    array = known.values() if known is not None else array
    assert array is not None
    return np.ascontiguousarray(array[at])


def _give_steps(node: ir.Node, to: Program, directions: list[list[Tensor]], swapped: bool) -> None:
    """Give y: [T, directions, B, H], where something reads it."""
    y = node.outputs[0]
    if not y.name or not (y.uses() or y.is_graph_output()):
        return
    parts = []
    for each in zip(*directions, strict=True):
        stacked = [to.reshaped(tensor, (1, 1, *tensor.shape)) for tensor in each]
        parts.append(_joined(to, stacked, 1))
    to.give(y, _joined(to, parts, 0), (1, 2, 0, 3) if swapped else None)


def _joined(to: Program, parts: list[Tensor], axis: int) -> Tensor:
    """Put parts of size 1 along ``axis`` behind one another."""
    if len(parts) == 1:
        return parts[0]
    shape = (*parts[0].shape[:axis], len(parts), *parts[0].shape[axis + 1 :])
    return to.emit("CONCATENATION", parts, shape, axis=axis)
