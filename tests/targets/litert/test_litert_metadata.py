"""What a LiteRT file says of itself, read back slot by slot as TensorFlow Lite Support's schema numbers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from litert_files import graph, read, written
from PIL import Image

from polycast.data.preprocess import Preprocess
from polycast.model import Model, Origin
from polycast.targets import _litert

F = np.float32
NET = "net (float[1, 3, 4, 4] image) => (float[1, 2, 2, 2] y) { y = Conv (image, weight) }"
WEIGHT = np.ones((2, 3, 3, 3), F)
MODEL, SUBGRAPH, TENSOR = {"name": 0, "subgraphs": 3, "parser": 7}, {"inputs": 2, "outputs": 3}, {
    "name": 0, "dimensions": 2, "content": 3, "process": 4, "stats": 5,
}  # fmt: skip


def entries(data: bytes) -> dict[str, bytes]:
    model = read(data)
    return {each.name.decode(): bytes(model.buffers[each.buffer].data) for each in model.metadata}


class Table:
    """A FlatBuffers table of whatever schema."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        from flatbuffers import encode, packer
        from flatbuffers.table import Table as Raw

        self.raw = Raw(bytearray(data), encode.Get(packer.uoffset, data, 0) if at is None else at)

    def _place(self, slot: int) -> int:
        at = self.raw.Offset(4 + 2 * slot)
        assert at, f"field {slot} is not there"
        return self.raw.Pos + at

    def text(self, slot: int) -> str:
        return self.raw.String(self._place(slot)).decode()

    def code(self, slot: int) -> int:
        return self.raw.Bytes[self._place(slot)]

    def table(self, slot: int) -> Table:
        return Table(bytes(self.raw.Bytes), self.raw.Indirect(self._place(slot)))

    def tables(self, slot: int) -> list[Table]:
        start, count = self._vector(slot)
        return [Table(bytes(self.raw.Bytes), self.raw.Indirect(start + 4 * i)) for i in range(count)]

    def texts(self, slot: int) -> list[str]:
        start, count = self._vector(slot)
        return [self.raw.String(start + 4 * i).decode() for i in range(count)]

    def numbers(self, slot: int) -> np.ndarray:
        start, count = self._vector(slot)
        return np.frombuffer(bytes(self.raw.Bytes), F, count, start)

    def _vector(self, slot: int) -> tuple[int, int]:
        at = self._place(slot) - self.raw.Pos
        return self.raw.Vector(at), self.raw.VectorLen(at)


def metadata_of(data: bytes) -> tuple[Table, Table]:
    """Give what a file says of its model, and of its first input."""
    said = entries(data)["TFLITE_METADATA"]
    assert said[4:8] == b"M001"
    model = Table(said)
    [main] = model.tables(MODEL["subgraphs"])
    return model, main.tables(SUBGRAPH["inputs"])[0]


def prepared(folder: Path, how: Preprocess) -> bytes:
    """Write NET, or NET of images that are laid out as ``how`` says, with what is known of its images."""
    net = NET if how.layout == "NCHW" else NET.replace("[1, 3, 4, 4]", "[1, 4, 4, 3]").replace(
        "y = Conv (image, weight)", "t = Transpose <perm = [0, 3, 1, 2]> (image) y = Conv (t, weight)"
    )  # fmt: skip
    loaded = ir.from_proto(graph(net, weight=WEIGHT))
    model = Model("seen", loaded, Origin("seen.onnx", ""), prepared={"image": how.facts()})
    _litert.write(model, folder)
    return (folder / "model.tflite").read_bytes()


@pytest.mark.parametrize(("layout", "content"), [("NCHW", 1), ("NHWC", 2)])
def test_how_images_are_prepared_is_said_in_pixels(tmp_path: Path, layout: str, content: int) -> None:
    """The schema's images have their channels last: others are features, whose axes have names."""
    how = Preprocess(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0), layout=layout)
    model, image = metadata_of(prepared(tmp_path, how))
    assert (model.text(MODEL["name"]), model.text(MODEL["parser"])) == ("seen", "1.0.0")
    axes = {"C": "channels", "H": "height", "W": "width", "N": "batch"}
    assert image.texts(TENSOR["dimensions"]) == [axes[letter] for letter in layout]
    assert image.table(TENSOR["content"]).code(0) == content
    [unit] = image.tables(TENSOR["process"])
    mean, std = (unit.table(1).numbers(slot) for slot in (0, 1))

    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    wanted = how(Image.fromarray(pixels))
    wanted = wanted.transpose(1, 2, 0) if layout == "NCHW" else wanted
    np.testing.assert_allclose((pixels.astype(F) - mean) / std, wanted, rtol=4 * np.finfo(F).eps, atol=1e-6)
    highest, lowest = (image.table(TENSOR["stats"]).numbers(slot) for slot in (0, 1))
    for value, ends in ((0, lowest), (255, highest)):
        same = how(Image.new("RGB", (1, 1), (value,) * 3)).reshape(3)
        np.testing.assert_allclose(ends, same, rtol=4 * np.finfo(F).eps, atol=1e-6)


def test_what_is_rounded_to_codes_says_where_they_end(tmp_path: Path) -> None:
    proto = graph(
        """net (float[1, 4] x) => (float[1, 4] y) {
            q = QuantizeLinear (x, scale, zero)
            y = DequantizeLinear (q, scale, zero)
        }""",
        scale=np.array(0.5, F),
        zero=np.array(-28, np.int8),
    )
    _, x = metadata_of(written(proto, tmp_path))
    assert [x.table(TENSOR["stats"]).numbers(slot).tolist() for slot in (0, 1)] == [[77.5], [-50.0]]


@pytest.mark.parametrize(("first", "inside"), [("Sub (image, mean)", True), ("Sub (image, image)", False)])
def test_what_the_model_normalises_itself_is_left_as_it_is(tmp_path: Path, first: str, inside: bool) -> None:
    net = NET.replace("y = Conv (image, weight)", f"s = {first} d = Div (s, std) y = Conv (d, weight)")
    three = np.array([0.4, 0.5, 0.6], F).reshape(1, 3, 1, 1)
    _, image = metadata_of(written(graph(net, weight=WEIGHT, mean=three, std=three), tmp_path))
    if not inside:
        with pytest.raises(AssertionError, match="field 4 is not there"):
            image.tables(TENSOR["process"])
        return
    [unit] = image.tables(TENSOR["process"])
    assert [unit.table(1).numbers(slot).tolist() for slot in (0, 1)] == [[0.0], [1.0]]


CASES: dict[str, tuple[onnx.ModelProto, str]] = {
    "float": (graph(NET, weight=WEIGHT), "1.6.0"),  # its images are transposed
    "gelu": (graph("net (float[1, 4] x) => (float[1, 4] y) { y = Gelu (x) }"), "2.9.0"),
    "nothing but the first": (graph("net (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }"), "1.5.0"),
}


@pytest.mark.parametrize(("proto", "release"), CASES.values(), ids=CASES)
def test_the_oldest_runtime_is_that_of_its_newest_operator(tmp_path: Path, proto: Any, release: str) -> None:
    entry = entries(written(proto, tmp_path))["min_runtime_version"]
    assert entry == release.encode().ljust(16, b"\0")
