"""The numbers of float16: what a tensor loses in it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

#: The largest finite float16, the smallest normal one, and the unit roundoff of the normal ones.
LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
ROUNDOFF = 2.0**-11

#: What the -3.4e38 of a mask becomes. Half of the largest, so that a score added to it in float16 stays finite: a row
#: of nothing but -inf would be NaN after the softmax.
MASKED = LARGEST / 2


def to_half(array: np.ndarray, limit: float = LARGEST) -> np.ndarray:
    """Round ``array`` to float16. A finite number past ``limit`` becomes ``limit``, not infinity."""
    limited = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return limited.astype(np.float16)


def loss(tensor: ir.TensorProtocol, *, clamps: bool = False) -> str:
    """Say what ``tensor`` loses in float16 beyond the rounding of normal numbers, or "".

    What is lost to subnormals and zero is held against the whole tensor: many trained weights of 1e-30 are as good
    as the zeros that they become, and one epsilon of 1e-12 is not.
    clamps: whether the tensor only bounds something, so that its largest numbers may become float16's.
    """
    array = tensor.numpy()
    finite = array if np.isfinite(array).all() else np.where(np.isfinite(array), array, 0)
    peak = float(np.max(np.abs(finite), initial=0.0))
    if peak > LARGEST and not clamps:
        return f"holds {peak:.3g}, over {LARGEST:.0f}"
    half = to_half(finite)
    # Scaled by the peak, so that squares neither overflow nor vanish.
    scale = np.float32(1 / min(peak, LARGEST) if peak > np.finfo(np.float32).tiny else 1)
    exact = np.clip(finite, -LARGEST, LARGEST) * scale
    lost = float(np.linalg.norm(exact - half.astype(np.float32) * scale))
    if lost <= ROUNDOFF * float(np.linalg.norm(exact)):
        return ""
    zeros = int(np.count_nonzero((half == 0) & (finite != 0)))
    if zeros:
        return f"holds {peak:.3g} at most, and {zeros} of its {np.count_nonzero(finite)} nonzero numbers become 0"
    return f"holds {peak:.3g} at most, of which float16 loses {lost / float(np.linalg.norm(exact)):.1%}"
