"""Tiles that are measured are kept for one chip, and later builds are made with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import conv_net

pytest.importorskip("tvm")

import polycast
from polycast.errors import RecipeError
from polycast.load import load
from polycast.targets import find
from polycast.targets._tvm import cpu_lowering, cpu_rules, cpu_tuning, cross, static
from polycast.targets._tvm.cpu_arch import Cpu, this_cpu
from polycast.targets._tvm.cpu_tiles import Tile, tiles_for
from polycast.targets._tvm.cpu_tuning import records_of
from polycast.targets._tvm.records import Search


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_records_of_one_chip_are_not_those_of_another() -> None:
    here = records_of(Cpu("vnni"), "chip A")
    here.add("k", Tile((1, 4), 2))
    assert records_of(Cpu("vnni"), "chip A").read() == {"k": Tile((1, 4), 2)}
    assert records_of(Cpu("vnni"), "chip B").read() == {}
    assert records_of(Cpu("avx512"), "chip A").read() == {}


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"fastest": {"k": 1}, "tried": 1}', '{"fastest": {"k": {"rows": 1}}}']
)
def test_a_damaged_file_is_as_good_as_none(text: str) -> None:
    records = records_of(Cpu("avx2"), "chip")
    records.path.parent.mkdir(parents=True)
    records.path.write_text(text)
    assert records.read() == {} and records.tried() == {}


@pytest.mark.parametrize("cpu", [Cpu("vnni"), Cpu("avx2"), Cpu("generic")], ids=lambda cpu: cpu.arch)
@pytest.mark.parametrize("shape", [(1, 25, 5, 4), (1, 7, 7, 1), (384, 96), (1, 1)])
def test_tiles_divide_what_they_tile_and_fit_into_the_registers(shape: tuple[int, ...], cpu: Cpu) -> None:
    found = tiles_for(shape, cpu)
    assert found
    for tile in found:
        assert all(size % many == 0 for size, many in zip(shape[-3:], (*tile.rows, tile.columns), strict=False))
        assert tile.sums <= cpu.registers
    assert [tile.cost for tile in found] == sorted(tile.cost for tile in found)


def test_a_build_takes_the_tile_that_was_measured(tmp_path: Path) -> None:
    model, _ = static.fixed(load(conv_net(tmp_path / "m.onnx")))
    cpu = this_cpu()
    kernels = cpu_lowering.kernels(model, cpu)
    key, kernel = next((k, each) for k, each in kernels.items() if len(cpu_rules.tiles(each, cpu)) > 1)
    plain = str(cpu_lowering.lower(model, cpu).module)
    assert plain == str(cpu_lowering.lower(model, cpu, {key: cpu_rules.tiles(kernel, cpu)[0]}).module)
    assert plain != str(cpu_lowering.lower(model, cpu, {key: cpu_rules.tiles(kernel, cpu)[1]}).module)


def test_the_records_that_a_build_is_made_with_are_named(tmp_path: Path) -> None:
    """What is none of its kernels is not of them."""
    model, cpu = static.fixed(load(conv_net(tmp_path / "m.onnx")))[0], this_cpu()
    kernels = cpu_lowering.kernels(model, cpu)
    key, kernel = next((k, each) for k, each in kernels.items() if len(cpu_rules.tiles(each, cpu)) > 1)
    found = []
    for tile in cpu_rules.tiles(kernel, cpu)[:2]:
        tuned = cpu_lowering.lower(model, cpu, {"of another model": tile, key: tile}).tuned
        assert tuned == {key: tile}
        found.append(cross.told(tuned))
    assert [each["kernels"] for each in found] == [1, 1]
    assert found[0]["records"] != found[1]["records"]


def test_no_time_measures_nothing(tmp_path: Path) -> None:
    model, _ = static.fixed(load(conv_net(tmp_path / "m.onnx")))
    assert cpu_tuning.tune(model, this_cpu(), 0.0) == 0
    assert cpu_tuning.known(this_cpu()) == {}


@pytest.mark.slow
def test_what_was_measured_once_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, told = conv_net(tmp_path / "m.onnx"), []
    monkeypatch.setattr(cpu_tuning, "deepen", lambda *_: [])
    polycast.compile(source, "cpu@tvm", tune=2.0, out=tmp_path / "a", progress=lambda *line: told.append(line))
    assert any(what == "tune" for what, *_ in told)
    known = cpu_tuning.known(this_cpu())
    assert known
    monkeypatch.setattr(Search, "fastest", lambda *_: pytest.fail("measured again"))
    [build] = polycast.compile(source, "cpu@tvm", tune=2.0, out=tmp_path / "b")
    assert build.manifest["runtime"]["tuned"]["kernels"] == len(known)
    assert cpu_tuning.known(this_cpu()) == known


def test_what_cannot_be_tuned_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match="cpu cannot be tuned here: onnxruntime chooses its kernels itself"):
        polycast.compile(source, "cpu", tune=1.0, out=tmp_path / "out")
    run = find("rocm").probe().run
    if not run.yes:
        with pytest.raises(RecipeError, match="rocm cannot be tuned here: ") as caught:
            polycast.compile(source, "rocm", tune=1.0, out=tmp_path / "out")
        assert run.reason in str(caught.value)
