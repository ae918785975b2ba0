"""Reading ONNX files: lazily, and refusing what is not a whole model with a message that says why."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from polycast.errors import InputError, PolycastError
from polycast.load import load
from polycast.reading.onnxfile import read

RNG = np.random.default_rng(0)
WEIGHTS = {
    "large": RNG.standard_normal((64, 16)).astype(np.float32),
    "half": RNG.standard_normal((64, 16)).astype(np.float16),
    "small": RNG.standard_normal(16).astype(np.float32),
}


def model_proto() -> onnx.ModelProto:
    """x: [n, 64] -> y: [n, 16], with a large, a half-precision and a small weight, and one in a subgraph."""
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["i"])],
        "inner",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHTS["large"] * 2, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "large"], ["o"])],
        "other",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["c"], ["m"], then_branch=inner, else_branch=other),
        helper.make_node("Cast", ["half"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "h"], ["k"]),
        helper.make_node("Sum", ["m", "k", "small"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_inline(folder: Path) -> Path:
    onnx.save(model_proto(), folder / "m.onnx")
    return folder / "m.onnx"


def write_external(folder: Path, location: str = "m.data") -> Path:
    onnx.save(model_proto(), folder / "m.onnx", save_as_external_data=True, location=location, size_threshold=0)
    return folder / "m.onnx"


@pytest.mark.parametrize("write", [write_inline, write_external])
def test_weights_are_mapped_and_equal(tmp_path: Path, write: object) -> None:
    model, _ = read(write(tmp_path))  # type: ignore[operator]
    found = {v.name: v.const_value for g in model.graphs() for v in g.initializers.values()}
    assert {n for n, t in found.items() if isinstance(t, ir.ExternalTensor)} == {"large", "half"}
    for name, array in {**WEIGHTS, "inner": WEIGHTS["large"] * 2}.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
        assert found[name].tobytes() == array.tobytes()


def test_the_same_graph_from_either_file(tmp_path: Path) -> None:
    (tmp_path / "inline").mkdir()
    (tmp_path / "external").mkdir()
    assert load(write_inline(tmp_path / "inline")).digest == load(write_external(tmp_path / "external")).digest


def test_sha256_is_over_the_graph_and_its_data(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    expected = hashlib.sha256(path.read_bytes() + (tmp_path / "m.data").read_bytes()).hexdigest()
    assert read(path)[1] == expected
    assert load(path).origin.sha256 == expected


def test_a_hard_linked_or_linked_folder_is_read(tmp_path: Path) -> None:
    """As a package manager's cache and the Hugging Face cache lay their files out."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_external(tmp_path / "blobs")
    os.link(tmp_path / "blobs" / "m.data", tmp_path / "second name")
    for name in ("m.onnx", "m.data"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    model, _ = read(tmp_path / "snapshot" / "m.onnx")
    np.testing.assert_array_equal(model.graph.initializers["large"].const_value.numpy(), WEIGHTS["large"])


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def empty_zip(folder: Path, name: str) -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("data.pkl", b"")
    return folder / name


def edited(folder: Path, change: object) -> Path:
    """The external model with its first weight's entries changed."""
    path = write_external(folder)
    proto = onnx.load(path, load_external_data=False)
    entries = {e.key: e.value for e in proto.graph.initializer[0].external_data}
    entries.update(change(entries))  # type: ignore[operator]
    del proto.graph.initializer[0].external_data[:]
    for key, value in entries.items():
        proto.graph.initializer[0].external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    return path


def without(folder: Path, field: str) -> Path:
    proto = model_proto()
    (proto if field in ("graph", "opset_import") else proto.graph).ClearField(field)
    return write(folder, "m.onnx", proto.SerializeToString())


def outside(folder: Path) -> Path:
    (folder / "secret").write_bytes(bytes(1 << 20))
    (folder / "model").mkdir()
    return folder / "model"


def linked_outside(folder: Path) -> Path:
    path = edited(outside(folder), lambda e: {"location": "link"})
    (folder / "model" / "link").symlink_to(folder / "secret")
    return path


def shortened(path: Path, by: int) -> Path:
    os.truncate(path, path.stat().st_size - by)
    return path


def no_data(folder: Path) -> Path:
    path = write_external(folder)
    (folder / "m.data").unlink()
    return path


REFUSED = {
    "missing file": (lambda d: d / "none.onnx", "does not exist"),
    "empty": (lambda d: write(d, "m.onnx", b""), "is empty"),
    "text": (lambda d: write(d, "m.onnx", b"hello, this is no model\n"), "is a text file: expected an ONNX model"),
    "image": (lambda d: write(d, "m.onnx", b"\x89PNG\r\n\x1a\n" + bytes(99)), "is a PNG image"),
    "zip": (lambda d: empty_zip(d, "m.onnx"), "is a zip archive"),
    "torch zip": (lambda d: empty_zip(d, "m.pt"), r"Python pickle \(.pt\).*No pickle is ever loaded"),
    "pickle": (lambda d: write(d, "m.bin", pickle.dumps({"a": 1})), r"Python pickle \(.bin\)"),
    "pickle named onnx": (lambda d: write(d, "m.onnx", pickle.dumps([1])), "Python pickle"),
    "git lfs": (lambda d: write(d, "m.onnx", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "safetensors": (lambda d: write(d, "m.bin", b"\x40" + bytes(7) + b'{"w":{}}'), "safetensors"),
    "random": (lambda d: write(d, "m.onnx", b"\xff\xfe\xfd" * 99), "is not an ONNX model"),
    "truncated in a weight": (lambda d: shortened(write_inline(d), 3000), "is truncated.*expected at least"),
    "truncated in the opset": (lambda d: shortened(write_inline(d), 1), "truncated"),
    "no graph": (lambda d: without(d, "graph"), "holds no graph"),
    "no opset_import": (lambda d: without(d, "opset_import"), "no opset_import"),
    "no outputs": (lambda d: without(d, "output"), "no outputs"),
    "data missing": (no_data, "external data of tensor 'large' is missing: expected .*m.data"),
    "data truncated": (
        lambda d: (write_external(d), shortened(d / "m.data", 1))[0],
        "lies at bytes .* expected at least .* bytes, found",
    ),
    "data outside": (
        lambda d: edited(outside(d), lambda e: {"location": "../secret"}),
        "leaves the model's folder: expected a file under .*found '../secret'",
    ),
    "data absolute": (
        lambda d: edited(outside(d), lambda e: {"location": d / "secret"}),
        "leaves the model's folder",
    ),
    "data linked outside": (linked_outside, "leaves the model's folder"),
    "no location": (lambda d: edited(d, lambda e: {"location": ""}), "leaves the model's folder"),
    "offset past the end": (lambda d: edited(d, lambda e: {"offset": 1 << 40}), "lies at bytes"),
    "offset below 0": (lambda d: edited(d, lambda e: {"offset": -4}), "lies at bytes"),
    "offset no number": (lambda d: edited(d, lambda e: {"offset": "x"}), "no numbers"),
    "wrong length": (lambda d: edited(d, lambda e: {"length": 8}), r"expected 4096 bytes for float\[64, 16\], found 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as info:
        load(path)
    assert path.name in info.value.message
    assert "\n" not in info.value.message
    assert sorted(tmp_path.rglob("*")) == before


def test_no_pickle_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> object:
            return (Path.touch, (tmp_path / "boom",))

    path = write(tmp_path, "m.pt", pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="No pickle is ever loaded"):
        load(path)
    assert not (tmp_path / "boom").exists()


def test_a_forged_reference_into_the_model_file_stays_in_it(tmp_path: Path) -> None:
    """The mark for weights of the file itself, written by someone else, reads no more than that file."""
    path = edited(tmp_path, lambda e: {"location": "\0", "offset": 0, "length": 4096})
    size = path.stat().st_size
    assert size < 4096
    with pytest.raises(InputError, match=f"expected at least 4096 bytes, found {size}"):
        read(path)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the bytes are, there is a model or an InputError: no other exception, no crash."""
    content = bytearray(model_proto().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        # Structure is at the front and the back; the weights in between are mere numbers.
        at = data.draw(st.one_of(st.integers(0, 400), st.integers(len(content) - 250, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("damaged"), "m.onnx", bytes(content))
    try:
        load(path)
    except PolycastError as error:
        assert isinstance(error, InputError)
