"""Labelled validation sets of the zoo as polycast takes them, and what tells a loss on them."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import subjects

#: What tells the drop, where the labels alone do not say so.
METRICS = {"superres": "zoo_data:psnr", "fastestdet": "zoo_data:recall", "silero_op15": "zoo_data:voice"}

#: What is scored on a text, which the calibration rows stand in for.
_UNLABELLED = ("stories260K",)


def psnr(outputs: list[np.ndarray], label: np.ndarray, feeds: subjects.Feeds) -> float:
    """Peak signal to noise of an image from 0 to 1, six pixels off its border, in dB."""
    gap = (np.clip(outputs[0][0, 0], 0, 1) - label[0])[6:-6, 6:-6]
    return float(-10 * np.log10((gap**2).mean()))


psnr.unit = "dB"  # type: ignore[attr-defined]


def recall(outputs: list[np.ndarray], label: np.ndarray, feeds: subjects.Feeds) -> float:
    """Share of labelled objects of an image that a box of their class covers, at an overlap of one half."""
    boxes, scores = _boxes(outputs[0])
    objects = label[0][label[0][:, 0] >= 0]
    hits = [_overlap(each[1:], boxes[scores[:, int(each[0])] > 0.2]) >= 0.5 for each in objects]
    return float(np.mean(hits)) if hits else 1.0


recall.unit = "share"  # type: ignore[attr-defined]


def voice(outputs: list[np.ndarray], label: np.ndarray, feeds: subjects.Feeds) -> float:
    """Whether a frame is taken for speech as the original takes it."""
    return float((outputs[0].reshape(-1)[0] > 0.5) == bool(label[0]))


voice.unit = "share"  # type: ignore[attr-defined]


def write(subject: str, zoo: Path, folder: Path) -> str | None:
    """Write the rows that the zoo's scorer scores into ``folder``, one file a run, with their labels.

    Returns: the metric to name, "" where the labels say it, or None where there is no such set.
    """
    if subject in _UNLABELLED:
        return None
    spec = importlib.util.spec_from_file_location("evals", zoo / "evals.py")
    assert spec is not None and spec.loader is not None
    evals = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evals)
    seen: list[subjects.Feeds] = []
    evals.SUB[subject][1](_recorder(evals, subject, seen))
    if subject == "minilm":
        seen = [_joined(first, second) for first, second in zip(seen[::2], seen[1::2], strict=True)]
    for number, (feeds, label) in enumerate(zip(seen, _labels(evals, subject, zoo), strict=False)):
        np.savez(folder / f"{number:05d}.npz", label=label, **feeds)
    return METRICS.get(subject, "")


def _recorder(evals: Any, subject: str, seen: list[subjects.Feeds]) -> Any:
    """Run the fp32 model and keep what it is run on."""
    run = evals.ort_run(evals.J(evals.SUB[subject][0]))

    def recorded(feeds: subjects.Feeds) -> list[np.ndarray]:
        seen.append({name: np.array(array) for name, array in feeds.items()})
        return run(feeds)

    return recorded


def _joined(first: subjects.Feeds, second: subjects.Feeds) -> subjects.Feeds:
    """Put two sentences into one batch; the shorter one is padded, and its mask says so."""
    length = max(feeds["input_ids"].shape[1] for feeds in (first, second))
    padded = [{k: np.pad(a, ((0, 0), (0, length - a.shape[1]))) for k, a in feeds.items()} for feeds in (first, second)]
    return {name: np.concatenate([feeds[name] for feeds in padded]) for name in first}


def _labels(evals: Any, subject: str, zoo: Path) -> list[np.ndarray]:
    """Give the labels in the order in which the scorer runs its rows."""
    if subject == "superres":
        images = [np.asarray(evals._y(file), np.float32) / 255 for file in sorted((zoo / "superres/gt").glob("*.jpg"))]
        return [image[None] for image in images]
    if subject == "fastestdet":
        files = sorted((zoo / "coco" / "test").glob("*.txt"))
        found = [np.loadtxt(file, ndmin=2).reshape(-1, 5) for file in files]
        most = max(len(each) for each in found)
        padded = [np.vstack([each, np.full((most - len(each), 5), -1.0)]) for each in found]
        return [each[None].astype(np.float32) for each in padded]
    if subject == "silero_op15":
        return [np.array([int(value > 0.5)]) for value in np.load(zoo / "silero" / "test_fp32_prob.npy")]
    if subject == "mobilenet025":  # its class 0 is the background
        files = sorted((zoo / "imagenet" / "test").glob("*.jpg"))
        return [np.array([int(file.name[:4]) + 1]) for file in files]
    if subject == "minilm":
        [file] = sorted((zoo / "sts").glob("*.csv"))
        with file.open(encoding="utf8", newline="") as rows:
            return [np.array([float(row[2])], np.float32) for row in csv.reader(rows)]
    places = {
        "mnist_cnn": ["mnist/test.npz"],
        "kws": ["mlperftiny/kws.npz"],
        "ic_resnet8": ["mlperftiny/ic.npz", "cifar10/test.npz"],
        "vww": ["mlperftiny/vww.npz"],
        "magika": ["magika/test.npz"],
    }
    return [np.array([int(label)]) for place in places[subject] for label in np.load(zoo / place)["y"]]


def _boxes(output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decode FastestDet's grid [1, 85, 22, 22]: corners [cells, 4] from 0 to 1, and scores [cells, classes]."""
    flat = output.reshape(85, -1).T
    side = int(np.sqrt(len(flat)))
    y, x = np.divmod(np.arange(len(flat)), side)
    center = np.stack([x + np.tanh(flat[:, 1]), y + np.tanh(flat[:, 2])], 1) / side
    half = 1 / (1 + np.exp(-flat[:, 3:5])) / 2
    scores = np.maximum(flat[:, :1], 0) ** 0.6 * np.maximum(flat[:, 5:], 0) ** 0.4
    return np.hstack([center - half, center + half]), scores


def _overlap(wanted: np.ndarray, boxes: np.ndarray) -> float:
    """Give the best intersection over union of ``wanted`` (center and size) with ``boxes`` (corners)."""
    if not len(boxes):
        return 0.0
    low, high = wanted[:2] - wanted[2:] / 2, wanted[:2] + wanted[2:] / 2
    inner = np.clip(np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2]), 0, None).prod(1)
    union = wanted[2:].prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - inner
    return float((inner / union).max())
