"""Weights lie where the plan says, once each, aligned, in files whose hash it names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from polycast.targets.webgpu import _weights


def test_every_array_is_found_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.random(7).astype(np.float16),
        "codes": rng.integers(0, 255, (3, 5)).astype(np.uint8),
        "scalar": np.array(2.5, np.float32),
    }
    buffers, places = _weights.write(arrays, tmp_path)
    [buffer] = buffers
    data = b"".join((tmp_path / file["file"]).read_bytes() for file in buffer["files"])
    assert len(data) == buffer["bytes"]
    for name, array in arrays.items():
        place = places[name]
        assert place.offset % 256 == 0 and place.bytes % 4 == 0
        np.testing.assert_array_equal(
            np.frombuffer(data, array.dtype, array.size, place.offset).reshape(array.shape), array
        )


def test_equal_arrays_are_written_once(tmp_path: Path) -> None:
    ones = np.ones(64, np.float32)
    buffers, places = _weights.write({"a": ones, "b": ones.reshape(8, 8)}, tmp_path)
    assert places["a"] == places["b"]
    assert buffers[0]["bytes"] == 256


def test_large_buffers_are_several_files_and_large_weights_several_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_weights, "BUFFER_BYTES", 1024)
    monkeypatch.setattr(_weights, "FILE_BYTES", 512)
    arrays = {str(i): np.full(150, i, np.float32) for i in range(3)}
    buffers, places = _weights.write(arrays, tmp_path)
    assert [place.buffer for place in places.values()] == [0, 1, 2]
    assert [file["bytes"] for file in buffers[0]["files"]] == [512, 256]
    for buffer in buffers:
        for file in buffer["files"]:
            assert hashlib.sha256((tmp_path / file["file"]).read_bytes()).hexdigest() == file["sha256"]
