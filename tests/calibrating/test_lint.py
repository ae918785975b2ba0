"""The lint says what is odd about samples, and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from observing import Given, normal

from polycast.calibrating.lint import FEW, lint
from polycast.data.images import ImageSamples
from polycast.model import Port, Signature


def given(count: int = FEW, start: int = 0) -> Given:
    return Given([{"x": normal(4, seed=start + n), "mask": np.array([n + start])} for n in range(count)])


def test_good_samples_are_only_counted() -> None:
    assert lint(given(40)) == ["40 used"]
    assert lint(given(40), given(40, start=100)) == ["40 used"]


def test_few_samples_are_said_aloud() -> None:
    (line,) = lint(given(FEW - 1))
    assert line.startswith(f"{FEW - 1} used: few")


def test_repeated_samples_are_named() -> None:
    samples = given()
    samples.feeds[7] = samples.feeds[30] = samples.feeds[2]
    assert lint(samples)[1] == "2 of 32 say nothing new: sample 7 repeats sample 2, sample 30 repeats sample 2"


def test_samples_that_differ_only_in_shape_are_no_repeats() -> None:
    samples = Given(
        [{"x": np.zeros((n, 1), np.float32)} for n in range(1, FEW)] + [{"x": np.zeros((1, 5), np.float32)}]
    )
    assert lint(samples) == ["32 used"]


def test_an_input_that_never_changes_is_named() -> None:
    samples = given()
    for feeds in samples.feeds:
        feeds["mask"] = np.ones(3, np.int64)
    assert lint(samples)[1:] == ["the same in every sample: 'mask'"]
    samples.feeds[-1]["mask"] = np.zeros(3, np.int64)
    assert lint(samples)[1:] == []


def test_nan_is_named() -> None:
    samples = given()
    samples.feeds[3]["x"][1] = np.nan
    assert lint(samples)[1:] == ["NaN in 'x' of sample 3"]


def test_the_overlap_with_the_validation_data_is_counted() -> None:
    """Every sample that is there counts, repeated ones too; labels do not."""
    samples, data = given(), given(50, start=28)
    samples.feeds[0] = samples.feeds[31]
    assert lint(samples, data)[-1] == (
        "5 of 32 samples (16%) are in the validation data too, which flatters its score: "
        "sample 0, sample 31, sample 28, and 2 more"
    )


def pictures(folder: Path, seeds: range) -> ImageSamples:
    image = pytest.importorskip("PIL.Image")
    folder.mkdir()
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        image.fromarray(pixels).save(folder / f"{seed:02}.png")
    return ImageSamples(folder, Signature((Port("x", "float32", (1, 3, 8, 8)),), ()))


def test_of_images_the_files_are_compared(tmp_path: Path) -> None:
    samples, data = pictures(tmp_path / "a", range(FEW)), pictures(tmp_path / "b", range(30, 40))
    assert lint(samples, data) == [
        "32 used",
        "2 of 32 samples (6%) are in the validation data too, which flatters its score: 30.png, 31.png",
    ]
