"""The product of four codes at once: VNNI's vpdpbusd, as LLVM 22 takes it.

TVM's own intrinsic passes vectors of int32, which LLVM no longer accepts.
"""

# mypy: disable-error-code="valid-type, untyped-decorator"
# In TVMScript annotations are values.

from __future__ import annotations

from functools import cache
from typing import Any

#: Names of the intrinsics, by lanes.
INTRINSICS = {16: "polycast_dot_16x4", 8: "polycast_dot_8x4", 4: "polycast_dot_4x4"}


@cache
def register() -> None:
    """Make the intrinsics known to schedules."""
    from tvm.s_tir import TensorIntrin

    for lanes, name in INTRINSICS.items():
        TensorIntrin.register(name, _description(lanes), _instruction(lanes), override=True)


def _description(lanes: int) -> Any:
    """What it computes: c[i] += sum of a[k] * b[i, k] over four k, of uint8 and int8 in int32."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def _instruction(lanes: int) -> Any:
    from tvm.script import tirx as T

    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    codes, sums = f"int8x{4 * lanes}", f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def instruction(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(name),
                C.vload([0], dtype=sums),
                T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), lanes), dtype=codes),
                B.vload([0, 0], dtype=codes),
                dtype=sums,
            )

    return instruction
