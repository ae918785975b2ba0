"""The runner's own tests, in node, against a device that only writes down what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

SITE = Path(__file__).resolve().parents[3] / "targets" / "webgpu" / "site"


def test_runner(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    npz = tmp_path / "golden.npz"
    np.savez_compressed(
        npz, **{"0/input/x": np.arange(6, dtype=np.float32).reshape(2, 3), "0/input/ids": np.array([5, -6])}
    )
    tests = Path(__file__).with_name("runner.test.mjs")
    done = subprocess.run([node, "--test", tests], capture_output=True, text=True, env=os.environ | {"NPZ": str(npz)})
    assert done.returncode == 0, done.stdout + done.stderr


#: What an app does with the runner. What must not pass says so, and does not pass where it does.
APP = """// @ts-check
import { load } from "RUNNER";
const model = await load("./", { onProgress: (done, what) => console.log(what, done.toFixed(2)) });
const { logits } = await model.run({ image: new Float32Array(64) });
// @ts-expect-error
await load("./", { onProgres: () => {} });
// @ts-expect-error
await model.run({ image: "a cat" });
"""


def test_the_types_of_the_runner_and_the_page_hold(tmp_path: Path) -> None:
    compiler = os.environ.get("POLYCAST_TSC") or shutil.which("tsc")
    if compiler is None:
        pytest.skip("TypeScript is not installed: npm install -g typescript, or POLYCAST_TSC names its tsc")
    app = tmp_path / "app.mjs"
    app.write_text(APP.replace("RUNNER", str(SITE / "runner.mjs")), encoding="utf-8")
    flags = ["--noEmit", "--allowJs", "--checkJs", "--strict", "--skipLibCheck", "--module", "nodenext"]
    flags += ["--target", "es2022", "--lib", "es2022,dom,dom.iterable"]
    done = subprocess.run([compiler, *flags, app, *SITE.rglob("*.mjs")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
