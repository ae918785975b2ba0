"""Kernels for NVIDIA GPUs as machine code, on a machine that needs no GPU."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from polycast.errors import ToolchainError
from polycast.targetbase import Answer

#: What TVM's CUDA runtime takes from the driver. Without a driver these stand in, so that it can be loaded.
_DRIVER = (
    "cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString", "cuLaunchKernelEx",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled",
)  # fmt: skip

#: The driver's answer where there is no device.
_NO_DEVICE = 100

#: Half-precision operators are methods that CUDA's headers hide by default, and that TVM's code uses.
_HALVES = ("-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__")


def command() -> str | None:
    """Give the path of nvcc; None where it is not installed."""
    return shutil.which("nvcc") or next(map(str, Path("/usr/local/cuda/bin").glob("nvcc")), None)


def stand_in(folder: Path) -> None:
    """Write a ``libcuda.so.1`` into ``folder`` whose every call says that there is no device."""
    source = folder / "driver.c"
    source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in _DRIVER))
    run(["cc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)])


def compile_kernels(code: str, arch: str) -> bytes:
    """Compile CUDA C++ to machine code for ``arch`` alone: no PTX, so that nothing is compiled on the device.

    Raises: ToolchainError with what nvcc says.
    """
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        source, binary = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        source.write_text(code, encoding="utf-8")
        gencode = f"arch={arch.replace('sm_', 'compute_')},code={arch}"
        flags = ["--cubin", "-O3", "-std=c++17", "-gencode", gencode, "--split-compile=0", *_HALVES]
        run([command() or "nvcc", *flags, "-o", str(binary), str(source)])
        return binary.read_bytes()


def run(words: list[str]) -> None:
    """Run a tool.

    Raises: ToolchainError with the command and its errors, or where it names none, the end of what it says.
    """
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = [line for line in lines if "error" in line][:8] or lines[-20:]
        raise ToolchainError(f"{' '.join(words)}{FAILED}{done.returncode}: " + "\n".join(said))


#: What stands in the message of a tool that failed, between the command and its exit status.
FAILED = " exits with "


def device() -> Answer:
    """Say whether an NVIDIA GPU answers here, by its driver's own tool."""
    tool = shutil.which("nvidia-smi")
    mend = "run the build on a machine with an NVIDIA GPU and its driver"
    if tool is None:
        return Answer(False, "no NVIDIA driver is here (nvidia-smi is not found)", mend)
    try:
        words = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(False, f"nvidia-smi does not answer: {error}", mend)
    found = done.stdout.strip().splitlines()
    if done.returncode or not found:
        return Answer(False, "nvidia-smi sees no GPU", mend)
    return Answer(True, found[0])
