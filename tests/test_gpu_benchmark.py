"""The benchmark for a machine with a GPU runs from end to end, on a CPU in its place: it may get one chance only."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tvm")

import torch

from polycast.targets import find

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/gpu.py with one small subject, that compiles in this process and times two runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("gpu")
    tiny = module.Subject("tiny", _tiny, "fp32", (1,))
    monkeypatch.setattr(module, "SUBJECTS", (tiny,))
    monkeypatch.setattr(module, "RUNS", 2)
    monkeypatch.setattr(module, "compile_in_child", module.compile_subject)
    monkeypatch.setattr(module, "ceilings", lambda device, measured=module.ceilings: measured(device, 64))
    monkeypatch.setattr(torch, "compile", lambda module, mode: module)
    return module


def _tiny(batch: int) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()).eval(), {"input": torch.randn(batch, 8)}


def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    status: int = gpu.main()
    return status


@pytest.mark.slow
def test_every_step_is_taken_and_every_cell_is_filled(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if not (probe := find("cpu@tvm").probe()).build.yes:
        pytest.skip(probe.build.reason)
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(gpu, "keep", lambda rows, reach: kept.extend(rows))
    assert run(gpu, monkeypatch, "tiny", "--target", "cpu@tvm", "--device", "cpu", "--out", str(tmp_path)) == 0
    [line] = capsys.readouterr().out.strip().splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["tiny", "1", "fp32"] and cells[4] == "met"
    assert all(float(cell) > 0 for cell in (cells[3], *cells[5:11]))
    assert cells[11] == "–"


def test_what_fails_is_one_rows(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> dict[str, Any]:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(
        gpu, "compile_in_child", lambda *_: {"build": "b", "compile_s": 1.0, "macs": 1, "bytes_read": 1}
    )
    monkeypatch.setattr(gpu, "run_build", lambda folder: {"golden": "met", "ms": 1.0})
    monkeypatch.setattr(gpu, "time_torch", broken)
    assert run(gpu, monkeypatch, "--target", "cpu@tvm", "--device", "cpu") == 1
    assert "RuntimeError: out of memory |" in capsys.readouterr().out


def test_figures_are_kept_after_every_row(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu.json")
    gpu.keep([{"subject": "tiny"}], {"bytes_per_s": 1.0})
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == [{"subject": "tiny"}]


def test_the_architecture_is_that_of_the_gpu(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    assert gpu.here(None, None) == ("cuda", "cuda:sm_89")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.here(None, None) == ("", "cuda:sm_90")


def test_tables_are_not_counted_as_read(gpu: ModuleType, tmp_path: Path) -> None:
    inside = {"x": {"dtype": "float32", "shape": [2, 3]}}
    (tmp_path / "manifest.json").write_text(json.dumps({"runtime": {"inside": inside}}))
    (tmp_path / "weights.safetensors").write_bytes(bytes(1000))
    assert gpu.bytes_read(tmp_path, 600.0) == 400 + 24
    assert gpu.looked_up(torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 4))) == 40
