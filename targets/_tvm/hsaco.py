"""Code objects for AMD GPUs, on a machine that needs nothing of ROCm: LLVM inside TVM generates, LLD links."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from polycast.errors import ToolchainError
from polycast.targetbase import Answer

from . import code_object, gcn
from .code_object import Kernel
from .nvcc import run

#: Where a linker may lie that is not on the PATH under its plain name: a distribution's, or ROCm's own.
_FOLDERS = Path("/usr/bin"), Path("/usr/local/bin"), Path("/opt/rocm/llvm/bin")

#: Version 5 of the code object format: what every ROCm since 5.5 loads. LLVM's own choice is newer.
_VERSION = """!llvm.module.flags = !{!0}
!0 = !{i32 1, !"amdhsa_code_object_version", i32 500}
"""

#: The package on PyPI generates code for AMD GPUs, and cannot run it.
FROM_SOURCE = "built from source with USE_ROCM=ON (the package on PyPI has no runtime for ROCm)"


def linker() -> str | None:
    """Give the path of LLD for ELF files, of numbered ones the newest; None where it is not installed."""
    return max(_found(), default=(0, shutil.which("ld.lld")))[1]


def _found() -> Iterator[tuple[int, str]]:
    """Give the linkers in ``_FOLDERS``, each with the number in its name, ``ld.lld-19``."""
    for folder in _FOLDERS:
        for path in folder.glob("ld.lld*"):
            if (name := re.fullmatch(r"ld\.lld(?:-(\d+))?", path.name)) is not None:
                yield int(name[1] or 0), str(path)


def link(code: bytes) -> bytes:
    """Link the object file ``code`` into a code object.

    Raises: ToolchainError with what the linker says: a function that no kernel defines, above all.
    """
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        given, linked = Path(folder, "kernels.o"), Path(folder, "kernels.hsaco")
        given.write_bytes(code)
        run([linker() or "ld.lld", "--no-undefined", "-shared", "--build-id=none", "-o", str(linked), str(given)])
        return linked.read_bytes()


def register(arch: str, folder: Path) -> list[Kernel]:
    """Let TVM make code objects for ``arch``: link them with LLD, check each, and take no library of ROCm's.

    folder: where a file can lie for as long as TVM generates code.
    Returns: a list that the kernels of every code object come into, as they are linked.
    """
    import tvm  # noqa: F401  # registers its own first
    import tvm_ffi

    from . import gcn_math

    version = folder / "version.ll"
    version.write_text(_VERSION)
    kernels: list[Kernel] = []

    def linked(code: bytes) -> bytes:
        made = link(bytes(code))
        kernels.extend(checked(made, arch))
        return made

    tvm_ffi.register_global_func("tvm_callback_rocm_link", linked, override=True)
    tvm_ffi.register_global_func("tvm_callback_rocm_bitcode_path", lambda: [str(version)], override=True)
    gcn_math.register()
    return kernels


def checked(code: bytes, arch: str) -> list[Kernel]:
    """Read the kernels of a code object.

    Raises: ToolchainError naming every kernel that the chip cannot hold.
    """
    found = code_object.read(code)
    if problems := gcn.problems(found, arch):
        raise ToolchainError(f"kernels do not fit {arch}: {'; '.join(problems)}")
    return list(found.kernels)


def device() -> Answer:
    """Say whether an AMD GPU answers here, and TVM's runtime for it is installed."""
    if not Path("/dev/kfd").exists():
        return Answer(False, "no AMD GPU is here (/dev/kfd is not found)", "run the build on a machine with ROCm")
    found = find_spec("tvm")
    home = Path(found.origin).parent if found is not None and found.origin else None
    if home is None or not any(home.rglob("libtvm_runtime_rocm.*")):
        return Answer(False, "TVM's runtime for ROCm is not installed", f"install TVM {FROM_SOURCE}")
    return Answer(True, "AMD GPU, TVM's runtime for ROCm")
