"""Load a model, compile it for the CPU, run the build, evaluate it, print the report.

python quickstart.py [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import polycast

DIGITS = Path(__file__).parent / "digits"


def main(out: Path) -> None:
    """Do what the first line says, with the digits classifier."""
    test = DIGITS / "digits-test.npz"
    model = polycast.load(DIGITS / "digits.onnx")
    [build] = polycast.compile(
        model,
        targets=["cpu"],
        precision="fp32",
        calibration=DIGITS / "digits-calibration.npz",
        data=test,
        out=out,
    )
    for step in build.steps:
        print(f"{step['pass']:16} {step['sites']} sites")

    with np.load(test) as rows:
        image, label = rows["image"][:8], rows["label"][:8]
    [logits] = polycast.open_build(build.path).run({"image": image})
    print("digits", *label)
    print("read  ", *logits.argmax(axis=1))

    evaluation = polycast.evaluate(build, against=model, data=test, seconds=0.5)
    print(polycast.Report((evaluation,)).render())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
