"""Builds for 64-bit ARM meet their golden under qemu: by the native runner, and by the run.py that they carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import native
import numpy as np
import pytest
from repairs import zoo_samples

import polycast
from polycast.targets import find

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "digits"
RUNTIMES = ("onnxruntime", "litert", "tvm")

#: Verifies several builds in one process, each by its own run.py: to start Python takes longer than they do.
VERIFY = """
import runpy, sys
for runner in sys.argv[1:]:
    sys.argv[1:] = ["--verify"]
    sys.path.insert(0, runner.rpartition("/")[0])
    try:
        runpy.run_path(runner, run_name="__main__")
    except SystemExit as left:
        print(left.code)
    sys.path.pop(0)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subjects(zoo: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Give models with their samples: the example, and those of the zoo where it is there."""
    found = [(EXAMPLE / "digits.onnx", EXAMPLE / "digits-calibration.npz")]
    with suppress(pytest.skip.Exception):
        for name in ("kws", "ic_resnet8"):
            model, samples = zoo(f"mlperftiny/{name}.onnx"), tmp_path_factory.mktemp(name) / "samples.npz"
            rows = zoo_samples(zoo("evals.py"), name)[:3]
            np.savez(samples, **{f"{i}/{port}": array for i, row in enumerate(rows) for port, array in row.items()})
            found.append((model, samples))
    return found


@pytest.fixture(scope="module")
def builds(subjects: list[tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Give the builds of every subject for a runtime. They are made as where nothing of ARM can run."""

    def make(runtime: str) -> list[Path]:
        target = find("cpu:aarch64", runtime)
        if not target.probe().build.yes:
            pytest.skip(target.probe().build.reason)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POLYCAST_CACHE", str(tmp_path_factory.mktemp("nothing")))
            return [cast(*each, str(target), tmp_path_factory.mktemp("builds")) for each in subjects]

    def cast(model: Path, samples: Path, target: str, out: Path) -> Path:
        [build] = polycast.compile(model, [target], calibration=samples, out=out)
        assert build.manifest["evidence"] == "not run"
        return build.path

    return make


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_they_meet_their_golden_from_cpp_and_from_python(sysroot, builds, runtime, request):
    runner = native.compiled(request.config, "aarch64-linux-gnu-g++", "-O0")
    options = [word for folder in sysroot.libraries for word in ("--lib", folder)]
    made = builds(runtime)
    for build in made:
        said = native.said_by([*sysroot.command(runner), build, "--threads", "1", "--runs", "2", *options])
        assert said.found.get("ok") is True, said
        assert said.found["golden"]["n"] == json.loads((build / "manifest.json").read_text())["golden"]["n"] > 0
        assert said.found["on"]["machine"] == "aarch64"
    done = sysroot.run_python("-c", VERIFY, *(build / "run.py" for build in made), env={"POLYCAST_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["verified: every file's hash and every golden output", "0"] * len(made)


def test_what_is_compiled_beside_a_sysroot_says_that_its_numbers_are_emulated(sysroot, tmp_path):
    target = find("cpu:aarch64", "litert")
    if not target.probe().build.yes:
        pytest.skip(target.probe().build.reason)
    [build] = polycast.compile(EXAMPLE / "digits.onnx", [str(target)], out=tmp_path)
    assert build.manifest["evidence"] == "emulated"
    assert build.agreement["within_tolerance"] is True
    assert build.verify() == []
