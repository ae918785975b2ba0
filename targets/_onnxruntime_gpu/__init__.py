"""onnxruntime with a provider for a GPU, as the runtime of several targets, in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polycast.environments.child import Child
from polycast.environments.environment import Environment
from polycast.errors import ToolchainError
from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Probe, Target
from polycast.targets import _kernels
from polycast.targets import _onnxruntime as ort

from . import cuda_kernels, migraphx_ops, tensorrt_ops

_FLOAT = "clean | fold | clean | fuse_conv_bn | fuse_gelu | fuse_layer_norm"
_FUSED = f"{_FLOAT} | fuse_rms_norm | fuse_rotary | fuse_attention"
#: A GPU computes in float16 whatever the accuracy level, and reads scales as they are stored.
_PACKED = "scales='float16', accuracy_level=0, tied=True"
_EVERY = f"{_PACKED}, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"

_CUDA_PACKAGE = f"onnxruntime-gpu[cuda,cudnn]=={cuda_kernels.VERSION}"
#: Of kernels for a convolution, the one that is fastest on this GPU, found when the session opens.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "EXHAUSTIVE"}


@dataclass(frozen=True)
class GpuProvider:
    """One provider of onnxruntime: its package, the recipes for what it has kernels for, and what it leaves to the CPU.

    requirements: the packages as pip spells them, pinned. options: gives what the session asks of it for a model.
    prepared: gives a model as the provider takes most of it, at an opset at which it means the same.
    fallback: gives the nodes that it leaves to the CPU, name -> why. facts: gives what else its manifest says.
    behind: providers that take what it leaves before the CPU does, with their options.
    """

    name: str
    package: str
    version: str
    requirements: tuple[str, ...]
    prepared: Callable[[Model], Model]
    fallback: Callable[[Model], dict[str, str]]
    features: frozenset[str]
    recipes: Mapping[str, str]
    declined: Mapping[str, str]
    options: Callable[[Model], Mapping[str, str]] = lambda model: {}
    behind: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    facts: Callable[[Model], Mapping[str, Any]] = lambda model: {}

    @property
    def environment(self) -> Environment:
        """Where its package is."""
        return Environment(self.package, (f"numpy=={version('numpy')}", *self.requirements))

    def probe(self, target: Target, device: Answer) -> Probe:
        """Say what can be built and run. device: whether its GPU is here."""
        build = ort.available()
        if device.yes:
            made = self.environment.is_made
            reason = f"{device.reason}; {self.package} {self.version} in an environment of its own"
            later = Answer(True, f"{reason}, made at the first use", f"polycast setup {target} makes it now")
            return Probe(build, Answer(True, reason) if made else later, "device", device.reason)
        if not build.yes:
            return Probe(build, device, "device")
        stand_in = "the graph runs on onnxruntime's CPU provider, no kernel of the GPU does"
        return Probe(build, Answer(True, f"{device.reason}: {stand_in}", device.mend), "emulated", "the CPU provider")

    def problems(self, model: Model) -> tuple[str, ...]:
        """Name every op that not even the CPU, which takes what the GPU leaves, has a kernel for."""
        return _kernels.missing(model)

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """Write model.onnx and run.py. Returns: the runtime facts for the manifest."""
        prepared = self.prepared(model)
        behind = {name: dict(options) for name, options in self.behind.items()}
        settings = {
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "versions": {self.package: self.version},
            "providers": {self.name: dict(self.options(prepared)), **behind},
            "needs": " ".join(["pip install numpy", *(f'"{each}"' for each in self.requirements)]),
            **self.facts(prepared),
        }
        return ort.write(prepared, folder, settings)

    def open(self, folder: Path, signature: Signature, device: Answer) -> CheckedSession:
        """Open a build on the GPU, in the environment of its package, or without a GPU on the CPU.

        Raises: ToolchainError where there is a GPU and the provider would leave all of it to the CPU.
        """
        if not device.yes:
            session = ort.open_build(folder, signature)
            session.evidence = "emulated"
            return session
        self.environment.make()
        child = Child(self.environment.python, folder / "run.py", folder)
        if child.providers[0] != self.name:
            child.close()
            raise ToolchainError(
                f"{self.package} {self.version} does not start {self.name} here",
                f"Its driver or libraries may be of another version than {self.requirements[0]} needs",
            )
        return CheckedSession(child.run, signature)


CUDA = GpuProvider(
    "CUDAExecutionProvider",
    "onnxruntime-gpu",
    cuda_kernels.VERSION,
    (_CUDA_PACKAGE,),
    cuda_kernels.declared,
    cuda_kernels.fallback,
    frozenset({"fp16", "gather-nbits", "matmul-nbits", "skip-norm"}),
    {
        "fp32": f"{_FUSED} | fuse_skip_norm | fuse_gemm | clean",
        "fp16": f"{_FUSED} | fuse_skip_norm | fuse_gemm | fp16 | clean",
        "int8-weights": f"{_FUSED} | fuse_gemm | fp16 | quantize_weights(bits=8, block=128, {_EVERY})"
        " | quantize_embeddings | clean",
        "int4": f"{_FUSED} | fuse_gemm | fp16 | quantize_weights({_EVERY})"
        " | quantize_embeddings(bits=4, block=32) | clean",
    },
    {
        "int8": "the CUDA provider has no kernels that multiply int8, but for MatMulInteger without zero points",
        "int8-dynamic": "the CUDA provider has no DynamicQuantizeLinear, so that activations would cross to the CPU",
        "int3": "the CUDA provider reads weights of 4 and 8 bits",
        "int2": "the CUDA provider reads weights of 4 and 8 bits",
    },
    options=lambda model: _CUDA_OPTIONS,
)

TENSORRT = GpuProvider(
    "TensorrtExecutionProvider",
    "onnxruntime-gpu",
    cuda_kernels.VERSION,
    (_CUDA_PACKAGE, f"tensorrt-cu13-libs=={tensorrt_ops.VERSION}"),
    tensorrt_ops.prepared,
    tensorrt_ops.fallback,
    # TensorRT fuses on its own what it knows by its plain spelling, and adds products of int8 in 32 bits.
    frozenset({"fp16", "qdq", "u8s8-exact"}),
    {
        "fp32": f"{_FLOAT} | clean",
        "fp16": f"{_FLOAT} | fp16 | clean",
        "int8": f"{_FLOAT} | int8(calibrate='minmax', symmetric=True) | adaround | correct_bias | clean",
    },
    {
        "int8-dynamic": "TensorRT has no DynamicQuantizeLinear; int8 takes its ranges from calibration samples",
        "int8-weights": "that TensorRT keeps weights alone in 8 bits was not tried; --runtime onnxruntime does",
        "int4": "that TensorRT keeps weights alone in 4 bits was not tried; --runtime onnxruntime does",
        "int3": "TensorRT reads weights of 4 and 8 bits",
        "int2": "TensorRT reads weights of 4 and 8 bits",
    },
    tensorrt_ops.options,
    {"CUDAExecutionProvider": _CUDA_OPTIONS},
    lambda model: {"preload": tensorrt_ops.PRELOAD, "left_to_cuda": tensorrt_ops.left_to_cuda(model)},
)

MIGRAPHX = GpuProvider(
    "MIGraphXExecutionProvider",
    "onnxruntime-migraphx",
    migraphx_ops.VERSION,
    (f"onnxruntime-migraphx=={migraphx_ops.VERSION}",),
    lambda model: model,
    migraphx_ops.fallback,
    frozenset({"fp16", "matmul-nbits"}),
    {
        "fp32": f"{_FLOAT} | clean",
        "fp16": f"{_FLOAT} | fp16 | clean",
        "int4": f"{_FLOAT} | fp16 | quantize_weights({_PACKED}, ops=('Gemm', 'MatMul')) | clean",
    },
    {
        "int8": "that MIGraphX runs quantized graphs faster was not tried; fp16 is what it is tuned for",
        "int8-dynamic": "that MIGraphX runs quantized graphs faster was not tried; fp16 is what it is tuned for",
        "int3": "the MIGraphX provider reads weights of 4 bits",
        "int2": "the MIGraphX provider reads weights of 4 bits",
    },
)
