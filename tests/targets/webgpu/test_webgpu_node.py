"""The runner's own tests, in node, against a device that only writes down what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest


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
