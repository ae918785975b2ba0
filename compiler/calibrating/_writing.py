"""Writing nodes into a graph, or into a branch of an If in it, so that what they give is an output of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
import onnx_ir as ir

from polycast.model import values

#: The input that says which sample this is: [1] int64, not negative.
TURN = "polycast.turn"

#: The longest stride of ``Body.strided``.
LONGEST_STRIDE = 1 << 14

#: An If, and the branch of it that is meant.
Branch = tuple[ir.Node, ir.Graph]


@dataclass(frozen=True)
class Place:
    """A value, and the branches that it lies in, outermost first."""

    value: ir.Value
    branches: tuple[Branch, ...] = ()


def places(model: ir.Model) -> dict[str, Place]:
    """Give, by name, every value that can be read from outside: of the main graph and of branches of If, nested too.

    Where two branches use one name, it means the first. What lies in the body of a Loop or a Scan has a value for
    each turn of it, and cannot be read.
    """
    found: dict[str, Place] = {}
    for place in _places(model.graph, ()):
        found.setdefault(place.value.name or "", place)
    return found


def _places(graph: ir.Graph, branches: tuple[Branch, ...]) -> Iterator[Place]:
    for value in values(graph):
        yield Place(value, branches)
    for node in graph:
        if _is_if(node):
            for body in _branches(node):
                yield from _places(body, (*branches, (node, body)))


def _is_if(node: ir.Node) -> bool:
    return node.op_type == "If" and node.domain == ""


def _branches(node: ir.Node) -> list[ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values()]


class Outputs:
    """The outputs that a model is given in place of its own, and the constants that their nodes share."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names: list[str] = []
        self._numbers = count()
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._turn: ir.Value | None = None
        self.graph.outputs.clear()

    def name(self) -> str:
        """Give a name that nothing has."""
        return f"polycast.{next(self._numbers)}"

    def constant(self, numbers: object, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Give the constant of the main graph that holds ``numbers``."""
        array = np.asarray(numbers, dtype.numpy())
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(array, dtype=dtype, name=self.name())
            value = ir.Value(
                name=tensor.name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def turn(self) -> ir.Value:
        """Give the input that says which sample this is."""
        if self._turn is None:
            self._turn = ir.Value(name=TURN, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
            self.graph.inputs.append(self._turn)
        return self._turn

    def give(self, value: ir.Value, branches: Sequence[Branch], otherwise: np.ndarray) -> int:
        """Make ``value``, made in the last of ``branches``, an output of the model; give its number.

        otherwise: what the output is in a run that does not take these branches.
        """
        for node, body in reversed(branches):
            for other in _branches(node):
                other.outputs.append(value if other is body else self._stand_in(other, otherwise, value.dtype))
            node.resize_outputs(len(node.outputs) + 1)
            lifted = node.outputs[-1]
            lifted.name, lifted.type = self.name(), value.type
            value = lifted
        self.graph.outputs.append(value)
        self.names.append(value.name or "")
        return len(self.names) - 1

    def _stand_in(self, body: ir.Graph, array: np.ndarray, dtype: ir.DataType | None) -> ir.Value:
        output = ir.Value(name=self.name(), type=ir.TensorType(dtype) if dtype else None)
        body.append(ir.node("Constant", [], {"value": ir.tensor(array)}, outputs=[output], name=self.name()))
        return output


class Body:
    """Appends nodes to the body that ``place`` lies in: a branch of an If, or the main graph."""

    def __init__(self, outputs: Outputs, place: Place) -> None:
        self.outputs = outputs
        self.branches = place.branches
        self._graph = place.branches[-1][1] if place.branches else outputs.graph

    def add(
        self, op: str, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: int | Sequence[int]
    ) -> ir.Value:
        """Append a node; what it gives has the dtype of its first input where ``dtype`` is None."""
        output = ir.Value(name=self.outputs.name(), type=ir.TensorType(dtype or inputs[0].dtype or ir.DataType.FLOAT))
        self._graph.append(ir.node(op, inputs, attributes, outputs=[output], name=self.outputs.name()))
        return output

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Convert ``value`` to ``dtype``."""
        return self.add("Cast", value, dtype=dtype, to=dtype)

    def constant(self, numbers: object, like: ir.Value | None = None) -> ir.Value:
        """Give a constant, int64 or of the dtype of ``like``."""
        return self.outputs.constant(numbers, like.dtype if like and like.dtype else ir.DataType.INT64)

    def strided(self, value: ir.Value, most: int) -> ir.Value:
        """Take about ``most`` of what lies along the first axis of ``value``, evenly, from where the turn says.

        The strides are primes: they fall into step with no inner axis, so that every index of it is met.
        """
        length = self.add("Shape", value, dtype=ir.DataType.INT64, start=0, end=1)
        wanted = self.add("Min", self.add("Div", length, self.constant([most])), self.constant([LONGEST_STRIDE]))
        stride = self.add("Gather", self.constant(_primes()), wanted)
        start = self.add("Mod", self.outputs.turn(), stride)
        end, axes = self.constant([np.iinfo(np.int64).max]), self.constant([0])
        return self.add("Slice", value, start, end, axes, stride)


@cache
def _primes() -> np.ndarray:
    """For each number up to LONGEST_STRIDE, the first prime from there on, but 1 for 0 and 1: int64."""
    numbers = np.arange(2 * LONGEST_STRIDE)
    is_prime = numbers > 1
    for number in range(2, int(numbers[-1] ** 0.5) + 1):
        is_prime[number * number :: number] = False
    primes = numbers[is_prime]
    following = primes[np.searchsorted(primes, numbers[: LONGEST_STRIDE + 1])]
    following[:2] = 1
    return following
