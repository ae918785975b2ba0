"""Fingerprint: what tells whether a result that is kept would come out the same again."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from .samples import Samples

#: What computes, beside this package itself.
LIBRARIES = ("ai-edge-litert", "apache-tvm", "flatbuffers", "numpy", "onnx", "onnx-ir", "onnxruntime", "scipy")

#: Folders and files of this package that change what is shown, and nothing that is built or measured.
_SHOWN = ("rendering", "cli.py", "progress.py", "report.py", "show.py", "sweep.py")


def of_data(data: str | Path | Samples | None) -> str | None:
    """Give the sha256 of samples: of their files, where they are of files, else of every array of every sample."""
    if data is None:
        return None
    if isinstance(data, str | Path):
        return of_files(Path(data))
    if own := getattr(data, "digest", None):
        return str(own)
    h = hashlib.sha256()
    for sample in data:
        label = {} if sample.label is None else {"label": sample.label}
        h.update(of_arrays({**sample.feeds, **label}).encode())
    return h.hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Give the sha256 of arrays: of their names, dtypes, shapes and values."""
    h = hashlib.sha256()
    for name, array in arrays.items():
        h.update(repr((name, array.dtype.str, array.shape)).encode())
        h.update(array.tobytes() if array.dtype != object else repr(array.tolist()).encode())
    return h.hexdigest()


def of_files(path: Path) -> str:
    """Give the sha256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        about = path.stat()
        return _of_file(path, about.st_size, about.st_mtime_ns)
    h = hashlib.sha256()
    for inside in sorted(p for p in path.rglob("*") if p.is_file()):
        h.update(f"{inside.relative_to(path).as_posix()}\0{of_files(inside)}\0".encode())
    return h.hexdigest()


@lru_cache(maxsize=1 << 16)
def _of_file(path: Path, size: int, changed: int) -> str:
    """Read a file once, however many builds are made of it. changed: when, in ns."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Give the version of each library that computes, as far as it is installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def of_package() -> str:
    """Give the sha256 of the code of this package that builds and measures.

    A version number says less: in a checkout that is being worked on, code changes under it.
    """
    h, home = hashlib.sha256(), Path(__file__).parent
    for file in sorted(_code(home)):
        h.update(f"{file.relative_to(home).as_posix()}\0".encode())
        h.update(file.read_bytes())
    return h.hexdigest()


def _code(home: Path) -> Iterator[Path]:
    # Links to folders are followed: an editable install may be made of them.
    for folder, inside, files in os.walk(home, followlinks=True):
        if Path(folder) == home:
            inside[:] = [name for name in inside if name not in _SHOWN]
            files = [name for name in files if name not in _SHOWN]
        inside[:] = [name for name in inside if name != "__pycache__" and not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def of_others(things: Iterable[object]) -> str:
    """Give the sha256 of the code of those of ``things`` that come from a package outside this one.

    things: functions, or objects, which come from where their class does.
    """
    h = hashlib.sha256()
    kinds = {thing if inspect.isroutine(thing) else type(thing) for thing in things}
    for kind in sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        if kind.__module__.partition(".")[0] != __name__.partition(".")[0]:
            h.update(_code_of(kind))
    return h.hexdigest()


def _code_of(kind: Any) -> bytes:
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):  # typed in, so that it may be another one by the same name
        return os.urandom(16)
