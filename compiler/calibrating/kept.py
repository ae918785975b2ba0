"""Kept: what was seen, on disk, so that an interrupted look goes on and a finished one is not made again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir

from polycast.data.feeds import Samples, digest_of
from polycast.model import digest, graphs, values

from .taps import Tap

#: Counts up whenever what is kept, or how it is computed, changes.
_FORMAT = 1

#: Seconds between two savings of an unfinished look; a saving that takes long is made less often.
_INTERVAL = 10.0
_SAVING_SHARE = 0.05

#: Bytes that the folder holds at most; the file that was not read for the longest time goes first.
FOLDER_BYTES = 4 << 30

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)

Arrays = dict[str, np.ndarray]


class Kept:
    """The file of one look. Where it cannot be read it is as if it were not there; where the disk is full, too."""

    def __init__(self, folder: Path | None, key: str = "") -> None:
        self._path = folder / "calibration" / f"{key}.npz" if folder else None
        self._saved = time.monotonic()
        self._wait = _INTERVAL

    def load(self) -> Arrays | None:
        """Read what ``save`` wrote; None where there is nothing, or nothing whole."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            os.utime(self._path)
        except _DAMAGE:
            return None
        return arrays

    def due(self) -> bool:
        """Whether it is time to save an unfinished look."""
        return self._path is not None and time.monotonic() - self._saved > self._wait

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write ``arrays``, whole or not at all."""
        if self._path is None:
            return
        started = time.monotonic()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._path, arrays)
            _prune(self._path.parent)
        except OSError:
            self._path = None
        self._saved = time.monotonic()
        self._wait = max(_INTERVAL, (self._saved - started) / _SAVING_SHARE)


class Key:
    """What a look depends on: the graph, the samples and how many, and the versions that compute it."""

    def __init__(self, graph: ir.Model, samples: Samples, count: int) -> None:
        self._common = (
            _FORMAT,
            version("onnxruntime"),
            version("numpy"),
            digest(graph),
            digest_of(samples, count),
            count,
        )
        # The digest of a graph does not count names, and a tap is one: where each lies says which value it means.
        names = [value.name for body in graphs(graph) for value in values(body)]
        self._places = {name: place for place, name in reversed(list(enumerate(names)))}

    def of(self, taps: Sequence[Tap]) -> str:
        """Give the key of looking at ``taps``."""
        wanted = [(tap.value, self._places.get(tap.value), tap.want.value, tap.axis) for tap in taps]
        return hashlib.sha256(repr((self._common, wanted)).encode()).hexdigest()


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _prune(folder: Path) -> None:
    files = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in folder.iterdir()), reverse=True)
    held = 0
    for _, size, file in files:
        held += size
        if held > FOLDER_BYTES:
            file.unlink(missing_ok=True)
