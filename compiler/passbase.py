"""The contract of a pass: what it declares, what it is given, what it must leave true."""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from .model import Skip, name_of

if TYPE_CHECKING:
    from .samples import Samples


class Numerics(enum.Enum):
    """How far a pass may move the outputs."""

    EXACT = "exact"
    """Bit-equal on the reference evaluator."""
    ROUNDING = "rounding"
    """Equal up to the order of floating-point operations."""
    LOSSY = "lossy"
    """Changes what is computed: has to be evaluated before it is shipped."""


@dataclass
class PassContext:
    """What a pass may look at beside the graph, and where it says what it skipped.

    features: what the target can do, e.g. ``skip-norm`` or ``fp16``.
    calibration: unlabelled samples that the user gave, or None.
    original: the graph as it was before the first lossy pass, for a repair to compare with; None before any. A lossy
    pass leaves the outputs of the nodes that it changes under the names that they had.
    max_memory: bytes that observing the calibration samples may hold, or None for no limit.
    cache: folder where what was observed is kept, so that the next pass, or the next run, need not look again.
    """

    features: frozenset[str] = frozenset()
    calibration: Samples | None = None
    skips: list[Skip] = field(default_factory=list)
    original: ir.Model | None = field(default=None, repr=False)
    max_memory: int | None = None
    cache: Path | None = None
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False)

    def afresh(self) -> PassContext:
        """Give a context for one more pass: the same, but for the skips."""
        return replace(self, skips=[])

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far the pass is, where somebody listens."""
        if self.progress:
            self.progress(stage, done, total)

    def skip(self, node: ir.Node, reason: str) -> None:
        """Record that the pass could have acted on ``node`` and did not. The same skip is recorded once."""
        skip = Skip(name_of(node), node.op_type, reason)
        if skip not in self.skips:
            self.skips.append(skip)


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a model. The dataclass fields of a subclass are its parameters, each with a default.

    ``numerics`` bounds what it may do to the outputs. ``needs`` names what it cannot work without:
    ``calibration``, or a feature of the target; a pass whose feature is missing skips, with that reason.
    The contract, which ``Pipeline`` holds every run to: the signature is kept, the result is valid ONNX,
    0 sites means that nothing changed and the reverse, and a second run finds 0 sites.
    ``hasty`` are parameters with which it writes the same nodes sooner, with worse numbers in them: enough to time.
    """

    numerics: ClassVar[Numerics]
    needs: ClassVar[tuple[str, ...]] = ()
    hasty: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def name(cls) -> str:
        """Spelling in a recipe: ``FuseConvBn`` is ``fuse_conv_bn``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @property
    def spelling(self) -> str:
        """Exact recipe spelling, e.g. ``fp16(keep=('Softmax',))``; parameters at their default are left out."""
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name()}({', '.join(changed)})" if changed else self.name()

    @abstractmethod
    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Rewrite ``graph``, a draft of this pass's own, in place.

        Returns: the number of sites where the pass acted.
        """
