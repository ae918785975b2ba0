"""One shared library from a lowered model: host code, TVM's bytecode, and the kernels as machine code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import linking
from .cpu_arch import Cpu
from .gpu import Gpu
from .lowering import Lowered


def write(lowered: Lowered, path: Path) -> None:
    """Generate code for every kernel and for the host that launches them, and link it into ``path``."""
    link = linking.linker(lowered.gpu) if isinstance(lowered.gpu, Cpu) else None
    executable(lowered).export_library(str(path), fcompile=link, options=None if link else list(linking.OPTIONS))


def executable(lowered: Lowered) -> Any:
    """Generate code. Returns: the tvm.relax.VMExecutable."""
    import tvm
    from tvm import relax

    target = lowered.gpu.target()
    # Rewriting storage gives float32 sums the memory of float16 factors, whose type tensor cores then cannot tell.
    # What is shared is merged by bytes later, all the same.
    config = {"tirx.disable_storage_rewrite": lowered.gpu.tensor_cores, **masks(lowered.gpu)}
    with target, tvm.transform.PassContext(opt_level=3, config=config):
        return tvm.compile(lowered.module, target=target, relax_pipeline=_finish(relax))


def masks(on: Cpu | Gpu) -> dict[str, bool]:
    """Give the options with which what fills a register in part is read and written through a mask."""
    return {"tirx.enable_buffer_level_predication": isinstance(on, Cpu) and on.masks}


def _finish(relax: Any) -> Any:
    """Plan memory and turn the calls into bytecode."""
    import tvm

    return tvm.transform.Sequential(
        [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
