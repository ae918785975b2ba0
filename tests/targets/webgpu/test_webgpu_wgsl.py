"""What is taken from TVM's WGSL, and what float16 becomes where an adapter has none."""

from __future__ import annotations

import pytest

from polycast.errors import PassError, UnsupportedError
from polycast.targets.webgpu._wgsl import WORKGROUPS, folded, tidy
from polycast.targets.webgpu._wide import widened

MODULE = """// Function: relu_kernel
//----------------------------------------
@group(0) @binding(0) var<storage, read_write> y_ptr : array<f32>;
@group(0) @binding(1) var<storage, read> x_ptr : array<f32>;

struct PODArgs {
  packGridDimX: u32
}
@group(0) @binding(2) var<uniform> podArgs : PODArgs;

@compute @workgroup_size(64, 1, 1)
fn relu_kernel(
  @builtin(workgroup_id) blockIdx : vec3<u32>,
  @builtin(num_workgroups) gridDim : vec3<u32>,
  @builtin(local_invocation_id) threadIdx : vec3<u32>
) {
  if (blockIdx.z * gridDim.x + blockIdx.x > podArgs.packGridDimX) { return; }
  let v : i32 = i32(blockIdx.z * gridDim.x + blockIdx.x);
  y_ptr[v] = max(x_ptr[v], 0.0f);
}
"""


def test_static_grid_needs_no_uniform() -> None:
    code = tidy(MODULE, "relu_kernel", 100)
    assert "podArgs" not in code and "gridDim" not in code and "uniform" not in code
    assert "let v : i32 = i32(blockIdx.x);" in code
    assert "fn main(" in code


def test_wide_grid_is_folded_and_what_sticks_out_returns() -> None:
    grid = (WORKGROUPS * 2 + 5, 3, 1)
    x, y, z = folded(grid)
    assert x <= WORKGROUPS and x * z >= grid[0] and y == 3
    code = tidy(MODULE, "relu_kernel", grid[0])
    assert f"const width = {grid[0]}u;" in code
    assert "if (blockIdx.z * gridDim.x + blockIdx.x >= width) { return; }" in code


def test_a_grid_that_no_adapter_has_to_take_is_refused_with_what_helps() -> None:
    with pytest.raises(UnsupportedError, match="more than WebGPU allows") as caught:
        folded((1, WORKGROUPS + 1, 1))
    assert "--shape" in caught.value.hint


def test_the_remainder_has_the_name_that_the_kernel_calls() -> None:
    called = MODULE.replace("max(", "fmodf(")
    assert called != MODULE
    assert "fn fmodf(x: f32, y: f32)" in tidy(called, "relu_kernel", 1)
    assert "fmodf" not in tidy(MODULE, "relu_kernel", 1)


def test_other_code_than_is_known_is_a_bug_that_says_so() -> None:
    with pytest.raises(PassError, match="relu_kernel"):
        tidy(MODULE.replace("packGridDimX: u32", "packGridDimX: u32,\n  more: f32"), "relu_kernel", 1)


HALF = """enable f16;

@group(0) @binding(0) var<storage, read_write> y_ptr : array<f16>;
@group(0) @binding(1) var<storage, read> x_ptr : array<f16>;
@group(0) @binding(2) var<storage, read> x : array<f16>;

fn main() {
  y_ptr[i] = f16(x_ptr[x[(i + 1i)]]) + max(x[y_ptr[0i]], 1.500000e+00h);
}
"""


def test_float16_becomes_float32_and_weights_are_taken_out_of_their_words() -> None:
    code = widened(HALF, {2})
    assert "f16" not in code.replace("unpack2x16float", "")
    assert "var<storage, read> x : array<u32>;" in code
    assert "var<storage, read> x_ptr : array<f32>;" in code
    assert "y_ptr[i] = f32(x_ptr[x_at((i + 1i))]) + max(x_at(y_ptr[0i]), 1.500000e+00f);" in code


def test_what_has_no_float16_stays() -> None:
    assert widened(MODULE, {1}) == MODULE
