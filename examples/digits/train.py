"""Train the digits classifier from seeds, and write everything else in this folder.

python train.py [--out DIR]

Needs torch, onnxscript, onnxruntime and scikit-learn, which carries the data: 1,797 handwritten digits of 8 by 8
pixels (Alpaydin and Kaynak, UCI Optical Recognition of Handwritten Digits, CC BY 4.0).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn

CALIBRATION, TEST = 200, 500
EPOCHS, BATCH = 40, 64


@dataclass(frozen=True)
class Split:
    """Images [N, 1, 8, 8] float32 from 0 to 1, and their digits [N] int64."""

    image: np.ndarray
    label: np.ndarray


def splits() -> tuple[Split, Split, Split]:
    """Give the disjoint rows to train, to calibrate and to test on."""
    digits = load_digits()
    image = (digits.images / 16).astype(np.float32)[:, None]
    label = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(label))
    parts = np.split(order, [len(order) - CALIBRATION - TEST, len(order) - TEST])
    train, calibration, test = (Split(image[rows], label[rows]) for rows in parts)
    return train, calibration, test


def block(channels: int, filters: int) -> nn.Sequential:
    """Convolve, normalize over the batch, rectify."""
    return nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU())


def network() -> nn.Sequential:
    """Make the network: three blocks, two poolings, one linear layer."""
    return nn.Sequential(
        block(1, 16), block(16, 32), nn.MaxPool2d(2), block(32, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def trained(data: Split) -> nn.Module:
    """Train with Adam; each image is shifted by up to one pixel, another way in every epoch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = network()
    image, label = torch.from_numpy(data.image), torch.from_numpy(data.label)
    steps = EPOCHS * -(-len(label) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(label)).split(BATCH):
            down, right = torch.randint(-1, 2, (2,)).tolist()
            shifted = torch.roll(image[rows], (down, right), (2, 3))
            loss = nn.functional.cross_entropy(model(shifted), label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the network as ONNX. BatchNorm stays as it was trained: folding it is the compiler's work."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        optimize=False,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]  # torch writes the paths of this machine there
    del graph.graph.value_info[:]
    onnx.save(graph, path)


def accuracy(path: Path, data: Split) -> float:
    """Score the ONNX file in onnxruntime. Returns: the share of images whose largest logit is their digit."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"image": data.image})
    return float((logits.argmax(1) == data.label).mean())


def main() -> None:
    """Train, export, score."""
    parser = argparse.ArgumentParser(description="Train the digits classifier.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    train, calibration, test = splits()
    export(trained(train), out / "digits.onnx")
    np.savez_compressed(out / "digits-calibration.npz", image=calibration.image)
    np.savez_compressed(out / "digits-test.npz", image=test.image, label=test.label)
    print(f"top-1 on {TEST} images: {accuracy(out / 'digits.onnx', test):.4f}")


if __name__ == "__main__":
    main()
