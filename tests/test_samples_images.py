"""Samples from images: labels, and pixels that become the tensor that the TOML describes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polycast.errors import InputError
from polycast.model import Port, Signature
from polycast.samples import Sample, Samples, open_samples

NCHW = Port("x", "float32", ("n", 3, 8, 6))
OPEN = Port("x", "float32", ("n", 3, "h", "w"))


def opened(folder: Path, port: Port = OPEN) -> Samples:
    return open_samples(folder, Signature((port,), ()))


def read(folder: Path, port: Port = OPEN) -> list[Sample]:
    return list(opened(folder, port))


def refused(folder: Path, port: Port = OPEN) -> InputError:
    with pytest.raises(InputError) as caught:
        read(folder, port)
    return caught.value


def draw(path: Path, height: int = 8, width: int = 6, seed: int = 0) -> np.ndarray:
    """Write noise as an image, and give its pixels as [H, W, 3]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def toml(folder: Path, text: str) -> None:
    (folder / "images.toml").write_text(text)


def test_sub_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "dog" / "1.png", seed=1)
    for i, name in enumerate(("cat/2.png", "cat/10.JPG", "ant/0.png")):
        draw(tmp_path / name, seed=i)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    samples = opened(tmp_path)
    assert (samples.kind, len(samples)) == ("images", 4)
    got = list(samples)
    assert [(s.name, s.label.tolist()) for s in got if s.label is not None] == [
        ("ant/0.png", [0]),
        ("cat/10.JPG", [1]),
        ("cat/2.png", [1]),
        ("dog/1.png", [2]),
    ]
    x = got[3].feeds["x"]
    assert (x.shape, x.dtype) == ((1, 3, 8, 6), np.float32)
    np.testing.assert_allclose(x[0], pixels.transpose(2, 0, 1) / 255, rtol=np.finfo(np.float32).eps)


def test_numbered_sub_folders_are_the_indices(tmp_path: Path) -> None:
    for name in ("7", "12", "003"):
        draw(tmp_path / name / "a.png")
    toml(tmp_path, "offset = 1")
    assert [s.label.tolist() for s in read(tmp_path) if s.label is not None] == [[4], [13], [8]]


def test_listed_classes_give_the_order(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        draw(tmp_path / name / "a.png")
    toml(tmp_path, 'classes = ["dog", "emu", "cat"]')
    assert [s.label.tolist() for s in read(tmp_path) if s.label is not None] == [[2], [0]]
    toml(tmp_path, 'classes = ["dog", "cats"]')
    error = refused(tmp_path)
    assert "unknown class 'cat'" in error.message
    assert error.hint == "Did you mean 'cats'?"


@pytest.mark.parametrize("head", ["", "file,label\n", "name,label,file\n"])
def test_labels_csv(tmp_path: Path, head: str) -> None:
    for name in ("a.png", "sub/b.png"):
        draw(tmp_path / name)
    rows = ["x,5,sub/b.png", "y,2,a.png"] if head.startswith("name") else ["sub/b.png,5", "a.png,2"]
    (tmp_path / "labels.csv").write_text(head + "\n".join(rows) + "\n")
    assert [(s.name, s.label.tolist()) for s in read(tmp_path) if s.label is not None] == [
        ("sub/b.png", [5]),
        ("a.png", [2]),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.png,0\nmissing.png,1\n", "missing.png, which is not there"),
        ("../outside.png,0\n", "file: expected one inside"),
        ("file,class\na.png,0\n", "columns: expected file, label, found file, class"),
        ("a.png,0\na.png\n", "row 2: expected 2 columns"),
        ("", "empty data set"),
    ],
)
def test_bad_labels_csv(tmp_path: Path, table: str, message: str) -> None:
    draw(tmp_path / "outside.png")
    draw(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "labels.csv").write_text(table)
    assert message in refused(tmp_path / "in").message


def test_images_without_labels(tmp_path: Path) -> None:
    for i in range(3):
        draw(tmp_path / f"{i}.png")
    assert [s.label for s in read(tmp_path)] == [None] * 3


def test_fixed_batch_takes_its_images_together(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / str(i) / "a.png", seed=i)
    got = read(tmp_path, Port("x", "float32", (2, 3, 8, 6)))
    assert [s.feeds["x"].shape for s in got] == [(2, 3, 8, 6)] * 2
    assert [s.label.tolist() for s in got if s.label is not None] == [[0, 1], [2, 3]]
    assert "a multiple of 3, found 4" in refused(tmp_path, Port("x", "float32", (3, 3, 8, 6))).message


def test_toml_beside_the_folder_describes_the_tensor(tmp_path: Path) -> None:
    """(pixels * scale - mean) / std, in BGR and NHWC: held against the formula in float64."""
    folder = tmp_path / "photos"
    pixels = draw(folder / "a.png").astype(np.float64)
    text = 'layout = "NHWC"\ncolor = "BGR"\nscale = 0.5\nmean = [1, 2, 3]\nstd = [4, 5, 6.5]\n'
    (tmp_path / "photos.toml").write_text(text)
    x = read(folder, Port("x", "float32", ("n", "h", "w", 3)))[0].feeds["x"][0]
    expected = (pixels[..., ::-1] * 0.5 - [1, 2, 3]) / [4, 5, 6.5]
    # Two roundings, each at most half an ulp of the largest value that is rounded: 127.5.
    np.testing.assert_allclose(x, expected, atol=127.5 * np.finfo(np.float32).eps)


def test_size_follows_the_model(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 20, 30)
    expected = np.asarray(Image.open(tmp_path / "a.png").resize((6, 8), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(
        read(tmp_path, NCHW)[0].feeds["x"][0], expected.transpose(2, 0, 1), rtol=np.finfo(np.float32).eps
    )
    toml(tmp_path, "resize = 16")  # the shorter side; the model's size is then cut from the centre
    picture = Image.open(tmp_path / "a.png").resize((24, 16), Image.Resampling.BILINEAR).crop((9, 4, 15, 12))
    expected = np.asarray(picture) / 255
    np.testing.assert_allclose(
        read(tmp_path, NCHW)[0].feeds["x"][0], expected.transpose(2, 0, 1), rtol=np.finfo(np.float32).eps
    )


def test_explicit_size_and_interpolation(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", 20, 30)
    toml(tmp_path, 'resize = [10, 15]\ncrop = [4, 6]\ninterpolation = "nearest"')
    x = read(tmp_path)[0].feeds["x"][0]
    expected = pixels[1::2, 1::2][3:7, 4:10].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(x, expected, rtol=np.finfo(np.float32).eps)


def test_integer_input_takes_the_pixels_as_they_are(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png")
    x = read(tmp_path, Port("x", "uint8", ("n", 8, 6, 3)))[0].feeds["x"]
    np.testing.assert_array_equal(x[0], pixels, strict=True)


def test_one_channel_is_grey(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    x = read(tmp_path, Port("x", "float32", (1, 1, 8, 6)))[0].feeds["x"]
    grey = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    np.testing.assert_allclose(x[0, 0], grey / 255, rtol=np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("resise = 3", "unknown key 'resise'", "Did you mean 'resize'?"),
        ("crop = 'big'", "crop: expected pixels, or [height, width], found 'big'", ""),
        ("resize = 0", "resize: expected pixels of the shorter side", ""),
        ("std = [1, 0, 1]", "std: expected a number other than 0", ""),
        ("mean = [1, 2]", "mean: expected 1 number or 3 for RGB, found 2", ""),
        ("layout = 'CHW'", "layout: expected NCHW or NHWC, found 'CHW'", ""),
        ("= 3", "images.toml: cannot be read: expected TOML", ""),
    ],
)
def test_bad_toml(tmp_path: Path, text: str, message: str, hint: str) -> None:
    draw(tmp_path / "a.png")
    toml(tmp_path, text)
    error = refused(tmp_path)
    assert message in error.message
    assert error.hint == hint


def test_image_of_another_size(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 10, 10)
    toml(tmp_path, "crop = 10")
    assert (
        "a.png: shape of 'x': expected x: float32[n, 3, 8, 6], found [1, 3, 10, 10]" in refused(tmp_path, NCHW).message
    )


@pytest.mark.parametrize("content", ["", "hello", "half"])
def test_corrupt_image(tmp_path: Path, content: str) -> None:
    draw(tmp_path / "good.png")
    draw(tmp_path / "half.png", 64, 64)
    data = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").unlink()
    (tmp_path / "z.png").write_bytes(data[: len(data) // 2] if content == "half" else content.encode())
    assert "z.png: cannot be read: expected an image" in refused(tmp_path).message


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png", 64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "a.png: cannot be read" in refused(tmp_path).message


def test_nothing_in_the_folder(tmp_path: Path) -> None:
    assert "empty data set" in refused(tmp_path).message


def test_model_that_takes_no_image(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    error = refused(tmp_path, Port("x", "float32", ("n", 3)))
    assert "expected a model with one input of rank 4, found x: float32[n, 3]" in error.message


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refused(tmp_path).hint == 'pip install "polycast[images]"'
