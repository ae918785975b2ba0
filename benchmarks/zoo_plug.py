"""What the zoo's scorer runs: ``evals.py run SUBJECT --plug zoo_plug:make``.

Environment: ``POLYCAST_ZOO``, the folder of the zoo, with MiniLM in it; ``POLYCAST_PRECISION``, default fp32;
``POLYCAST_CALIBRATION``, a file or folder of calibration samples, or nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import subjects

import polycast

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # each lives as long as this process


def make(subject: str) -> Callable[[subjects.Feeds], list[np.ndarray]]:
    """Compile ``subject`` for the CPU and give what runs the build."""
    folder = tempfile.TemporaryDirectory(prefix="polycast-zoo-")
    _FOLDERS.append(folder)
    (build,) = polycast.compile(
        Path(os.environ["POLYCAST_ZOO"]) / subjects.FILES[subject],
        targets=["cpu"],
        precision=os.environ.get("POLYCAST_PRECISION", "fp32"),
        calibration=os.environ.get("POLYCAST_CALIBRATION"),
        out=folder.name,
    )
    return polycast.open_build(build.path).run
