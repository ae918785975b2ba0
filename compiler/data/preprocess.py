"""How the pixels of an image become a tensor: resize, crop, scale, normalise, lay out."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polycast.errors import InputError, RecipeError
from polycast.model import Port

from .feeds import refusal

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]

_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
_INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest")


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image between its file and the model: ``(resized pixels * scale - mean) / std``.

    resize: the shorter side, or [height, width]; None leaves the size. crop: the centre, [height, width], after that.
    scale: 1/255 unless the input holds integers. mean, std: one for all channels or one each, in scaled units.
    color: order of the channels. layout: NCHW or NHWC. offset: is added to every class index.
    Source: Resize, CenterCrop, ToTensor and Normalize of torchvision on PIL images.
    """

    dtype: str = "float32"
    resize: int | Size | None = None
    crop: Size | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    color: str = "RGB"
    interpolation: str = "bilinear"
    classes: tuple[str, ...] = ()
    offset: int = 0

    @classmethod
    def beside(cls, folder: Path, port: Port) -> Preprocess:
        """Read ``images.toml`` inside ``folder``, or ``<folder>.toml`` beside it; what they leave out, ``port`` says.

        Raises: InputError for an unknown key, with the nearest spelling, or a value of the wrong kind.
        """
        absolute = folder.resolve()
        files = [folder / "images.toml", absolute.with_name(absolute.name + ".toml")]
        file = next((f for f in files if f.is_file()), None)
        given = _read(file) if file else {}
        made = replace(_defaults(port, given), **given)
        for key in ("mean", "std"):
            if len(getattr(made, key)) not in (1, _CHANNELS[made.color]):
                expected = f"1 number or {_CHANNELS[made.color]} for {made.color}"
                raise refusal(str(file), key, expected, len(getattr(made, key)))
        return made

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Turn one image into [C, H, W] or [H, W, C], without the batch axis."""
        image = self._sized(image.convert("L" if self.color == "L" else "RGB"))
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
        if self.color == "BGR":
            pixels = pixels[..., ::-1]
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (pixels * np.float32(self.scale) - mean) / std
        if self.layout == "NCHW":
            scaled = scaled.transpose(2, 0, 1)
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            scaled = np.rint(scaled).clip(limits.min, limits.max)
        return np.ascontiguousarray(scaled, dtype)

    def facts(self) -> dict[str, Any]:
        """Say it in pixels from 0 to 255, as an app does it: ``(pixel - mean) / std`` by channel, in which order."""
        channels = _CHANNELS[self.color]
        mean, std = (np.broadcast_to(each, channels) / self.scale for each in (self.mean, self.std))
        facts = {"mean": mean.tolist(), "std": std.tolist(), "color": self.color, "layout": self.layout}
        return facts if np.dtype(self.dtype).kind == "f" else {}

    def _sized(self, image: Image.Image) -> Image.Image:
        from PIL.Image import Resampling

        if self.resize is not None:
            height, width = _resized(image.height, image.width, self.resize)
            image = image.resize((width, height), Resampling[self.interpolation.upper()])
        if self.crop is not None:
            height, width = self.crop
            top, left = round((image.height - height) / 2), round((image.width - width) / 2)
            image = image.crop((left, top, left + width, top + height))
        return image


def _resized(height: int, width: int, to: int | Size) -> Size:
    if not isinstance(to, int):
        return to
    short = min(height, width)
    return height * to // short, width * to // short


def _defaults(port: Port, given: dict[str, Any]) -> Preprocess:
    """Fill in what the model's input tells: its layout, its channels, its size."""
    shape = port.shape or ("?",) * 4
    layout = given.get("layout") or ("NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW")
    channels, *size = (shape[3], *shape[1:3]) if layout == "NHWC" else shape[1:]
    fixed = (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None
    return Preprocess(
        dtype=port.dtype,
        layout=layout,
        color="L" if channels == 1 else "RGB",
        scale=1 / 255 if port.dtype.startswith("float") else 1.0,
        resize=fixed if "resize" not in given and "crop" not in given else None,
        crop=fixed if isinstance(given.get("resize"), int) else None,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise refusal(str(path), "cannot be read", "TOML", error) from error
    given = {}
    for key, value in table.items():
        if key not in _KEYS:
            unknown = RecipeError.unknown("key", key, _KEYS)
            raise InputError(f"{path}: {unknown.message}", unknown.hint)
        expected, parse = _KEYS[key]
        try:
            given[key] = parse(value)
        except (ValueError, TypeError) as error:
            raise refusal(str(path), key, expected, repr(value)) from error
    return given


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _positive(value: Any) -> int:
    if _whole(value) < 1:
        raise ValueError
    return int(value)


def _size(value: Any) -> Size:
    height, width = value if isinstance(value, list) else (value, value)
    return _positive(height), _positive(width)


def _side_or_size(value: Any) -> int | Size:
    return _size(value) if isinstance(value, list) else _positive(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(v) for v in (value if isinstance(value, list) else [value]))


def _divisors(value: Any) -> tuple[float, ...]:
    numbers = _numbers(value)
    if 0 in numbers:
        raise ValueError
    return numbers


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or len(set(value)) < len(value):
        raise ValueError
    return tuple(value)


def _one_of(*choices: str) -> tuple[str, Callable[[Any], Any]]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return " or ".join(choices), parse


_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "resize": ("pixels of the shorter side, or [height, width]", _side_or_size),
    "crop": ("pixels, or [height, width]", _size),
    "scale": ("a number", _number),
    "mean": ("a number, or one for each channel", _numbers),
    "std": ("a number other than 0, or one for each channel", _divisors),
    "layout": _one_of("NCHW", "NHWC"),
    "color": _one_of(*_CHANNELS),
    "interpolation": _one_of(*_INTERPOLATIONS),
    "classes": ("a list of different names", _names),
    "offset": ("a whole number", _whole),
}
