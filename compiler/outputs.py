"""Reading outputs: which of them are class scores, what their rows are, and the arithmetic that metrics share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .statistics import Array

if TYPE_CHECKING:
    from polycast.samples import Sample

Outputs = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Scores:
    """Class scores ``values`` [rows, positions, classes] and the index of the output that they are."""

    index: int
    values: NDArray[Any]


def class_scores(outputs: Outputs) -> NDArray[Any] | None:
    """Give the first float output that is [rows, classes], axes of size 1 aside and at least two classes, or None.

    What is no row of scores but an embedding, of unit length, is passed over.
    """
    scores = _find_scores(outputs, 2)
    return scores.values[:, 0] if scores else None


def position_scores(outputs: Outputs) -> Scores | None:
    """Give class scores as [rows, 1, classes], else the first float output [rows, positions, classes], else None."""
    return _find_scores(outputs, 2) or _find_scores(outputs, 3)


def _find_scores(outputs: Outputs, rank: int) -> Scores | None:
    for index, output in enumerate(outputs):
        if output.dtype.kind != "f" or output.ndim < 2 or output.size == 0:
            continue
        inner = [d for d in output.shape[1:] if d > 1]
        if rank == 2 and len(inner) == 1 and not are_embeddings(output):
            return Scores(index, output.reshape(len(output), 1, -1))
        if rank == 3 and output.ndim == 3 and output.shape[-1] > 1:
            return Scores(index, output)
    return None


def similarity(outputs: Outputs, n: int) -> Array | None:
    """Give one value per label [n]: an output of that size, or the cosine of each two rows of the last [2 n, width]."""
    floats = [o for o in outputs if o.dtype.kind == "f"]
    for output in floats:
        if output.size == n:
            return output.reshape(n).astype(np.float64)
    for output in reversed(floats):
        if output.ndim == 2 and len(output) == 2 * n:
            pairs = output.astype(np.float64)
            return cosine(pairs[0::2], pairs[1::2])
    return None


def labels(sample: Sample, metric: str, kinds: str = "iu") -> NDArray[Any]:
    """Give the label of every row, [rows]. Raises: InputError where there is none, or none of the right kind."""
    if sample.label is None:
        raise InputError(f"{sample.name}: {metric} needs labels, and the data has none")
    label = np.atleast_1d(sample.label)
    if label.dtype.kind not in kinds or label.size != len(label):
        wanted = "an integer" if kinds == "iu" else "a number"
        shape = ", ".join(map(str, label.shape))
        raise InputError(f"{sample.name}: {metric} needs {wanted} per row; the label is {label.dtype}[{shape}]")
    return label.reshape(-1)


def common_rows(outputs: Outputs) -> int:
    """Give the leading size that all outputs share: then a row is a sample; else 1."""
    sizes = {len(o) if o.ndim else 1 for o in outputs}
    return sizes.pop() if len(sizes) == 1 else 1


def float_pairs(outputs: Outputs, reference: Outputs, rows: int, metric: str) -> list[tuple[Array, Array]]:
    """Pair every float output with the original's, both as [rows, elements] float64.

    Raises: InputError where there is none, or where the shapes differ.
    """
    pairs = []
    for index, (ours, theirs) in enumerate(zip(outputs, reference, strict=True)):
        if theirs.dtype.kind != "f" or theirs.size == 0:
            continue
        if ours.shape != theirs.shape:
            raise InputError(f"output {index} is {list(ours.shape)}, the original's is {list(theirs.shape)}")
        pairs.append((ours.reshape(rows, -1).astype(np.float64), theirs.reshape(rows, -1).astype(np.float64)))
    if not pairs:
        raise InputError(f"{metric} needs a float output; found {describe(reference)}")
    return pairs


def error_of(ours: Array, theirs: Array) -> Array:
    """``ours - theirs``; 0 where both are the same infinity or both are NaN."""
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, ours - theirs)


def cosine(a: Array, b: Array) -> Array:
    """Cosine of each row of ``a`` with that of ``b``, [rows]; of two zero rows it is 1, of one it is 0."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(1) & ~b.any(1)
    return np.where(both_zero, 1.0, (a * b).sum(1) / np.where(norms == 0, 1.0, norms))


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Whether no score is negative and each row sums to 1, within what float16 rounding leaves."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(-1, dtype=np.float64), 1, atol=2e-3))


def are_embeddings(rows: NDArray[Any]) -> bool:
    """Whether every row [n, …] is a vector of length 1 that points anywhere, within what float16 rounding leaves."""
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return bool((flat < 0).any() and np.allclose((flat * flat).sum(1), 1, atol=4e-3))


def log_softmax(scores: NDArray[Any]) -> Array:
    """Natural logarithm of softmax over the last axis, in float64."""
    shifted = scores.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def log_of_probabilities(scores: NDArray[Any]) -> Array:
    """Natural logarithm of probabilities, none taken as smaller than the least normal float32."""
    return np.log(np.maximum(scores.astype(np.float64), np.finfo(np.float32).tiny))


def slices(scores: NDArray[Any], elements: int = 4 << 20) -> Iterator[slice]:
    """Cut scores [positions, classes] so that a float64 copy of one piece stays near 32 MiB."""
    step = max(1, elements // scores.shape[-1])
    return (slice(start, start + step) for start in range(0, len(scores), step))


def token_ids(sample: Sample) -> NDArray[Any]:
    """Give ``input_ids``, or else the only integer input of rank 2 that is no mask. Raises: InputError."""
    found = sample.feeds.get("input_ids")
    if found is None:
        whole = [a for name, a in sample.feeds.items() if a.dtype.kind in "iu" and a.ndim == 2 and "mask" not in name]
        found = whole[0] if len(whole) == 1 else None
    if found is None:
        raise InputError(f"perplexity needs an input input_ids; the inputs are {', '.join(sample.feeds)}")
    return found


def describe(outputs: Outputs) -> str:
    """Write dtypes and shapes: ``float32[1, 10], int64[1]``."""
    return ", ".join(f"{o.dtype}[{', '.join(map(str, o.shape))}]" for o in outputs)
