"""Lets OpenCL run kernels that were lowered for another GPU: threads that read each other's registers, and functions.

A kernel lowered for an AMD or NVIDIA GPU sums across the threads of a wave by shuffles, which PoCL's CPU device has
not. Here they go through shared memory; a thread that reads a register of one that is not there reads NaN.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

#: What TVM lowers for a GPU in a way of its own, as OpenCL spells it.
FUNCTIONS = (
    "ceil", "cos", "erf", "exp", "exp2", "fabs", "floor", "fma", "log", "nearbyint", "pow", "round", "rsqrt",
    "sin", "sqrt", "tanh", "trunc",
)  # fmt: skip
SPELLED = {"nearbyint": "rint", "round": "rint"}

#: Rank of these among those who know how to lower a function, above everybody's.
FIRST = 200

#: Threads of a block at most.
THREADS = 1024

SHUFFLES = """
#define TID ((get_local_id(2) * get_local_size(1) + get_local_id(1)) * get_local_size(0) + get_local_id(0))
#define ALL (get_local_size(0) * get_local_size(1) * get_local_size(2))
float read_register(__local float* held, float mine, int from) {
  held[TID] = mine;
  barrier(CLK_LOCAL_MEM_FENCE);
  float found = from < (int)ALL ? held[from] : NAN;
  barrier(CLK_LOCAL_MEM_FENCE);
  return found;
}
float __attribute__((overloadable)) read_down(__local float* held, float mine, int by, int width) {
  return read_register(held, mine, (int)TID % width + by < width ? (int)TID + by : (int)TID);
}
int __attribute__((overloadable)) read_down(__local float* held, int mine, int by, int width) {
  return as_int(read_down(held, as_float(mine), by, width));
}
float __attribute__((overloadable)) read_lane(__local float* held, float mine, int lane, int width) {
  return read_register(held, mine, (int)TID - (int)TID % width + lane % width);
}
int __attribute__((overloadable)) read_lane(__local float* held, int mine, int lane, int width) {
  return as_int(read_lane(held, as_float(mine), lane, width));
}
#define shuffle_down(mine, by, width) read_down(held_, mine, by, width)
#define shuffle(mine, lane, width) read_lane(held_, mine, lane, width)
"""

#: Makes float16 of what PoCL, whose CPU device has none, lets the compiler have: arithmetic that rounds every result.
HALVES = """
#define cl_khr_fp16 1
typedef _Float16 half_;
#define half half_
#define convert_half(x) ((half)(x))
#define convert_float(x) ((float)(x))
#define OWN __attribute__((overloadable))
#define UNARY(f) half OWN f(half x) { return (half)f((float)x); }
#define BINARY(f) half OWN f(half x, half y) { return (half)f((float)x, (float)y); }
UNARY(ceil) UNARY(cos) UNARY(erf) UNARY(exp) UNARY(fabs) UNARY(floor) UNARY(log) UNARY(rint) UNARY(round) UNARY(rsqrt)
UNARY(sin) UNARY(sqrt) UNARY(tanh) BINARY(fmax) BINARY(fmin) BINARY(max) BINARY(min) BINARY(pow)
half OWN fma(half x, half y, half z) { return (half)fma((float)x, (float)y, (float)z); }
"""

#: The same for vectors of N of them, in each kind of memory.
VECTORS = """
typedef half halfN_ __attribute__((ext_vector_type(N)));
#define halfN halfN_
#define convert_halfN(x) __builtin_convertvector(x, halfN)
floatN OWN convert_floatN(halfN x) { return __builtin_convertvector(x, floatN); }
"""
MOVES = """
halfN OWN vloadN(size_t at, const SPACE half* from) {
  halfN found;
  for (int i = 0; i < N; ++i) found[i] = from[at * N + i];
  return found;
}
void OWN vstoreN(halfN given, size_t at, SPACE half* to) {
  for (int i = 0; i < N; ++i) to[at * N + i] = given[i];
}
"""


@cache
def register(kind: str, ours: frozenset[str]) -> None:
    """Let TVM lower kernels for ``kind`` into words that ``readable`` and OpenCL know; ours: functions left alone."""
    from tvm import tirx
    from tvm.tirx.op import register_intrin_lowering

    def called(name: str) -> Any:
        return lambda call: tirx.call_pure_extern(call.ty, name, *call.args)

    def shuffled(name: str) -> Any:
        return lambda call: tirx.call_pure_extern(call.ty, name, *call.args[1:4])

    for name in FUNCTIONS:
        if name not in ours:
            register_intrin_lowering(f"tirx.{name}", kind, f=called(SPELLED.get(name, name)), level=FIRST)
    register_intrin_lowering("prim.log2", kind, f=called("log2"), level=FIRST)
    register_intrin_lowering("tirx.tvm_warp_shuffle", kind, f=shuffled("shuffle"), level=FIRST)
    register_intrin_lowering("tirx.tvm_warp_shuffle_down", kind, f=shuffled("shuffle_down"), level=FIRST)
    register_intrin_lowering("tirx.tvm_warp_activemask", kind, f=lambda call: tirx.const(0, "uint32"), level=FIRST)


def readable(code: str) -> str:
    """Give OpenCL C with words for shuffles and for float16."""
    if "shuffle" in code:
        room = rf"\g<0>\n  __local float held_[{THREADS}];"
        code = SHUFFLES + re.sub(r"__kernel void [^;{]*\{", room, code)
    return halves() + code if "half" in code else code


@cache
def halves() -> str:
    """Give OpenCL C that defines float16, alone and in vectors."""
    moves = "".join(MOVES.replace("SPACE", space) for space in ("__global", "__local", "__private"))
    return HALVES + "".join((VECTORS + moves).replace("N", str(wide)).replace(f"OW{wide}", "OWN") for wide in (2, 4, 8))
