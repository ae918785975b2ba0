"""Lower a model for a GPU: legalize, fuse, schedule every kernel, take the weights out of the code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from polycast.model import Model, Port

from . import frontend, schedules
from .cpu_arch import Cpu
from .gpu import Gpu
from .records import kernels_of
from .traces import replay


@dataclass(frozen=True)
class Lowered:
    """A model whose kernels are scheduled for ``gpu``.

    module: Relax ``main(*inputs, *weights)``, which calls scheduled TIR functions in order, and those functions.
    inputs, outputs: ports with their dtypes inside. weights: by parameter name, in the order of the parameters.
    tuned: by workload, what was measured on this machine and is used for it.
    """

    module: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: dict[str, np.ndarray]
    gpu: Gpu | Cpu
    tuned: Mapping[str, Any] = field(default_factory=dict)


def lower(model: Model, gpu: Gpu, measured: Mapping[str, Any] = MappingProxyType({})) -> Lowered:
    """Import ``model``, fuse it, and schedule every kernel for ``gpu``; measured: by workload, what to do it with."""
    import tvm

    imported, module = fused(model, gpu)
    tuned = {key: measured[key] for key in kernels_of(module).keys() & measured.keys()} if measured else {}
    module, tuned = replay(module, tuned)
    with gpu.target(), tvm.transform.PassContext(opt_level=3):
        module, constants = detach(module, len(imported.weights))
        module = schedules.schedule(module, gpu, tuned)
    return Lowered(module, imported.inputs, imported.outputs, imported.weights | constants, gpu, tuned)


def fused(model: Model, gpu: Gpu) -> tuple[frontend.Imported, Any]:
    """Import ``model`` and fuse it. Returns: what was imported, and the module, of which no kernel is scheduled."""
    import tvm

    imported = frontend.load(model)
    with gpu.target(), tvm.transform.PassContext(opt_level=3):
        return imported, fuse(imported.module)


def fuse(module: Any) -> Any:
    """Break ops into tensor expressions, fold what is constant, and fuse what follows a kernel into it."""
    import tvm
    from tvm import relax

    return tvm.transform.Sequential(
        [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.LegalizeOps(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
            relax.transform.CanonicalizeBindings(),
        ]
    )(module)


def detach(module: Any, known: int) -> tuple[Any, dict[str, np.ndarray]]:
    """Make every constant of ``main`` a parameter, equal ones the same; known: weights that are parameters already.

    Returns: the module, and the constants by parameter name.
    """
    from tvm import relax

    found: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}

    @relax.expr_functor.mutator
    class Detach(relax.expr_functor.PyExprMutator):  # type: ignore[misc]
        def visit_generic_const_(self, op: Any) -> Any:
            array = op.value.numpy()
            key = frontend.tensor_key(array)
            if key not in found:
                name = f"weight_{known + len(found)}"
                arrays[name] = array
                found[key] = relax.Var(name, relax.TensorType(array.shape, array.dtype.name))
            return found[key]

    main = module["main"]
    body = Detach(module).visit_expr(main.body)
    bare = relax.Function([*main.params, *found.values()], body, main.ret_ty, main.is_pure, main.attrs)
    module = module.clone()
    module.update_func(module.get_global_var("main"), bare)
    return relax.transform.Normalize()(module), arrays
