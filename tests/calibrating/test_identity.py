"""Samples from files have a digest: the same for the same samples, another for any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polycast.data.feeds import Samples
from polycast.model import Port, Signature
from polycast.samples import open_samples

SIGNATURE = Signature((Port("x", "float32", ("n", 4)),), ())
PICTURES = Signature((Port("x", "float32", (1, 3, 8, 8)),), ())
TEXT = Signature((Port("input_ids", "int64", ("n", "s")),), ())


def archive(folder: Path, seed: int) -> Samples:
    np.savez(folder / "data.npz", x=np.random.default_rng(seed).random((6, 4), np.float32))
    return open_samples(folder / "data.npz", SIGNATURE)


def batches(folder: Path, seed: int) -> Samples:
    (folder / "batches").mkdir()
    for number in range(3):
        rng = np.random.default_rng(seed * 10 + number)
        np.savez(folder / "batches" / f"{number}.npz", x=rng.random((number + 1, 4), np.float32))
    return open_samples(folder / "batches", SIGNATURE)


def images(folder: Path, seed: int) -> Samples:
    image = pytest.importorskip("PIL.Image")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    image.fromarray(pixels).save(folder / "images" / "0.png")
    return open_samples(folder / "images", PICTURES)


def text(folder: Path, seed: int) -> Samples:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text("a b " * (10 + seed))
    return open_samples(folder / "text.txt", TEXT)


Make = Callable[[Path, int], Samples]


@pytest.mark.parametrize("make", [archive, batches, images, text])
def test_the_digest_is_that_of_the_samples(make: Make, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    one, same, other = (make(folder, seed).digest for folder, seed in zip(folders, (1, 1, 2), strict=True))
    assert one == same
    assert one != other
    assert len(one) == 64


def test_how_images_become_tensors_counts(tmp_path: Path) -> None:
    before = images(tmp_path, 1).digest
    (tmp_path / "images.toml").write_text("mean = [0.5]\n")
    assert open_samples(tmp_path / "images", PICTURES).digest != before


def test_how_a_text_becomes_tokens_counts(tmp_path: Path) -> None:
    before = text(tmp_path, 1).digest
    path = tmp_path / "tokenizer.json"
    described = json.loads(path.read_text())
    described["model"]["vocab"] |= {"a": 1, "b": 0}
    path.write_text(json.dumps(described))
    assert open_samples(tmp_path / "text.txt", TEXT).digest != before


def test_the_length_of_the_windows_counts(tmp_path: Path) -> None:
    before = text(tmp_path, 1).digest
    shorter = Signature((Port("input_ids", "int64", ("n", 4)),), ())
    assert open_samples(tmp_path / "text.txt", shorter).digest != before
