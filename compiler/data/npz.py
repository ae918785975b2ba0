"""Arrays of an .npz archive, read a few rows at a time: no array is ever whole in memory, no pickle is ever loaded."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from polycast.errors import InputError

from .feeds import refusal

#: A column-major array has no rows to stream: it is held whole, up to this many bytes.
COLUMN_MAJOR_BYTES = 64 << 20

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError)


@dataclass(frozen=True)
class Member:
    """One array of an archive, known by its header. ``shape`` is the whole array's, sample axis included."""

    name: str
    path: Path
    entry: zipfile.ZipInfo
    dtype: np.dtype
    shape: tuple[int, ...]
    column_major: bool
    header_bytes: int

    @property
    def where(self) -> str:
        """Archive and array, for messages."""
        return f"{self.path}: {self.name!r}"

    def whole(self, archive: zipfile.ZipFile) -> np.ndarray:
        """Read the whole array."""
        with archive.open(self.entry) as stream:
            stream.read(self.header_bytes)
            if self.column_major:
                array = np.ascontiguousarray(self._take(stream, self.shape[::-1]).T)
            else:
                array = self._take(stream, self.shape)
            stream.read()
            return array

    def chunks(self, archive: zipfile.ZipFile, rows: int) -> Generator[np.ndarray]:
        """Read ``rows`` rows at a time, as arrays of [rows, ...]."""
        if self.column_major:
            array = self.whole(archive)
            yield from (array[at : at + rows] for at in range(0, len(array), rows))
            return
        with archive.open(self.entry) as stream:
            stream.read(self.header_bytes)
            for left in range(self.shape[0] // rows - 1, -1, -1):
                chunk = self._take(stream, (rows, *self.shape[1:]))
                if not left:
                    stream.read()  # reaching the end is what checks the CRC
                yield chunk

    def _take(self, stream: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape) * self.dtype.itemsize
        buffer = bytearray(stream.read(size))
        if len(buffer) < size:
            raise EOFError(f"{self.name!r} ends {size - len(buffer)} bytes early")
        array = np.ndarray(shape, self.dtype, buffer)
        return array if self.dtype.isnative else array.astype(self.dtype.newbyteorder("="))


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive at ``path`` for reading.

    Raises: InputError when it is not an archive, or turns out to be damaged while it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _DAMAGE as error:
        raise refusal(str(path), "cannot be read", "an .npz archive", _diagnosis(path, error), _hint(path)) from error


def members(path: Path) -> dict[str, Member]:
    """Read the header of every array in the archive at ``path``; no data is read.

    Raises: InputError for an archive that is damaged, or that holds pickled objects.
    """
    with opened(path) as archive:
        entries = [e for e in archive.infolist() if e.filename.endswith(".npy")]
        return {e.filename.removesuffix(".npy"): _member(path, archive, e) for e in entries}


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    name = entry.filename.removesuffix(".npy")
    where = f"{path}: {name!r}"
    with archive.open(entry) as stream:
        try:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
            shape, column_major, dtype = read(stream)
        except (ValueError, KeyError) as error:
            raise refusal(where, "cannot be read", "an array in the .npy format 1.0 or 2.0", error) from error
        header_bytes = stream.tell()
    if dtype.hasobject:
        hint = 'Save it with a plain dtype: numpy.savez(path, x=x.astype("float32"))'
        raise refusal(where, "dtype", "numbers or text", "pickled Python objects, which are never loaded", hint)
    size = math.prod(shape) * dtype.itemsize
    if entry.file_size - header_bytes != size:
        found = f"{entry.file_size - header_bytes} bytes"
        raise refusal(where, "truncated", f"{size} bytes for {dtype.name}{list(shape)}", found)
    if column_major and size > COLUMN_MAJOR_BYTES:
        found = f"column-major order (Fortran), {size} bytes"
        raise refusal(where, "layout", "rows that can be streamed", found, "Save numpy.ascontiguousarray(x)")
    return Member(name, path, entry, dtype, shape, column_major, header_bytes)


def _diagnosis(path: Path, error: BaseException) -> str:
    head = _head(path)
    if head.startswith(npy.MAGIC_PREFIX):
        return "a single .npy array"
    if head.startswith(b"\x80"):
        return "a pickle, which is never loaded"
    if head.startswith(b"PK"):
        return f"a truncated or damaged archive ({error})"
    return "an empty file" if not head else f"something else ({error})"


def _hint(path: Path) -> str:
    if _head(path).startswith(npy.MAGIC_PREFIX):
        return "Save it under the name of the model's input: numpy.savez(path, **{input_name: x})"
    return "Write it again with numpy.savez or numpy.savez_compressed"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
