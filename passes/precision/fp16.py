"""Convert a float32 model to float16 wherever that is safe."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._borders import cross
from ._choose import by_operator, drop_by_ranges, drop_by_weights, settle
from ._ranges import peaks
from ._typing import infer_types


@dataclass(frozen=True)
class Fp16(Pass):
    """Convert weights and activations from float32 to float16; inputs and outputs of the model keep their dtype.

    A site is a node that computes in float16 afterwards. What multiplies and accumulates is converted; what sums,
    exponentiates, divides by a variance, takes angles or carries a state keeps float32, and what only passes numbers
    on takes the wider type of its inputs. Masks of -3.4e38 therefore stay float32 up to the softmax. LayerNormalization
    and RMSNormalization compute in float32 inside (stash_type). Bodies of If, Loop and Scan keep float32.
    A node keeps float32 as well where float16 does not hold its weights, or what it reads and gives on the
    calibration samples. Without samples only weights are checked.

    keep: operators, node names and globs of them that keep float32 beside these.
    range_check: whether the calibration samples are run.
    headroom: how many times larger than on the samples an activation may get.
    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3; which operators keep float32 follows PyTorch's
    autocast (torch.amp, "CUDA Ops that can autocast to float32", and promotion to the widest input type).
    """

    numerics = Numerics.LOSSY

    keep: tuple[str, ...] = ()
    range_check: bool = True
    headroom: float = 2.0

    def __post_init__(self) -> None:
        if not self.headroom >= 1:
            raise ValueError(f"headroom is at least 1, not {self.headroom}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Convert every node of the main graph that float16 suits; each float32 node that stays has its reason."""
        infer_types(graph)
        choice = by_operator(graph, self.keep, ctx.skip)
        settle(graph.graph, choice, ctx.skip)
        drop_by_weights(choice, ctx.skip)
        if choice.nodes and self.range_check:
            first = next(iter(choice.nodes))
            activations = choice.activations()
            found = "no calibration samples" if ctx.calibration is None else peaks(graph, activations, ctx.calibration)
            if isinstance(found, str):
                ctx.skip(first, f"ranges not checked: {found}")
            else:
                drop_by_ranges(choice, dict(zip(activations, found, strict=True)), self.headroom, ctx.skip)
        settle(graph.graph, choice, ctx.skip)
        if choice.nodes:
            cross(graph.graph, choice)
        return len(choice.nodes)
