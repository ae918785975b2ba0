"""Samples from arrays: what a row becomes, what is refused and in which words, and that nothing is held."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polycast.errors import InputError
from polycast.model import Port, Signature
from polycast.samples import Sample, open_samples

IMAGE = Port("x", "float32", ("N", 3, 4))
IDS = Port("ids", "int64", ("batch", "seq"))


def signature(*ports: Port) -> Signature:
    return Signature(ports, ())


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def saved(path: Path, compressed: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def read(path: Path, *ports: Port) -> list[Sample]:
    return list(open_samples(path, signature(*ports)))


def refused(path: Path, *ports: Port) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, *ports)
    return caught.value


@pytest.mark.parametrize("compressed", [False, True])
def test_row_keeps_its_leading_axis(tmp_path: Path, compressed: bool) -> None:
    x, y = floats(5, 3, 4), np.arange(5)
    samples = open_samples(saved(tmp_path / "d.npz", compressed, x=x, label=y), signature(IMAGE))
    assert samples.kind == "arrays"
    assert len(samples) == 5
    for _ in range(2):  # it can be read again
        got = list(samples)
        assert [s.name for s in got] == [f"{tmp_path / 'd.npz'}[{i}]" for i in range(5)]
        for i, sample in enumerate(got):
            np.testing.assert_array_equal(sample.feeds["x"], x[i : i + 1], strict=True)
            np.testing.assert_array_equal(sample.label, y[i : i + 1], strict=True)


def test_fixed_batch_takes_its_rows_together(tmp_path: Path) -> None:
    x, y = floats(6, 3), np.arange(6)
    got = read(saved(tmp_path / "d.npz", x=x, label=y), Port("x", "float32", (2, 3)))
    assert len(got) == 3
    np.testing.assert_array_equal(got[1].feeds["x"], x[2:4])
    np.testing.assert_array_equal(got[1].label, [2, 3])


def test_array_with_one_axis_more_is_indexed(tmp_path: Path) -> None:
    x, y = floats(3, 8, 3, 4), np.arange(24).reshape(3, 8)
    got = read(saved(tmp_path / "d.npz", x=x, label=y), IMAGE)
    assert len(got) == 3
    np.testing.assert_array_equal(got[2].feeds["x"], x[2], strict=True)
    np.testing.assert_array_equal(got[2].label, y[2], strict=True)


def test_state_and_scalar_inputs_go_with_their_rows(tmp_path: Path) -> None:
    ports = Port("x", "float32", ("b", "t")), Port("state", "float32", (2, "b", 8)), Port("rate", "int64", ())
    arrays = {"x": floats(4, 16), "state": floats(4, 2, 1, 8), "rate": np.full(4, 16000)}
    got = read(saved(tmp_path / "d.npz", **arrays), *ports)
    assert [s.feeds["rate"].shape for s in got] == [()] * 4
    assert got[3].feeds["state"].shape == (2, 1, 8)
    assert got[3].feeds["x"].shape == (1, 16)


@pytest.mark.parametrize("compressed", [False, True])
@settings(max_examples=40)
@given(data=st.data())
def test_rows_are_those_of_numpy(
    tmp_path_factory: pytest.TempPathFactory, compressed: bool, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(["<f4", ">f4", "<f8", ">i8", "i1", "u2", "?", "<U5"]))
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))
    elements = {"allow_nan": False, "allow_infinity": False} if "f" in dtype else None
    x = data.draw(hnp.arrays(dtype, shape, elements=elements))
    if data.draw(st.booleans()):
        x = np.asfortranarray(x)
    path = saved(tmp_path_factory.mktemp("rows") / "d.npz", compressed, x=x)
    name = "str" if x.dtype.kind == "U" else x.dtype.name
    got = read(path, Port("x", name, ("n", *["?"] * (x.ndim - 1))))
    np.testing.assert_array_equal(np.concatenate([s.feeds["x"] for s in got]), np.load(path)["x"])
    assert all(s.feeds["x"].flags.writeable and s.feeds["x"].dtype.isnative for s in got)


def test_folder_of_batches_may_differ_in_length(tmp_path: Path) -> None:
    for i, length in enumerate((7, 3)):
        saved(tmp_path / f"{i}.npz", ids=np.full((2, length), i), label=np.arange(2))
    samples = open_samples(tmp_path, signature(IDS))
    assert (samples.kind, len(samples)) == ("batches", 2)
    assert [s.feeds["ids"].shape for s in samples] == [(2, 7), (2, 3)]
    assert [s.name for s in samples] == [str(tmp_path / "0.npz"), str(tmp_path / "1.npz")]
    assert all(s.label is not None for s in samples)


def test_numbered_keys_are_batches_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    arrays = {f"{i}/ids": np.full((1, i + 1), i) for i in (10, 9, 0)}
    samples = open_samples(saved(tmp_path / "d.npz", **arrays, **{"9/label": np.array([4])}), signature(IDS))
    got = list(samples)
    assert (samples.kind, len(samples)) == ("batches", 3)
    assert [s.feeds["ids"].shape[1] for s in got] == [1, 10, 11]
    assert [s.label is None for s in got] == [True, False, True]


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, compressed: bool) -> None:
    """Rows of 64 KiB: the archive reads ahead and copies a few of them, whether there are 100 or 1,000 (64 MiB)."""
    row = np.ones(1 << 14, np.float32)
    for n in (100, 1000):
        path = saved(tmp_path / f"{n}.npz", compressed, x=np.broadcast_to(row, (n, *row.shape)))
        tracemalloc.start()
        assert sum(1 for _ in open_samples(path, signature(Port("x", "float32", ("n", *row.shape))))) == n
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 * row.nbytes


class TestRefusals:
    """Each says where, what, expected, found, and mostly what mends it."""

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert "no data at" in refused(tmp_path / "none.npz", IMAGE).message

    def test_unknown_kind(self, tmp_path: Path) -> None:
        (tmp_path / "d.bin").write_bytes(b"1")
        assert "expected an .npz, a .txt" in refused(tmp_path / "d.bin", IMAGE).message

    def test_misspelt_name(self, tmp_path: Path) -> None:
        ports = Port("pixel_values", "float32", ("n", 2)), Port("mask", "float32", ("n", 2))
        path = saved(tmp_path / "d.npz", pixel_value=floats(3, 2), mask=floats(3, 2))
        error = refused(path, *ports)
        assert "pixel_values: float32[n, 2], mask: float32[n, 2], found pixel_value, mask" in error.message
        assert error.hint == "Rename 'pixel_value' to 'pixel_values'"

    def test_extra_and_missing_names(self, tmp_path: Path) -> None:
        assert refused(saved(tmp_path / "a.npz", x=floats(3, 3, 4), extra=floats(3)), IMAGE).hint == "Remove 'extra'"
        assert refused(saved(tmp_path / "b.npz", label=np.arange(3)), IMAGE).hint == "Add 'x'"

    @pytest.mark.parametrize("shape", [(5, 3), (5, 1, 1, 3, 4), ()])
    def test_wrong_rank(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        message = refused(saved(tmp_path / "d.npz", x=floats(*shape)), IMAGE).message
        assert "rank of 'x': expected 3 or 4 axes, samples first" in message
        assert f"found {len(shape)} in {list(shape)}" in message

    def test_wrong_shape(self, tmp_path: Path) -> None:
        message = refused(saved(tmp_path / "d.npz", x=floats(5, 4, 3)), IMAGE).message
        assert "shape of 'x': expected x: float32[N, 3, 4], found [1, 4, 3]" in message

    @pytest.mark.parametrize(("dtype", "port"), [("float64", IMAGE), ("int32", IDS)])
    def test_wrong_dtype(self, tmp_path: Path, dtype: str, port: Port) -> None:
        path = saved(tmp_path / "d.npz", **{port.name: np.ones((5, 3, 4)[: len(port.shape or ())], dtype)})
        error = refused(path, port)
        assert f"dtype of {port.name!r}: expected {port.dtype}, found {dtype}" in error.message
        assert error.hint == f'Cast it: x.astype("{port.dtype}")'

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, tmp_path: Path, value: float) -> None:
        x = floats(5, 3, 4)
        x[3, 1, 2] = value
        message = refused(saved(tmp_path / "d.npz", x=x), IMAGE).message
        assert f"d.npz[3]: 'x' at [0, 1, 2]: expected a finite number, found {value}" in message

    def test_different_numbers_of_samples(self, tmp_path: Path) -> None:
        ports = IMAGE, Port("y", "float32", ("n",))
        message = refused(saved(tmp_path / "d.npz", x=floats(5, 3, 4), y=floats(6)), *ports).message
        assert "expected the same in every array, found 5 in 'x', 6 in 'y'" in message
        message = refused(saved(tmp_path / "e.npz", x=floats(5, 3, 4), label=np.arange(4)), IMAGE).message
        assert "'label': number of labels: expected 5 or a multiple, found 4" in message

    def test_rows_that_fill_no_batch(self, tmp_path: Path) -> None:
        message = refused(saved(tmp_path / "d.npz", x=floats(5, 3)), Port("x", "float32", (2, 3))).message
        assert "rows of 'x': expected a multiple of 2" in message

    def test_empty(self, tmp_path: Path) -> None:
        assert "empty data set" in refused(saved(tmp_path / "a.npz", x=floats(0, 3, 4)), IMAGE).message
        assert "empty data set" in refused(saved(tmp_path / "b.npz"), IMAGE).message

    def test_pickle_inside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = saved(tmp_path / "d.npz", x=np.array([{"a": 1}, None], dtype=object))
        monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("a pickle was loaded"))
        error = refused(path, IMAGE)
        assert "pickled Python objects, which are never loaded" in error.message
        assert "astype" in error.hint

    def test_no_archive(self, tmp_path: Path) -> None:
        (tmp_path / "text.npz").write_text("hello")
        (tmp_path / "pickle.npz").write_bytes(pickle.dumps([1]))
        (tmp_path / "empty.npz").write_bytes(b"")
        np.save(tmp_path / "single.npy", floats(2))
        (tmp_path / "single.npy").rename(tmp_path / "single.npz")
        assert "expected an .npz archive, found something else" in refused(tmp_path / "text.npz", IMAGE).message
        assert "found a pickle" in refused(tmp_path / "pickle.npz", IMAGE).message
        assert "found an empty file" in refused(tmp_path / "empty.npz", IMAGE).message
        assert "input_name" in refused(tmp_path / "single.npz", IMAGE).hint

    @pytest.mark.parametrize("compressed", [False, True])
    def test_damaged_at_any_place(self, tmp_path: Path, compressed: bool) -> None:
        """Cut anywhere, or with any byte of the data flipped, an archive never gives wrong numbers in silence."""
        x = floats(4, 3, 4)
        whole = saved(tmp_path / "d.npz", compressed, x=x).read_bytes()
        broken = tmp_path / "broken.npz"
        for end in range(0, len(whole), 7):
            broken.write_bytes(whole[:end])
            assert "broken.npz" in refused(broken, IMAGE).message
        for at in range(0, len(whole), 5):
            broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
            try:
                got = read(broken, IMAGE)
            except InputError:
                continue
            np.testing.assert_array_equal(np.concatenate([s.feeds["x"] for s in got]), x)

    def test_member_shorter_than_its_header_says(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        np.save(stream, floats(5, 3, 4))
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x.npy", stream.getvalue()[:-8])
        message = refused(tmp_path / "d.npz", IMAGE).message
        assert "truncated: expected 240 bytes for float32[5, 3, 4], found 232 bytes" in message

    def test_batch_of_a_folder(self, tmp_path: Path) -> None:
        saved(tmp_path / "0.npz", ids=np.zeros((1, 4), np.int64))
        saved(tmp_path / "1.npz", ids=np.zeros((1, 4, 1), np.int64))
        assert "1.npz: rank of 'ids': expected 2 axes" in refused(tmp_path, IDS).message


def test_calibration_of_the_zoo(tmp_path: Path, zoo: Callable[[str], Path]) -> None:
    """What ``evals.py calib`` of the zoo writes is read back row for row."""
    calibration = np.load(zoo("mnist/test.npz"))["calib"]
    feeds = {f"{i}/Input3": image.reshape(1, 1, 28, 28).astype(np.float32) for i, image in enumerate(calibration[:8])}
    got = read(saved(tmp_path / "d.npz", **feeds), Port("Input3", "float32", (1, 1, 28, 28)))
    assert [s.feeds["Input3"].sum() for s in got] == [v.sum() for v in feeds.values()]
