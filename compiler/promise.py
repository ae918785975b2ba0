"""Promise: what share of a model's weights and multiply-accumulates will be at which precision, stated and held."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import PromiseError
from .shares import Shares


@dataclass(frozen=True)
class Promise:
    """What a recipe says its builds will be: at least these shares of weights and of MACs at ``precision``.

    What the recipe keeps by name does not count. Weights promised at 4 bits may have 3: narrower keeps the promise.
    An empty ``precision`` promises that nothing is stored or computed narrower than in the model that came in.
    """

    precision: str = ""
    weights: float = 0.0
    macs: float = 0.0

    def asked(self) -> dict[str, Any]:
        """The promise, as the manifest spells it."""
        if not self.precision:
            return {"weights": {"as given": 1.0}, "macs": {"as given": 1.0}}
        asked = {"weights": {self.precision: self.weights}}
        return asked | ({"macs": {self.precision: self.macs}} if self.macs else {})

    def check(self, before: Shares, after: Shares, why: Iterable[str] = ()) -> None:
        """Hold the counted shares against the promise.

        why: the reasons of what was skipped, of which the first few go into the message.
        Raises: PromiseError saying what was asked, what was reached, and why.
        """
        if not self.precision:
            for precision, elements in after.weights.items():
                if precision not in ("fp32", "fp64") and elements > before.weights.get(precision, 0):
                    raise PromiseError(
                        f"the recipe promises weights as given; {elements} elements are now {precision}",
                        f'--recipe F.toml may promise it: [promise] with precision = "{precision}"',
                    )
            return
        if not after.weights:
            raise PromiseError(
                f"nothing to make {self.precision}: the model has no Conv, ConvTranspose, Gemm or MatMul with weights",
                "Compile it with -p fp32",
            )
        for of, least in (("weights", self.weights), ("macs", self.macs)):
            reached = self.reached(of, after)
            if reached < least:
                reasons = [line for _, line in zip(range(5), why, strict=False)]
                raise PromiseError(
                    f"asked {least:.0%} of {of} in {self.precision}, reached {reached:.1%}",
                    "Because: " + "; ".join(reasons) if reasons else "No pass of the recipe says why",
                )

    def reached(self, of: str, after: Shares) -> float:
        """Give the share, 0 to 1, of ``of`` at the promised precision, or at a narrower integer."""
        most = _bits(self.precision)
        found = getattr(after, of)
        return sum(after.share(of, p) for p in found if p == self.precision or 0 < _bits(p) <= most)


def _bits(precision: str) -> int:
    """Give the bits of an integer precision; 0 for a float."""
    return int(precision.removeprefix("int")) if precision.startswith("int") else 0
