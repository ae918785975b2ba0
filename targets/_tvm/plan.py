"""A lowered model as a static plan: which kernel runs after which, on what, with which grid. Read from the IR."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from polycast.errors import UnsupportedError

from .lowering import Lowered

#: Calling convention that TVM gives a kernel, as against the host function that launches it.
_KERNEL = 2


@dataclass(frozen=True)
class Tensor:
    """What a launch reads or writes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class Launch:
    """One run of a kernel. grid: workgroups along x, y and z. operands: tensors, in the order of its parameters."""

    kernel: str
    grid: tuple[int, int, int]
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A model as a list of launches.

    kernels: IRModule of device functions by name. inputs: names of tensors, in the order of the model. outputs: names
    of tensors or constants. tensors: what is neither constant; constants: arrays by name. threads: of a workgroup,
    by kernel.
    """

    kernels: Any
    launches: tuple[Launch, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, Tensor]
    constants: dict[str, np.ndarray]
    threads: dict[str, tuple[int, int, int]]


def static_plan(lowered: Lowered) -> Plan:
    """Give the launches of ``lowered``, whose shapes are all fixed.

    Raises: UnsupportedError naming what cannot be said as a launch of a kernel.
    """
    import tvm

    with lowered.gpu.target(), tvm.transform.PassContext(opt_level=3):
        return _Reader(lowered).read()


#: A kernel, its grid, its operands.
_Launched = tuple[str, tuple[int, int, int], list[int | str]]


@dataclass(frozen=True)
class _Host:
    """What one scheduled function does: its parameters by position, tensors of its own, and its launches.

    An operand is the number of a parameter, or the name of a tensor of its own.
    """

    own: dict[str, Tensor]
    launches: list[_Launched]


@dataclass
class _Reader:
    lowered: Lowered
    names: dict[Any, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    tuples: dict[Any, list[str]] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    threads: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    hosts: dict[str, _Host] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)

    def read(self) -> Plan:
        module = _straight(self.lowered.module)
        kernels, self.hosts = self._split(module)
        main = module["main"]
        count = len(self.lowered.inputs)
        inputs = []
        for number, parameter in enumerate(main.params[:count]):
            self.names[parameter] = f"input_{number}"
            inputs.append(self._tensor(f"input_{number}", parameter.ty))
        for parameter, (name, array) in zip(main.params[count:], self.lowered.weights.items(), strict=True):
            self.names[parameter] = name
            self.constants[name] = array
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bind(binding.var, binding.value)
        outputs = self._fields(main.body.body)
        if self.odd:
            hint = "Try -t webgpu@onnxruntime-web, which has kernels of its own"
            raise UnsupportedError(f"no kernel for {', '.join(sorted(self.odd))}", hint)
        used = {name for launch in self.launches for name in launch.operands} | {*inputs, *outputs}
        return Plan(
            kernels,
            tuple(self.launches),
            tuple(inputs),
            tuple(outputs),
            {name: tensor for name, tensor in self.tensors.items() if name in used},
            {name: array for name, array in self.constants.items() if name in used},
            self.threads,
        )

    def _split(self, module: Any) -> tuple[Any, dict[str, _Host]]:
        """Lower the scheduled functions. Returns: the kernels, and what the host does for each function."""
        import tvm
        from tvm import tirx

        scheduled = {g: _rolled(f) for g, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
        target = self.lowered.gpu.target()
        pipeline, _, finish = tirx.get_default_tir_pipeline(target)
        # The calling convention of the host hides what is launched behind checks of its arguments; what is computed
        # twice may be read from bytes, which some code generators have to say in words first.
        hidden = ["tirx.MakePackedAPI", "tirx.FP8StorageLegalize", "tirx.BF16StorageLegalize"]
        apart = {"tirx.disable_cse_tir": True}
        with tvm.transform.PassContext(opt_level=3, disabled_pass=hidden, config=apart):
            lowered = pipeline(tirx.transform.BindTarget(target)(tvm.IRModule(scheduled)))
        device = {g: f for g, f in lowered.functions.items() if f.attrs.get("calling_conv") == _KERNEL}
        hosts = {g.name_hint: self._host(f) for g, f in lowered.functions.items() if g not in device}
        return finish()(tvm.IRModule(device)), hosts

    def _host(self, function: Any) -> _Host:
        """Read the launches of one lowered host function."""
        import tvm
        from tvm import tirx
        from tvm_ffi import structural_walk

        operands: dict[Any, int | str] = {parameter: i for i, parameter in enumerate(function.params)}
        host = _Host({}, [])

        def declare(statement: Any) -> None:
            operands[statement.buffer] = operands[statement.data.args[0]]

        def allocate(statement: Any) -> None:
            name = f"{len(host.own)}"
            host.own[name] = Tensor(str(statement.buffer.dtype), tuple(int(d) for d in statement.buffer.shape))
            operands[statement.buffer] = name

        def launch(call: Any) -> None:
            if getattr(call.op, "name", "") == "tirx.call_ffi_kernel":
                host.launches.append(self._launch(call, operands))

        structural_walk(
            function.body, [(tirx.DeclBuffer, declare), (tirx.AllocBuffer, allocate), (tvm.ir.Call, launch)]
        )
        return host

    def _launch(self, call: Any, operands: dict[Any, int | str]) -> _Launched:
        tags = list(call.attrs.launch_params)
        kernel, *arguments = call.args
        handles, extents = arguments[: -len(tags)], dict(zip(tags, map(int, arguments[-len(tags) :]), strict=True))
        x, y, z = (extents.get(f"threadIdx.{axis}", 1) for axis in "xyz")
        self.threads[str(kernel.value)] = (x, y, z)
        x, y, z = (extents.get(f"blockIdx.{axis}", 1) for axis in "xyz")
        return str(kernel.value), (x, y, z), [operands[handle.args[0]] for handle in handles]

    def _bind(self, variable: Any, value: Any) -> None:
        """Read one binding of ``main``: a call of a scheduled function, or another name for what is there."""
        import tvm
        from tvm import ir, relax

        if not isinstance(value, ir.Call):
            if isinstance(value, relax.Tuple):
                self.tuples[variable] = self._fields(value)
            elif isinstance(value, relax.TupleGetItem):
                self.names[variable] = self.tuples[value.tuple_value][value.index]
            elif variable in self.tuples or isinstance(variable.ty, relax.TupleType):
                self.tuples[variable] = self.tuples[value]
            else:
                self.names[variable] = self._name(value)
        elif value.op.name == "relax.call_tir":
            self._call(variable, value)
        elif value.op.name == "relax.reshape":
            self.names[variable] = self._name(value.args[0])
        else:
            what = value.args[0].global_symbol if isinstance(value.args[0], relax.ExternFunc) else value.op.name
            self.odd.add(str(what))
            self.names[variable] = self._tensor(f"odd_{len(self.tensors)}", tvm.relax.TensorType([1], "float32"))

    def _call(self, variable: Any, call: Any) -> None:
        from tvm import relax

        host = self.hosts[call.args[0].name_hint]
        operands = [self._name(each) for each in call.args[1].fields]
        [result] = call.ty_args
        types = list(result.fields) if isinstance(result, relax.TupleType) else [result]
        results = [self._tensor(f"value_{len(self.tensors)}", each) for each in types]
        operands += results
        if isinstance(result, relax.TupleType):
            self.tuples[variable] = results
        else:
            self.names[variable] = results[0]
        own = {}
        for name, tensor in host.own.items():
            own[name] = f"value_{len(self.tensors)}"
            self.tensors[own[name]] = tensor
        for kernel, grid, bound in host.launches:
            named = tuple(own[each] if isinstance(each, str) else operands[each] for each in bound)
            self.launches.append(Launch(kernel, grid, named))

    def _tensor(self, name: str, kind: Any) -> str:
        self.tensors[name] = Tensor(str(kind.dtype.dtype), tuple(int(d) for d in kind.shape))
        return name

    def _name(self, expression: Any) -> str:
        """Name the tensor or constant that ``expression`` reads."""
        from tvm import ir

        if isinstance(expression, ir.GenericConst):
            name = f"constant_{len(self.constants)}"
            self.constants[name] = expression.value.numpy()
            return name
        return self.names[expression]

    def _fields(self, expression: Any) -> list[str]:
        from tvm import relax

        if isinstance(expression, relax.Tuple):
            return [self._name(each) for each in expression.fields]
        return self.tuples[expression] if expression in self.tuples else [self._name(expression)]


def _rolled(function: Any) -> Any:
    """Leave loops as loops: who compiles the kernels on the device writes them out, and the code is a tenth as long."""
    from tvm import tirx
    from tvm_ffi import structural_map

    def roll(loop: Any) -> Any:
        kept = {key: value for key, value in loop.annotations.items() if "unroll" not in key}
        if len(kept) == len(loop.annotations):
            return loop
        bounds = (loop.loop_var, loop.min, loop.extent, loop.kind, loop.body)
        return tirx.For(*bounds, thread_binding=loop.thread_binding, annotations=kept)

    return function.with_body(structural_map(function.body, (tirx.For, roll)))


def _straight(module: Any) -> Any:
    """Take the dataflow apart, and make a reshape another name for the same memory."""
    import tvm
    from tvm import relax

    return tvm.transform.Sequential(
        [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )(module)
