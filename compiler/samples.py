"""Samples: calibration and validation inputs, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polycast.data.arrays import BatchSamples, open_npz
from polycast.data.feeds import Sample, Samples, refusal
from polycast.data.images import ImageSamples
from polycast.data.text import TextSamples

from .errors import InputError
from .model import Signature

__all__ = ["Sample", "Samples", "open_samples", "prepared"]


def prepared(*several: Samples | None) -> dict[str, dict[str, Any]]:
    """Say by input how images became it, by the first of the samples that are images."""
    return next((each.prepared for each in several if isinstance(each, ImageSamples)), {})


_FORMS = "an .npz, a .txt, a folder of .npz files or a folder of images"


def open_samples(path: str | Path, signature: Signature, *, beside: Path | None = None) -> Samples:
    """Open data that the user gave, for a model with ``signature``.

    beside: the folder of the model, where a text's tokenizer is looked for; the text's own folder if None.
    Names, dtypes and shapes are checked here, from headers; values are checked as they are read.
    Raises: InputError saying what, where, expected, found.
    """
    path = Path(path)
    if path.is_dir():
        return BatchSamples.folder(path, signature) if any(path.glob("*.npz")) else ImageSamples(path, signature)
    if not path.exists():
        raise InputError(f"no data at {path}", f"Give {_FORMS}")
    if path.suffix == ".npz":
        return open_npz(path, signature)
    if path.suffix == ".txt":
        return TextSamples(path, signature, beside or path.parent)
    raise refusal(str(path), "unknown kind of data", _FORMS, f"a file that ends in {path.suffix or 'nothing'}")
