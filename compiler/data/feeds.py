"""Feeds: what one run of a model takes, and what must be true of every array in it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from polycast.errors import InputError
from polycast.model import Port

LABEL = "label"


@dataclass(frozen=True)
class Sample:
    """What one run of the model takes.

    feeds: input name -> array, batch axis included, dtype and rank of the signature.
    label: what belongs to these rows (leading axis = rows), or None.
    name: where it came from, for messages: ``data.npz[17]``, ``cat/0003.jpg``.
    """

    feeds: dict[str, np.ndarray]
    label: np.ndarray | None
    name: str


class Samples(Protocol):
    """A re-iterable stream of samples: each pass over it reads the files again and holds one sample at a time.

    What comes from files has a ``digest`` as well (sha256, hex): the same digest, the same samples.
    """

    source: str
    kind: str
    """``arrays``, ``batches``, ``images`` or ``text``."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...


def digest_of(samples: Samples, count: int) -> str:
    """sha256 (hex) of what ``samples`` are: their own ``digest``, or else the feeds of the first ``count``."""
    own: str | None = getattr(samples, "digest", None)
    if own is not None:
        return own
    h = hashlib.sha256()
    for sample in islice(samples, count):
        h.update(feeds_digest(sample.feeds))
    return h.hexdigest()


def feeds_digest(feeds: Mapping[str, np.ndarray]) -> bytes:
    """sha256 of names, dtypes, shapes and numbers of the feeds of one run."""
    h = hashlib.sha256()
    for name in sorted(feeds):
        array = feeds[name]
        h.update(repr((name, array.dtype.str, array.shape)).encode())
        h.update(array.tobytes())
    return h.digest()


def files_digest(files: Iterable[Path], *facts: object) -> str:
    """sha256 (hex) of the bytes of ``files``, in order, and of ``facts``: how they become samples.

    Raises: InputError naming the file that cannot be read.
    """
    h = hashlib.sha256(repr(facts).encode())
    for path in files:
        try:
            with path.open("rb") as file:
                h.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return h.hexdigest()


def refusal(where: str, what: str, expected: object, found: object, hint: str = "") -> InputError:
    """Build the error that every refused datum gets: where, what, expected, found, and what mends it."""
    return InputError(f"{where}: {what}: expected {expected}, found {found}", hint)


def check_names(ports: Sequence[Port], names: Collection[str], where: str) -> None:
    """Hold the names of arrays against the inputs of the model; ``label`` may be there beside them.

    Raises: InputError naming every missing and every unknown name at once.
    """
    inputs = [p.name for p in ports]
    missing = [n for n in inputs if n not in names]
    unknown = [n for n in names if n not in inputs and n != LABEL]
    if missing or unknown:
        what = "array names are not the model's inputs"
        raise refusal(where, what, listing(map(str, ports)), listing(names), _renaming(missing, unknown))


def check_shape(port: Port, shape: tuple[int, ...], where: str) -> None:
    """Hold the shape of one feed against the rank and the fixed dimensions of ``port``."""
    if port.shape is None:
        return
    if len(shape) != len(port.shape):
        what = f"rank of {port.name!r}"
        raise refusal(where, what, f"{len(port.shape)} axes as in {port}", f"{len(shape)} in {list(shape)}")
    if any(isinstance(want, int) and want != got for want, got in zip(port.shape, shape, strict=True)):
        raise refusal(where, f"shape of {port.name!r}", port, list(shape))


def check_dtype(port: Port, dtype: np.dtype, where: str) -> None:
    """Hold the dtype of one feed against ``port``: int32 is not int64, and nothing is cast behind the user's back."""
    if dtype.name == port.dtype or (port.dtype == "str" and dtype.kind == "U"):
        return
    hint = "" if port.dtype == "str" else f'Cast it: x.astype("{port.dtype}")'
    raise refusal(where, f"dtype of {port.name!r}", port.dtype, dtype.name, hint)


def check_values(name: str, array: np.ndarray, where: str) -> None:
    """Refuse NaN and infinity, which would poison every figure that is computed from them."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    hint = "Remove the sample, or mend it: numpy.nan_to_num(x)"
    raise refusal(where, f"{name!r} at {list(at)}", "a finite number", array[at], hint)


def empty(where: str, expected: str) -> InputError:
    """Build the error for a data set that holds no sample."""
    return refusal(where, "empty data set", expected, "none")


def listing(names: Iterable[str], most: int = 12) -> str:
    """Join names for a message; a long list is cut, and says so."""
    all_names = list(names)
    more = [f"and {len(all_names) - most} more"] if len(all_names) > most else []
    return ", ".join(all_names[:most] + more) or "nothing"


def _renaming(missing: list[str], unknown: list[str]) -> str:
    if len(missing) == len(unknown) == 1:
        return f"Rename {unknown[0]!r} to {missing[0]!r}"
    advice = []
    for name in unknown:
        near = get_close_matches(name, missing, n=1)
        advice.append(f"Rename {name!r} to {near[0]!r}" if near else f"Remove {name!r}")
    return "; ".join(advice) or f"Add {listing(map(repr, missing))}"
