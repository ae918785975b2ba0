"""Samples that are arrays already: one .npz with the sample axis first, or one batch after another."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, repeat
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from polycast.model import Port, Signature

from .feeds import (
    LABEL,
    Sample,
    check_dtype,
    check_names,
    check_shape,
    check_values,
    empty,
    files_digest,
    listing,
    refusal,
)
from .npz import Member, members, opened

_NUMBERED = re.compile(r"(\d+)/(.+)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """One array, sample axis first. A sample takes ``rows`` of it, or one row without its axis (``indexed``)."""

    member: Member
    rows: int = 1
    indexed: bool = False

    def __len__(self) -> int:
        return self.member.shape[0] // self.rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what one sample takes."""
        return self.member.shape[1:] if self.indexed else (self.rows, *self.member.shape[1:])

    def read(self, archive: ZipFile) -> Generator[np.ndarray]:
        """Yield what each sample takes, in order."""
        with closing(self.member.chunks(archive, self.rows)) as chunks:
            for chunk in chunks:
                yield chunk[0] if self.indexed else chunk


class ArraySamples:
    """An .npz with one array per input, sample axis first, and an optional ``label``.

    An array with the rank of its input gives as many rows a sample as the input's fixed first dimension says,
    else a batch of one; an array with one axis more gives one index a sample.
    """

    kind = "arrays"

    def __init__(self, path: Path, arrays: Mapping[str, Member], signature: Signature) -> None:
        self.source = str(path)
        self._path = path
        check_names(signature.inputs, arrays, self.source)
        self._columns = {p.name: _column(p, arrays[p.name]) for p in signature.inputs}
        counts = {name: len(column) for name, column in self._columns.items()}
        if len(set(counts.values())) > 1:
            found = listing(f"{count} in {name!r}" for name, count in counts.items())
            raise refusal(self.source, "number of samples", "the same in every array", found)
        self._count = next(iter(counts.values()), 0)
        if not self._count:
            raise empty(self.source, "at least one sample")
        has_label = LABEL in arrays and LABEL not in self._columns
        self._label = self._label_column(arrays[LABEL]) if has_label else None

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the archive and of how the model's inputs read it."""
        shapes = {name: (column.rows, column.indexed) for name, column in self._columns.items()}
        return files_digest([self._path], self.kind, shapes)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        with opened(self._path) as archive, ExitStack() as stack:

            def stream(column: Column) -> Iterator[np.ndarray]:
                return stack.enter_context(closing(column.read(archive)))

            streams = [stream(column) for column in self._columns.values()]
            labels = stream(self._label) if self._label else repeat(None)
            for i, (label, *arrays) in enumerate(zip(labels, *streams, strict=False)):
                yield _checked(dict(zip(self._columns, arrays, strict=True)), label, f"{self.source}[{i}]")

    def _label_column(self, member: Member) -> Column:
        """Labels go by sample or by row; where the samples are whole batches, a second axis may count their rows."""
        rows = member.shape[0] if member.shape else 0
        if not rows or rows % self._count:
            raise refusal(member.where, "number of labels", f"{self._count} or a multiple", rows)
        batched = [c for c in self._columns.values() if c.shape]
        whole = rows == self._count and len(member.shape) > 1 and bool(batched)
        if whole and all(c.indexed and c.shape[0] == member.shape[1] for c in batched):
            return Column(member, indexed=True)
        return Column(member, rows // self._count)


class BatchSamples:
    """Batches, each with the model's own ranks, so that lengths may differ from one to the next.

    They lie in the .npz files of a folder, or in one .npz under the keys ``<i>/<input>``.
    """

    kind = "batches"

    def __init__(self, source: Path, batches: list[tuple[str, Mapping[str, Member]]], signature: Signature) -> None:
        self.source = str(source)
        self._batches = batches
        self._inputs = [p.name for p in signature.inputs]
        for name, arrays in batches:
            check_names(signature.inputs, arrays, name)
            for port in signature.inputs:
                check_dtype(port, arrays[port.name].dtype, name)
                check_shape(port, arrays[port.name].shape, name)

    @classmethod
    def numbered(cls, path: Path, arrays: Mapping[str, Member], signature: Signature) -> BatchSamples:
        """Group the keys ``<i>/<input>`` of one archive by ``i``."""
        groups: dict[int, dict[str, Member]] = {}
        for key, member in arrays.items():
            match = _NUMBERED.fullmatch(key)
            assert match is not None, key
            groups.setdefault(int(match[1]), {})[match[2]] = member
        return cls(path, [(f"{path}[{i}]", groups[i]) for i in sorted(groups)], signature)

    @classmethod
    def folder(cls, path: Path, signature: Signature) -> BatchSamples:
        """Take every .npz of a folder, sorted by name."""
        return cls(path, [(str(file), members(file)) for file in sorted(path.glob("*.npz"))], signature)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the archives and of the inputs that are taken from them."""
        paths = dict.fromkeys(array.path for _, arrays in self._batches for array in arrays.values())
        return files_digest(paths, self.kind, self._inputs)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Sample]:
        for path, batches in groupby(self._batches, lambda batch: next(iter(batch[1].values())).path):
            with opened(path) as archive:
                for name, arrays in batches:
                    feeds = {n: arrays[n].whole(archive) for n in self._inputs}
                    has_label = LABEL in arrays and LABEL not in feeds
                    yield _checked(feeds, arrays[LABEL].whole(archive) if has_label else None, name)


def open_npz(path: Path, signature: Signature) -> ArraySamples | BatchSamples:
    """Open one archive, by the form of its keys: ``<input>`` or ``<i>/<input>``.

    Raises: InputError.
    """
    arrays = members(path)
    if not arrays:
        raise empty(str(path), "one array per input")
    inputs = {p.name for p in signature.inputs}
    if all(_NUMBERED.fullmatch(key) and key not in inputs for key in arrays):
        return BatchSamples.numbered(path, arrays, signature)
    return ArraySamples(path, arrays, signature)


def _column(port: Port, member: Member) -> Column:
    check_dtype(port, member.dtype, str(member.path))
    rank = len(port.shape) if port.shape is not None else len(member.shape)
    if len(member.shape) not in (rank, rank + 1) or not member.shape:
        expected = f"{rank or 1} or {rank + 1} axes, samples first" if rank else "1 axis, samples first"
        found = f"{len(member.shape)} in {list(member.shape)}"
        raise refusal(str(member.path), f"rank of {port.name!r}", f"{expected}, for {port}", found)
    indexed = len(member.shape) == rank + 1
    batch = port.shape[0] if port.shape and not indexed else 1
    rows = batch if isinstance(batch, int) and batch else 1
    if member.shape[0] % rows:
        what = f"rows of {port.name!r}"
        raise refusal(str(member.path), what, f"a multiple of {rows}, for {port}", member.shape[0])
    column = Column(member, rows, indexed)
    check_shape(port, column.shape, str(member.path))
    return column


def _checked(feeds: dict[str, np.ndarray], label: np.ndarray | None, name: str) -> Sample:
    for key, array in (*feeds.items(), *([(LABEL, label)] if label is not None else [])):
        check_values(key, array, name)
    return Sample(feeds, label, name)
