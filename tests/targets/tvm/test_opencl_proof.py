"""What goes into a GPU build computes what the model does: everything but the last code generator, run on this CPU.

The model goes through the recipe of the target, TVM's importer and the schedules for that very GPU. Then the scheduled
kernels become OpenCL C, which PoCL runs with the barriers and the shared memory of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import opencl
import pytest
import stand_ins

pytest.importorskip("tvm")

from polycast.golden import rounding_tolerance
from polycast.load import load
from polycast.model import Model
from polycast.passbase import PassContext
from polycast.recipe import Recipe
from polycast.reference import open_model
from polycast.seeded import seeded_feeds
from polycast.targetbase import Session
from polycast.targets import _tvm, find
from polycast.targets._tvm import gcn_math
from polycast.targets._tvm.plan import static_plan
from polycast.targets._tvm.static import fixed

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits" / "digits.onnx"
GPUS = ("rocm:gfx942", "rocm:gfx1100", "cuda:sm_80")
PRECISIONS = ("fp32", "fp16", "int8-weights", "int4")

#: A build may move by this many times what float16 alone moves the model: sums are in another order.
ALLOWED = 8.0


@dataclass(frozen=True)
class Proof:
    """One model on one GPU. folder: for the files of the judge."""

    model: Model
    target: str
    folder: Path

    def lowered(self, precision: str) -> Model:
        """The model as the passes leave it, with a batch of one."""
        target = find(self.target)
        return fixed(Recipe.of(target, precision).pipeline.run(self.model, PassContext(target.features)))[0]

    def judge(self, model: Model, name: str) -> Session:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return open_model(model, folder)

    def hold(self, precision: str) -> None:
        """Run the kernels once, and compare with onnxruntime on what the passes leave."""
        lowered = self.lowered(precision)
        if problems := find(self.target).problems(lowered):
            pytest.skip(f"refused: {', '.join(problems)}")
        feeds = next(seeded_feeds(lowered))
        want = self.judge(lowered, precision).run(feeds)
        for found, wanted in zip(self.kernels(lowered, feeds), want, strict=True):
            scale = np.abs(wanted).max()
            np.testing.assert_allclose(
                found.reshape(wanted.shape), wanted, rtol=0, atol=self.tolerance(precision, feeds) * scale
            )

    def kernels(self, lowered: Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the kernels. Tensor cores have no stand-in here; the schedules without them are held."""
        gpu = replace(find(self.target).gpu, tensor_cores=False)
        ours = frozenset(gcn_math.FUNCTIONS) if gpu.kind == "rocm" else frozenset()
        if ours:
            gcn_math.register()
        stand_ins.register(gpu.kind, ours)
        scheduled = _tvm.lower(lowered, gpu)
        arrays = [feeds[port.name].astype(port.dtype) for port in scheduled.inputs]
        plan = static_plan(scheduled)
        assert all(prod(threads) <= gpu.threads for threads in plan.threads.values())
        return opencl.run(plan, gpu, arrays)

    def tolerance(self, precision: str, feeds: Mapping[str, np.ndarray]) -> float:
        if precision == "fp32":
            return rounding_tolerance(self.model)
        original = self.judge(fixed(self.model)[0], "original").run(feeds)
        halved = self.judge(self.lowered("fp16"), "halved").run(feeds)
        return ALLOWED * max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(original, halved, strict=True))


@pytest.mark.parametrize("target", GPUS)
def test_example_is_computed_on_every_gpu(target: str, tmp_path: Path) -> None:
    Proof(load(DIGITS), target, tmp_path).hold("fp32")


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_example_is_computed_at_every_precision(precision: str, tmp_path: Path) -> None:
    Proof(load(DIGITS), "rocm:gfx942", tmp_path).hold(precision)


#: Models of the zoo, with the shapes at which they are run.
ZOO: dict[str, dict[str, tuple[int, ...]]] = {
    "mnist/mnist.onnx": {},
    "mlperftiny/kws.onnx": {},
    "mlperftiny/ic_resnet8.onnx": {},
    "imagenet/mobilenet_v1_0.25_224.onnx": {},
    "superres/sr_core.onnx": {"input": (1, 1, 32, 32)},
    "coco/FastestDet.onnx": {},
    "silero/silero_vad_16k_op15.onnx": {"input": (1, 512), "state": (2, 1, 128)},
    "lm/stories260K.onnx": {"input_ids": (1, 32)},
}


#: Every model at fp32, each kind of kernel at the others; at int4 the weights of a convolution take 8 bits too.
PROVEN = [
    (name, precision)
    for name in ZOO
    for precision in PRECISIONS
    if precision == "fp32"
    or name.startswith(("lm", "silero"))
    or (precision != "int4" and name.startswith("mlperftiny"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), PROVEN)
def test_model_of_the_zoo_is_computed(name: str, precision: str, zoo: Callable[[str], Path], tmp_path: Path) -> None:
    Proof(load(zoo(name), shapes=ZOO[name]), "rocm:gfx942", tmp_path).hold(precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_sentence_encoder_is_computed(precision: str, minilm: Path, tmp_path: Path) -> None:
    shapes = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (1, 32))
    Proof(load(minilm, shapes=shapes), "rocm:gfx942", tmp_path).hold(precision)
