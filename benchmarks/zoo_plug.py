"""What the zoo's scorer runs: ``evals.py run SUBJECT --plug zoo_plug:make``.

Environment: ``POLYCAST_ZOO``, the folder of the zoo, with MiniLM in it; ``POLYCAST_TARGET``, default cpu;
``POLYCAST_PRECISION``, default fp32; ``POLYCAST_CALIBRATION``, a file or folder of calibration samples, or nothing;
``POLYCAST_LENGTH``, the length that a causal language model is built at, or nothing: shorter rows are padded behind,
which changes nothing before.
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

Run = Callable[[subjects.Feeds], list[np.ndarray]]


def make(subject: str) -> Run:
    """Compile ``subject`` and give what runs the build."""
    folder = tempfile.TemporaryDirectory(prefix="polycast-zoo-")
    _FOLDERS.append(folder)
    length = int(os.environ.get("POLYCAST_LENGTH", 0))
    (build,) = polycast.compile(
        Path(os.environ["POLYCAST_ZOO"]) / subjects.FILES[subject],
        targets=[os.environ.get("POLYCAST_TARGET", "cpu")],
        precision=os.environ.get("POLYCAST_PRECISION", "fp32"),
        calibration=os.environ.get("POLYCAST_CALIBRATION"),
        shapes=dict.fromkeys(subjects.feeds(subject), (1, length)) if length else None,
        out=folder.name,
    )
    run = polycast.open_build(build.path).run
    return _padded(run, length) if length else run


def _padded(run: Run, length: int) -> Run:
    def padded(feeds: subjects.Feeds) -> list[np.ndarray]:
        own = next(iter(feeds.values())).shape[1]
        wide = {name: np.pad(array, ((0, 0), (0, length - own))) for name, array in feeds.items()}
        return [array[:, :own] for array in run(wide)]

    return padded
