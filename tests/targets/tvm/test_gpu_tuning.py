"""Schedules that are measured on a GPU are kept for that chip alone; timing them needs one, and all else does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import dense_net

pytest.importorskip("tvm")

from polycast.errors import RecipeError
from polycast.load import load
from polycast.targetbase import Answer
from polycast.targets import find
from polycast.targets._tvm import gpu_tuning, lowering, nvcc, static
from polycast.targets._tvm.matvec_tiles import Rows
from polycast.targets._tvm.tiles import Tile
from polycast.targets._tvm.traces import Trace
from polycast.targets.cuda import Cuda

GPU = Cuda(arch="sm_90").gpu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path / "cache"))


def here(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(nvcc, "device", lambda: Answer(bool(name), name or "no GPU"))


def test_the_chip_is_named_where_it_is_of_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "NVIDIA H200, 9.0")
    assert gpu_tuning.chip(GPU) == "NVIDIA H200"
    assert gpu_tuning.chip(Cuda(arch="sm_80").gpu) is None
    here(monkeypatch, "")
    assert gpu_tuning.chip(GPU) is None and gpu_tuning.known(GPU) == {}


def test_records_of_one_chip_are_not_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": Tile(16, 64, 64, 1, 4, tensor=True), "b": Rows(32, 2, 4), "c": Trace("[]")}
    for key, choice in found.items():
        gpu_tuning.records_of(GPU, "NVIDIA H200").add(key, choice)
    here(monkeypatch, "NVIDIA H200, 9.0")
    assert gpu_tuning.known(GPU) == found
    here(monkeypatch, "NVIDIA H100, 9.0")
    assert gpu_tuning.known(GPU) == {}


@pytest.mark.parametrize("rows", [1, 64])
def test_what_is_measured_as_the_fastest_is_what_builds_are_made_with(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row is multiplied as a vector, and many are in tiles; the last of what is tried is said to be the fastest."""
    here(monkeypatch, "NVIDIA H200, 9.0")
    model, tried = static.fixed(load(dense_net(tmp_path / "m.onnx")), rows)[0], []

    def timer(gpu: Any, function: Any, choice: Any) -> Any:
        tried.append(choice)
        seconds = 1.0 / len(tried)
        return lambda: seconds

    monkeypatch.setattr(gpu_tuning, "timer", timer)
    monkeypatch.setattr(gpu_tuning, "deepen", lambda *_: [])
    count = gpu_tuning.tune(model, GPU, 1.0)
    assert count and {type(each) for each in tried} == {Rows if rows == 1 else Tile}
    known = gpu_tuning.known(GPU)
    tuned, plain = (lowering.lower(model, GPU, measured) for measured in (known, {}))
    assert tuned.tuned == known and len(known) == count
    assert str(tuned.module) != str(plain.module)
    before = len(tried)
    assert gpu_tuning.tune(model, GPU, 1.0) == count and len(tried) == before


def test_another_gpu_than_the_one_that_is_here_is_not_tuned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "NVIDIA H200, 9.0")
    monkeypatch.setattr(Cuda, "device", lambda self: nvcc.device())
    assert find("cuda:sm_90").tuned(2.0).tune == 2.0  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"cuda:sm_80 cannot be tuned here: NVIDIA H200, 9\.0 is here"):
        find("cuda:sm_80").tuned(2.0)
