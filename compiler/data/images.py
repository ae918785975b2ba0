"""Samples that are images: a folder, its labels, and the TOML that says how pixels become a tensor."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from polycast.errors import InputError, RecipeError
from polycast.model import Port, Signature

from .feeds import Sample, check_shape, check_values, empty, files_digest, listing, refusal
from .preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Picture:
    """One image file and its class index, or None where there are no labels."""

    path: Path
    label: int | None


class ImageSamples:
    """A folder of images for a model with one input of rank 4.

    Labels are the names of sub-folders, or the columns ``file`` and ``label`` of ``labels.csv``; images that lie
    in the folder itself have none. A class name that is no number stands for its place in ``classes``, which are
    sorted unless the TOML lists them.
    """

    kind = "images"

    def __init__(self, folder: Path, signature: Signature) -> None:
        self.source = str(folder)
        self._folder = folder
        self._port = _only_input(signature, self.source)
        self._preprocess = Preprocess.beside(folder, self._port)
        self._pictures = _pictures(folder, self._preprocess)
        batch = self._port.shape[0] if self._port.shape else 1
        self._batch = batch if isinstance(batch, int) and batch else 1
        if not self._pictures:
            raise empty(self.source, f"images ({listing(sorted(SUFFIXES))}) in it or in its sub-folders")
        if len(self._pictures) % self._batch:
            raise refusal(self.source, "number of images", f"a multiple of {self._batch}", len(self._pictures))
        _import_pillow()

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the images, in order, and of how they become tensors."""
        facts = (self.kind, self._port.name, self._batch, self._preprocess)
        return files_digest((p.path for p in self._pictures), *facts)

    @property
    def prepared(self) -> dict[str, dict[str, Any]]:
        """How images became the input, by its name; see ``Preprocess.facts``."""
        return {self._port.name: self._preprocess.facts()}

    def __len__(self) -> int:
        return len(self._pictures) // self._batch

    def __iter__(self) -> Iterator[Sample]:
        for name, pictures in self._batches():
            tensor = np.stack([self._tensor(p.path) for p in pictures])
            labels = [p.label for p in pictures if p.label is not None]
            yield Sample({self._port.name: tensor}, np.array(labels, np.int64) if labels else None, name)

    def marks(self) -> Iterator[tuple[str, str]]:
        """Yield sha256 (hex) of the files of each sample, and its name; nothing is decoded."""
        for name, pictures in self._batches():
            yield files_digest(p.path for p in pictures), name

    def _batches(self) -> Iterator[tuple[str, list[Picture]]]:
        """Yield the pictures of each sample, and its name."""
        for at in range(0, len(self._pictures), self._batch):
            pictures = self._pictures[at : at + self._batch]
            yield pictures[0].path.relative_to(self._folder).as_posix(), pictures

    def _tensor(self, path: Path) -> np.ndarray:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of very large images; the second is an attack, the first is not.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", _import_pillow().DecompressionBombWarning)
            tensor = self._preprocess(_decoded(path))
        check_shape(self._port, (self._batch, *tensor.shape), str(path))
        check_values(self._port.name, tensor, str(path))
        return tensor


def _only_input(signature: Signature, where: str) -> Port:
    ports = signature.inputs
    if len(ports) != 1 or (ports[0].shape is not None and len(ports[0].shape) != 4):
        found = listing(map(str, ports))
        hint = "Prepare the arrays yourself, and give them as an .npz"
        raise refusal(where, "images for this model", "a model with one input of rank 4", found, hint)
    return ports[0]


def _pictures(folder: Path, preprocess: Preprocess) -> list[Picture]:
    table = folder / "labels.csv"
    if table.exists():
        return _listed(folder, table, preprocess)
    classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    if not classes:
        return [Picture(path, None) for path in _images(folder)]
    indices = _indices(classes, preprocess, str(folder))
    return [Picture(path, indices[name]) for name in classes for path in _images(folder / name)]


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _listed(folder: Path, table: Path, preprocess: Preprocess) -> list[Picture]:
    rows = _table(table)
    indices = _indices(sorted({label for _, label in rows}), preprocess, str(table))
    root = folder.resolve()
    pictures = []
    for file, label in rows:
        path = folder / file
        if not path.resolve().is_relative_to(root):
            raise refusal(str(table), "file", f"one inside {folder}", file)
        if not path.is_file():
            raise refusal(str(table), "file", f"an image in {folder}", f"{file}, which is not there")
        pictures.append(Picture(path, indices[label]))
    return pictures


def _table(path: Path) -> list[tuple[str, str]]:
    """Read the columns ``file`` and ``label``; without a header they are the only two columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise refusal(str(path), "cannot be read", "a table of file,label", error) from error
    head = rows.pop(0) if rows and "file" in rows[0] else ["file", "label"]
    if "label" not in head:
        raise refusal(str(path), "columns", "file, label", listing(head))
    for number, row in enumerate(rows, 1):
        if len(row) != len(head):
            raise refusal(str(path), f"row {number}", f"{len(head)} columns ({listing(head)})", len(row))
    return [(row[head.index("file")], row[head.index("label")]) for row in rows]


def _indices(names: Sequence[str], preprocess: Preprocess, where: str) -> dict[str, int]:
    """Give the class index of every name."""
    classes = preprocess.classes
    if not classes and all(name.isdecimal() for name in names):
        return {name: int(name) + preprocess.offset for name in names}
    order = {name: i + preprocess.offset for i, name in enumerate(classes or names)}
    for name in names:
        if name not in order:
            unknown = RecipeError.unknown("class", name, order)
            raise InputError(f"{where}: {unknown.message}, which the TOML does not list", unknown.hint)
    return order


def _decoded(path: Path) -> Image.Image:
    image = _import_pillow()
    try:
        with image.open(path) as picture:
            picture.load()
            return cast("Image.Image", picture)
    except (OSError, SyntaxError, ValueError, image.DecompressionBombWarning, image.DecompressionBombError) as error:
        raise refusal(str(path), "cannot be read", "an image", error) from error


def _import_pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("reading images needs Pillow", 'pip install "polycast[images]"') from error
    return Image
