"""Files for every size: one interpreter goes from size to size, up and down, and is what onnxruntime is at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from litert_files import close, exact, graph, kinds, problems, read, written

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((100, 8)).astype(np.float32)
MASK = RNG.standard_normal((100, 100)).astype(np.float32)
WEIGHT = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
FILTER = RNG.standard_normal((8, 8, 4)).astype(np.float32)


class Runs:
    """A file that is open, and takes the sizes of what it is given."""

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter: Any = Interpreter(model_content=data, num_threads=1)
        self.inputs = {port.name.decode(): port.tensorIndex for port in read(data).signatureDefs[0].inputs}

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, array in feeds.items():
            self.interpreter.resize_tensor_input(self.inputs[name], array.shape)
        self.interpreter.allocate_tensors()
        planned = [each["shape"].tolist() for each in self.interpreter.get_output_details()]
        for name, array in feeds.items():
            self.interpreter.set_tensor(self.inputs[name], array)
        self.interpreter.invoke()
        found = [self.interpreter.get_tensor(each["index"]) for each in self.interpreter.get_output_details()]
        assert planned == [list(array.shape) for array in found], "a size was not known before the run"
        return found

    @property
    def delegates(self) -> int:
        """How many parts XNNPACK takes: every part ends where an operator is that it does not take."""
        return [each["op_name"] for each in self.interpreter._get_ops_details()].count("DELEGATE")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def holds(proto: onnx.ModelProto, data: bytes, shapes: Sequence[tuple[int, ...]], terms: int) -> Runs:
    """Hold one interpreter to onnxruntime, at each of ``shapes`` of the input x."""
    run = Runs(data)
    for shape in shapes:
        feeds = {"x": normal(*shape)}
        for found, want in zip(run(feeds), exact(proto, feeds), strict=True):
            close(found, want, terms)
    return run


TURNS = "what it makes of a size may turn at one that is not tried"

_LENGTH = """
    sizes = Shape (x)
    length = Gather <axis = 0> (sizes, one)
"""

#: What follows from the length of x: [1, s, 8], and in how many parts XNNPACK takes it.
LENGTHS = {
    "rows of a table": (
        """
        rows = Unsqueeze (length, first)
        part = Slice (table, first, rows, first)
        y = Add (x, part)
        """,
        1,
    ),
    "a square of a mask, and its product": (
        """
        rows = Unsqueeze (length, first)
        both = Concat <axis = 0> (rows, rows)
        zeros = ConstantOfShape <value = int64[1] {0}> (two)
        part = Slice (mask, zeros, both)
        low = MatMul (part, x)
        y = Relu (low)
        """,
        1,
    ),
    "a mask of places": (
        """
        places = Range (zero, length, one)
        row = Unsqueeze (places, first)
        column = Unsqueeze (places, last)
        before = Less (row, column)
        mask01 = Cast <to = 1> (before)
        y = MatMul (mask01, x)
        """,
        1,
    ),
    "twice as many and one": (
        """
        double = Mul (length, dim)
        more = Add (double, one)
        places = Range (zero, more, one)
        floats = Cast <to = 1> (places)
        mean = ReduceMean <keepdims = 0> (x)
        y = Mul (floats, mean)
        """,
        1,
    ),
    "all but the first, and the last": (
        """
        end = Sub (length, one)
        until = Unsqueeze (end, first)
        start = Unsqueeze (one, first)
        most = Slice (x, first, until, start)
        rest = Slice (x, start, huge, start)
        y = Mul (most, rest)
        """,
        1,
    ),
    "numbers spread over a shape": (
        """
        rows = Unsqueeze (length, first)
        eight = Unsqueeze (width, first)
        shape = Concat <axis = 0> (rows, eight)
        row = Slice (table, first, firstend, first)
        spread = Expand (row, shape)
        same = ConstantOfShape <value = float[1] {2}> (shape)
        sum = Add (spread, same)
        y = Mul (sum, x)
        """,
        1,
    ),
}


@pytest.mark.parametrize("what", LENGTHS)
def test_what_follows_from_a_length_is_found_out_in_the_file(what: str, tmp_path) -> None:
    body, parts = LENGTHS[what]
    proto = graph(
        f"net (float[1, s, 8] x) => (float[a, b, c] y) {{ {_LENGTH} {body} }}".replace(
            "float[a, b, c]", "float[a]" if "floats" in body else "float[a, b, c]"
        ),
        table=TABLE,
        mask=MASK,
        **{name: np.array(number) for name, number in {"zero": 0, "one": 1, "dim": 2, "width": 8}.items()},
        **{
            name: np.array([n])
            for name, n in {"first": 0, "last": -1, "firstend": 1, "two": 2, "huge": 1 << 40}.items()
        },
    )
    run = holds(proto, written(proto, tmp_path), [(1, size, 8) for size in (5, 9, 2, 64, 5)], terms=100)
    assert run.delegates == parts


IMAGES = {
    "a stride, which SAME pads evenly at odd sizes alone": """
        y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, weight)
    """,
    "a pool": """
        c = Conv <pads = [1, 1, 1, 1]> (x, weight)
        r = Relu (c)
        y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
    """,
    "each pixel four times": """
        c = Conv <pads = [1, 1, 1, 1]> (x, weight)
        y = Resize <mode = "nearest"> (c, , scales)
    """,
    "twice the size": """
        c = Conv <pads = [1, 1, 1, 1]> (x, weight)
        y = Resize <mode = "linear"> (c, , scales)
    """,
}


@pytest.mark.parametrize("what", IMAGES)
def test_images_of_every_size(what: str, tmp_path) -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    proto = graph(
        f"net (float[1, 3, h, w] x) => (float[1, 4, p, q] y) {{ {IMAGES[what]} }}", weight=WEIGHT, scales=scales
    )
    data = written(proto, tmp_path)
    (image,) = (read(data).subgraphs[0].tensors[at] for at in read(data).subgraphs[0].inputs)
    assert image.shapeSignature.tolist() == [1, 3, -1, -1]
    holds(proto, data, [(1, 3, 8, 8), (1, 3, 21, 34), (1, 3, 12, 9)], terms=27)


def test_a_size_that_does_not_follow_from_one_has_to_be_given() -> None:
    proto = graph(
        f"""net (float[1, s, 8] x) => (float[a, 8] y) {{
            {_LENGTH}
            square = Mul (length, length)
            rows = Unsqueeze (square, zero)
            shape = Concat <axis = 0> (rows, eight)
            mean = ReduceMean <keepdims = 0> (x, zero_one)
            y = Expand (mean, shape)
        }}""",
        one=np.array(1),
        zero=np.array([0]),
        zero_one=np.array([0, 1]),
        eight=np.array([8]),
    )
    [problem] = problems(proto)
    assert "BROADCAST_TO depends on it: give --shape" in problem


def test_a_model_that_is_too_short_for_the_sizes_tried_wants_one() -> None:
    proto = graph(
        f"""net (float[1, s, 8] x) => (float[1, s, 8] y) {{
            {_LENGTH}
            rows = Unsqueeze (length, zero)
            shape = Concat <axis = 0> (one_row, rows)
            ids = Expand (positions, shape)
            sized = Shape (ids)
            y = Expand (x, sized)
        }}""",
        one=np.array(1),
        zero=np.array([0]),
        one_row=np.array([1]),
        positions=np.arange(64)[None],
    )
    [problem] = problems(proto)
    assert "Expand" in problem and "do not fit each other at this size" in problem and problem.endswith("--shape")


#: The filters leave one of a few entries, and what follows is made for that one alone.
_NARROW = """net (float[n, 8, s] x) => (float[n, 8] y) {
    c = Conv <strides = [400]> (x, filter)
    z = Squeeze (c, last)
    y = Relu (z)
}"""


def test_no_size_is_run_that_the_file_would_take_for_another(tmp_path) -> None:
    proto = graph(_NARROW, filter=FILTER, last=np.array([-1]))
    data = written(proto, tmp_path)
    assert "SHAPE" in kinds(data)
    run = holds(proto, data, [(1, 8, 130), (1, 8, 300)], terms=32)
    for shape in ((1, 8, 404), (1, 8, 900)):
        with pytest.raises(RuntimeError, match="failed to prepare"):
            run({"x": normal(*shape)})
    close(run({"x": np.ones((1, 8, 7), np.float32)})[0], exact(proto, {"x": np.ones((1, 8, 7), np.float32)})[0], 32)


@pytest.mark.parametrize(("of", "taken"), [("rank", True), ("length", False)])
def test_a_branch_is_taken_where_no_size_decides_which(of: str, taken: bool, tmp_path) -> None:
    proto = graph(
        f"""net (float[1, s, 8] x) => (float[1, s, 8] y) {{
            {_LENGTH}
            rank = Size (sizes)
            many = Greater ({of}, two)
            y = If (many) <
                then_branch = yes () => (float[1, s, 8] a) {{ a = Relu (x) }},
                else_branch = no () => (float[1, s, 8] b) {{ b = Neg (x) }}
            >
        }}""",
        one=np.array(1),
        two=np.array(2),
    )
    if taken:
        holds(proto, written(proto, tmp_path), [(1, 5, 8), (1, 1, 8)], terms=1)
    else:
        assert "Greater" in problems(proto)[0] and f"{TURNS}: give --shape" in problems(proto)[0]


_SIZE = "sizes = Shape <start = 1, end = 2> (x)"
_FACTOR = "f = Cast <to = 1> (part) y = Mul (x, f)"

#: What is one thing at every size that is tried, and another at some size.
BOUNDS = {
    "a share of a size": (f"{_SIZE} part = Div (sizes, far) {_FACTOR}", TURNS),
    "the rest of a size": (f"{_SIZE} part = Mod (sizes, far) {_FACTOR}", TURNS),
    "the least of a size": (
        f"{_SIZE} both = Concat <axis = 0> (sizes, far) part = ReduceMin <keepdims = 0> (both) {_FACTOR}",
        "a size has a bound here",
    ),
    "whether a size is small": (f"{_SIZE} part = Less (sizes, far) {_FACTOR}", TURNS),
    "an entry of a table": (f"{_SIZE} part = Gather (places, sizes) {_FACTOR}", TURNS),
    "the length of what is cut": (
        f"c = Slice (x, zero, few, one) part = Shape <start = 1, end = 2> (c) {_FACTOR}",
        "was cut to a length",
    ),
    "the length of what is stepped over": (
        f"t = Transpose <perm = [0, 2, 1]> (x) c = MaxPool <kernel_shape = [9], strides = [700]> (t)"
        f" part = Shape <start = 2> (c) {_FACTOR}",
        "was cut to a length",
    ),
    "one in so many": (
        f"{_SIZE} stop = Squeeze (sizes) part = Range (none, stop, hundreds) {_FACTOR}",
        TURNS,
    ),
    "the first of a table": (f"{_SIZE} part = Slice (short, zero, sizes) {_FACTOR}", TURNS),
    "a cut further out than any size tried": ("y = Slice (x, zero, far, one)", "Slice depends on it"),
    "the last many entries": ("y = Slice (x, minus_far, end, one)", "Slice depends on it"),
    "a size that is bounded": (
        """
        sizes = Shape (x)
        length = Gather <axis = 0> (sizes, one)
        most = Min (length, far)
        part = Slice (table, zero, most, zero)
        y = Add (x, part)
        """,
        "a size has a bound here",
    ),
    "a choice by a size": (
        """
        sizes = Shape (x)
        length = Gather <axis = 0> (sizes, one)
        is_long = Greater (length, far)
        count = Where (is_long, far, length)
        part = Slice (table, zero, count, zero)
        y = Add (x, part)
        """,
        TURNS,
    ),
}


@pytest.mark.parametrize("what", BOUNDS)
def test_what_no_size_tried_may_show_wants_a_size(what: str) -> None:
    body, reason = BOUNDS[what]
    proto = graph(
        f"net (float[1, s, 8] x) => (float[1, t, 8] y) {{ {body} }}",
        zero=np.array([0]),
        one=np.array([1]),
        far=np.array([1000]),
        minus_far=np.array([-1000]),
        end=np.array([2**63 - 1]),
        table=RNG.standard_normal((2000, 8)).astype(np.float32),
        places=np.minimum(np.arange(2000), 700),
        few=np.array([30]),
        short=np.ones(1),
        none=np.array(0),
        hundreds=np.array(1000),
    )
    [problem] = problems(proto)
    assert reason in problem and problem.endswith("give --shape")


def test_what_divides_some_sizes_need_not_divide_all() -> None:
    """Of the second of two dimensions, of which other sizes are tried than of the first."""
    proto = graph(
        f"""net (float[1, 8] k, float[1, s, 8] w, float[1, t, 8] x) => (float[1, s, 8] z, float[1, t, 8] y) {{
            {_SIZE} half = Div (sizes, two) part = Mul (half, two) {_FACTOR} z = Mul (w, k)
        }}""",
        two=np.array([2]),
    )
    [problem] = problems(proto)
    assert f"{TURNS}: give --shape" in problem


def test_what_divides_every_size_is_known(tmp_path) -> None:
    proto = graph(
        f"""net (float[1, s, 8] x) => (float[1, s, 8] y) {{
            {_SIZE} many = Mul (sizes, six) part = Div (many, two) rest = Mod (part, three) all = Sub (part, rest)
            f = Cast <to = 1> (all) y = Mul (x, f)
        }}""",
        six=np.array([6]),
        two=np.array([2]),
        three=np.array([3]),
    )
    holds(proto, written(proto, tmp_path), [(1, 5, 8), (1, 700, 8)], terms=1)


def test_a_choice_that_no_size_decides_is_none(tmp_path) -> None:
    proto = graph(
        """net (float[1, s, 8] x) => (float[1, s, 8] y) {
            own = Shape <start = 1> (x)
            sizes = Concat <axis = 0> (minus_one, own)
            kept = Equal (sizes, minus_one)
            shape = Where (kept, ones, sizes)
            y = Expand (row, shape)
        }""",
        minus_one=np.array([-1]),
        ones=np.array([1, 1, 1]),
        row=RNG.standard_normal((1, 1, 8)).astype(np.float32),
    )
    holds(proto, written(proto, tmp_path), [(1, 5, 8), (1, 700, 8)], terms=1)
