"""The bytes of a LiteRT file: what its own package says of them, and that they hold for every size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litert_files import close, exact, graph, kinds, problems, read, run, written

from polycast.load import load
from polycast.targets import _litert
from polycast.targets._litert.flatbuffer import packed

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)

NET = """net (float[n, 3, h, w] image) => (float[n, 4, p, q] "a/b:0") {
    c = Conv <pads = [1, 1, 1, 1]> (image, weight)
    r = Relu (c)
    "a/b:0" = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
}"""


def analyzed(path: Path) -> str:
    """Give what LiteRT's analyzer says: it verifies the FlatBuffer before it reads it."""
    from ai_edge_litert import _pywrap_analyzer_wrapper as analyzer

    said: str = analyzer.ModelAnalyzer(str(path), True, False)
    return said


def test_its_own_package_verifies_a_file_and_refuses_one_that_is_cut_short(tmp_path: Path) -> None:
    data = written(graph(NET, weight=WEIGHT), tmp_path)
    said = analyzed(tmp_path / "model.tflite")
    assert "not a valid" not in said and "CONV_2D" in said
    (tmp_path / "short.tflite").write_bytes(data[: len(data) // 2])
    assert "not a valid" in analyzed(tmp_path / "short.tflite")


def test_names_are_those_of_the_model(tmp_path: Path) -> None:
    signature = read(written(graph(NET, weight=WEIGHT), tmp_path)).signatureDefs[0]
    assert signature.signatureKey == b"serving_default"
    assert [port.name for port in signature.inputs] == [b"image"]
    assert [port.name for port in signature.outputs] == [b"a/b:0"]


def test_weights_lie_at_multiples_of_sixteen_bytes(tmp_path: Path) -> None:
    data = written(graph(NET, weight=WEIGHT), tmp_path)
    places = data.find(np.ascontiguousarray(WEIGHT.transpose(0, 2, 3, 1)).tobytes())
    assert places > 0 and places % 16 == 0


def test_the_same_graph_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    proto = graph(NET, weight=WEIGHT)
    data = written(proto, tmp_path / "here")
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    code = (
        "import sys, onnx\nfrom pathlib import Path\nfrom litert_files import written\n"
        "sys.stdout.buffer.write(written(onnx.load(sys.argv[1]), Path(sys.argv[2])))"
    )
    tests = str(Path(__file__).resolve().parents[2])
    child = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{code}", tmp_path / "net.onnx", tmp_path],
        capture_output=True,
        check=True,
    )
    assert child.stdout == data


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_four_bit_codes_come_back_from_their_bytes(codes: list[int]) -> None:
    data = np.frombuffer(packed(np.array(codes, np.int8)), np.uint8)
    both = np.stack([data & 15, data >> 4], 1).reshape(-1)[: len(codes)].astype(np.int8)
    assert np.where(both > 7, both - 16, both).tolist() == codes


def test_everything_that_cannot_be_written_is_named_at_once() -> None:
    proto = graph(
        """net (float[1, 3, 8, 8] x) => (float[1, 3, 10, 8] y) {
            a = Resize <mode = "cubic"> (x, , scales)
            b = Pad <mode = "edge"> (x, pads)
            c = Hardmax (a)
            y = Add (c, b)
        }""",
        scales=np.array([1, 1, 1.25, 1], np.float32),
        pads=np.array([0, 0, 1, 0, 0, 0, 1, 0]),
    )
    said = problems(proto)
    assert list(said) == sorted(said) and len(said) == 3
    assert any("there is no cubic interpolation" in each for each in said)
    assert any("there is no padding by edge" in each for each in said)
    assert any("ai.onnx.Hardmax (opset 21)" in each for each in said)


def test_padding_that_litert_has_a_word_for_is_part_of_the_convolution(tmp_path: Path) -> None:
    """SAME puts an odd rest behind; PyTorch's symmetric padding of a stride of 2 has to be a PAD."""
    weight = WEIGHT
    for pads, inside in (("[0, 0, 1, 1]", True), ("[1, 1, 1, 1]", False), ("[0, 0, 0, 0]", True)):
        proto = graph(
            f"""net (float[1, 3, 8, 8] x) => (float[1, 4, p, q] y) {{
                y = Conv <strides = [2, 2], pads = {pads}> (x, weight)
            }}""",
            weight=weight,
        )
        data = written(proto, tmp_path)
        assert ("PAD" not in kinds(data)) is inside
        feeds = {"x": np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)}
        close(run(data, feeds)[0], exact(proto, feeds)[0], terms=27)


def test_what_xnnpack_leaves_is_told(tmp_path: Path) -> None:
    import json

    proto = graph(
        """net (float[1, 3, 8, 8] x) => (float[1, 4, 24, 24] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, weight)
            y = Resize <mode = "nearest"> (c, , scales)
        }""",
        weight=WEIGHT,
        scales=np.array([1, 1, 3, 3], np.float32),
    )
    written(proto, tmp_path)
    ports = {"inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8]}], "outputs": []}
    manifest = {"runtime": {"model": "model.tflite", "by_row": False}, "signature": ports}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    told = _litert.what_runs(tmp_path)
    assert told["xnnpack"] == {"takes": 3, "of": 4, "left": {"RESIZE_NEAREST_NEIGHBOR": 1}}
    assert (told["integer"], told["of"], told["ops"]) == (0, 1, {"CONV_2D": 1})


@pytest.mark.parametrize(
    ("result", "last", "by_row"),
    [
        ("n, 4, 8, 8", "Relu (c)", True),
        ("lost, 4, 8, 8", "Relu (c)", True),  # as exporters write it
        ("lost, n, 8, 8", "Transpose <perm = [1, 0, 2, 3]> (c)", False),
    ],
)
def test_rows_go_one_by_one_where_each_output_has_as_many(result: str, last: str, by_row: bool, tmp_path: Path) -> None:
    proto = graph(
        f"""net (float[n, 3, 8, 8] x) => (float[{result}] y) {{
            c = Conv <pads = [1, 1, 1, 1]> (x, weight)
            y = {last}
        }}""",
        weight=WEIGHT,
    )
    assert _litert.write(load(proto), tmp_path)["by_row"] is by_row
