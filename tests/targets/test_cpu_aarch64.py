"""64-bit ARM: what it takes, what says so where it cannot run, and one build that runs under qemu."""

from __future__ import annotations

from pathlib import Path

import pytest

import polycast
from polycast.errors import RecipeError
from polycast.targets import _aarch64, find
from polycast.targets._tvm import NEON
from polycast.targets._tvm.cpu_tiles import tiles_for
from polycast.targets.cpu import Cpu

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"

elsewhere = pytest.mark.skipif(_aarch64.is_here(), reason="this machine is a 64-bit ARM itself")


def test_it_is_for_every_64_bit_arm():
    onnxruntime, tvm = find("cpu:aarch64"), find("cpu:aarch64@tvm")
    assert "u8s8-exact" in onnxruntime.features
    assert "conv-blocks" not in onnxruntime.features
    assert isinstance(tvm, Cpu) and tvm.cpu == NEON
    assert tvm.precisions == ("fp32",)
    assert "ARMv8.2" in tvm.declined["int8"]


def test_a_tile_fills_most_of_the_32_registers():
    """Sums take up to 24 of them; with x86's 16 it was 12."""
    assert 12 < max(tile.sums for tile in tiles_for([1, 48, 48], NEON)) <= 24


@elsewhere
def test_nothing_is_tuned_where_its_time_says_nothing():
    with pytest.raises(RecipeError, match="cannot be tuned here"):
        find("cpu:aarch64@tvm").tuned(1)


@elsewhere
@pytest.mark.parametrize("runtime", Cpu.runtimes)
def test_what_is_missing_is_said_with_what_mends_it(runtime, monkeypatch):
    monkeypatch.setenv("PATH", "")
    probe = find("cpu:aarch64", runtime).probe()
    assert (probe.run.yes, probe.run.mend) == (False, "apt install qemu-user-static")
    if runtime == "tvm":
        assert (probe.build.yes, probe.build.mend) == (False, "apt install g++-aarch64-linux-gnu")


@elsewhere
@pytest.mark.slow
def test_a_build_runs_under_qemu_and_says_so(sysroot, tmp_path):
    calibration = EXAMPLE / "digits-calibration.npz"
    [build] = polycast.compile(EXAMPLE / "digits.onnx", "cpu:aarch64@litert", calibration=calibration, out=tmp_path)
    assert build.manifest["evidence"] == build.open().evidence == "emulated"
    assert build.agreement["within_tolerance"]
