"""A batch with a stated bound has kernels for one row and for that many, and is right for every size up to it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import conv_net

pytest.importorskip("tvm")

import polycast
from polycast.build import Build
from polycast.errors import InputError, UnsupportedError
from polycast.load import load
from polycast.reference import open_model
from polycast.targets import find
from polycast.targets._tvm import run_tvm, static

#: Of which two rows are run one by one, and three fill half of a block.
MOST = 6


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Build]:
    folder = tmp_path_factory.mktemp("bounds")
    if not (probe := find("cpu@tvm").probe()).build.yes:
        pytest.skip(probe.build.reason)
    source = conv_net(folder / "m.onnx")
    [build] = polycast.compile(source, "cpu@tvm", shapes={"x": (f"..{MOST}", 3, 8, 8)}, out=folder / "out")
    return source, build


def test_any_size_up_to_the_bound_is_what_the_model_gives(built: tuple[Path, Build], tmp_path: Path) -> None:
    source, build = built
    assert build.manifest["runtime"]["by_row"]
    with np.load(build.path / "golden.npz") as arrays:
        assert [len(arrays[f"{i}/output/logits"]) for i in range(2)] == [MOST, 2], "it verifies both kernels"
    session, judge = find("cpu@tvm").open(build.path), open_model(load(source), tmp_path)
    tolerance = build.manifest["golden"]["tolerance"]
    for rows in range(1, MOST + 1):
        feeds = {"x": np.random.default_rng(rows).standard_normal((rows, 3, 8, 8)).astype(np.float32)}
        for found, want in zip(session.run(feeds), judge.run(feeds), strict=True):
            assert found.shape == want.shape
            assert np.abs(found - want).max() <= tolerance * np.abs(want).max()


def test_more_than_the_bound_is_refused(built: tuple[Path, Build]) -> None:
    _, build = built
    x = np.zeros((MOST + 1, 3, 8, 8), np.float32)
    with pytest.raises(InputError, match=rf"x has shape \[7, 3, 8, 8\], the model takes x: float32\[upto_{MOST}, 3"):
        find("cpu@tvm").open(build.path).run({"x": x})
    with pytest.raises(ValueError, match=f"a batch of 7, and the build is made for {MOST} at most"):
        run_tvm.TvmSession(build.path).run({"x": x})


def test_weights_are_stored_once_and_the_larger_kernels_are_what_is_timed(built: tuple[Path, Build]) -> None:
    _, build = built
    larger = build.manifest["runtime"]["larger"]
    assert larger["library"] == f"lib-{MOST}.so" and larger["inside"]["x"]["shape"][0] == MOST
    assert set(larger["parameters"]) == set(build.manifest["runtime"]["parameters"])
    timed = subprocess.run([sys.executable, build.path / "run.py", "--time", "2"], capture_output=True, text=True)
    assert json.loads(timed.stdout)["n"] == 2, timed.stderr


def test_only_a_batch_may_have_a_bound(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "m.onnx")
    bounded = load(source, shapes={"x": ("..8", 3, 8, 8)})
    assert static.bound(bounded) == 8 and static.bound(load(source)) is None
    assert static.bound(load(source, shapes={"x": ("..1", 3, 8, 8)})) is None
    with pytest.raises(InputError, match=r"shape \[upto_2, upto_3, 8, 8\] has upto_3 on axis 1: expected 3"):
        load(source, shapes={"x": ("..2", "..3", 8, 8)})
    with pytest.raises(InputError, match=r"'8\.\.' is no size; 8 fixes one, and '\.\.8' allows any up to that"):
        load(source, shapes={"x": ("8..", 3, 8, 8)})


def test_a_bound_on_another_axis_is_refused_with_what_fixes_it(minilm: Path, tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    with pytest.raises(UnsupportedError, match=r"input input_ids: int64\[1, upto_16\] has no fixed shape"):
        polycast.compile(minilm, "cpu@tvm", shapes=dict.fromkeys(names, (1, "..16")), out=tmp_path)


def test_no_rows_are_refused_and_threads_share_a_session(built: tuple[Path, Build]) -> None:
    _, build = built
    session = run_tvm.TvmSession(build.path)
    with pytest.raises(ValueError, match="the inputs have batches of 0"):
        session.run({"x": np.zeros((0, 3, 8, 8), np.float32)})
    main = session.kernels.main

    def late(*tensors: object) -> object:
        time.sleep(1e-3)  # other threads go on
        return main(*tensors)

    session.kernels.main = late
    every = [{"x": row} for row in np.random.default_rng(0).standard_normal((32, 1, 3, 8, 8)).astype(np.float32)]
    alone = [session.run(feeds)[0] for feeds in every]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal([found for [found] in pool.map(session.run, every)], alone)
