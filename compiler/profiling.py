"""Profiling: the time that each op type, and each node, takes in one run of an onnxruntime session."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .targetbase import CheckedSession

if TYPE_CHECKING:
    import numpy as np

RUNS, WARM_UP = 10, 3

#: What onnxruntime's profiler writes: an event a kernel, a run, and more.
Trace = list[dict[str, Any]]


@dataclass
class ProfiledSession(CheckedSession):
    """A session of onnxruntime that can also say what its ops take.

    reopen: opens the same model with the same settings, given what else to set on the ``SessionOptions``.
    """

    reopen: Callable[[Callable[[Any], None]], Any] = field(kw_only=True, repr=False)

    def profile(self, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Give the seconds of one run by op type; see ``polycast.targetbase.Profiling``."""
        return median_by_op(self._trace(feeds))

    def profile_nodes(self, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Give the seconds of one run by node; see ``polycast.targetbase.NodeProfiling``."""
        return median_by_node(self._trace(feeds))

    def _trace(self, feeds: Mapping[str, np.ndarray]) -> Trace:
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:

            def switch_on(options: Any) -> None:
                options.enable_profiling = True
                options.profile_file_prefix = str(Path(folder) / "profile")

            session = self.reopen(switch_on)
            for _ in range(WARM_UP + RUNS):
                session.run(None, dict(feeds))
            trace: Trace = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return trace


def median_by_op(trace: Trace) -> dict[str, float]:
    """Sum the kernel times in a trace of onnxruntime by op type, run by run. Returns: medians in seconds.

    The first WARM_UP runs are left out. A fused kernel counts as the op that does its work: ``FusedConv`` as ``Conv``.
    """
    return _medians(trace, lambda kernel: str(kernel["args"]["op_name"]).removeprefix("Fused"))


def median_by_node(trace: Trace) -> dict[str, float]:
    """Sum the kernel times in a trace of onnxruntime by the name of the node, as ``median_by_op`` does by op type.

    Names are those of the graph that onnxruntime made of the model: what it fused or put in has names of its own.
    """
    return _medians(trace, lambda kernel: str(kernel["name"]).removesuffix("_kernel_time"))


def _medians(trace: Trace, key: Callable[[dict[str, Any]], str]) -> dict[str, float]:
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in trace if e["name"] == "model_run")[WARM_UP:]
    kernels = [e for e in trace if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    own = _own_times(kernels)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    for kernel, microseconds in zip(kernels, own, strict=True):
        for run, (start, end) in enumerate(runs):
            if start <= kernel["ts"] <= end:
                sums[key(kernel)][run] += microseconds * 1e-6
    return {name: median(times) for name, times in sums.items()}


def _own_times(kernels: Trace) -> list[float]:
    """Take from each kernel's time that of the kernels inside it: an ``If`` or a ``Loop`` spans its subgraph."""
    own = [float(kernel["dur"]) for kernel in kernels]
    around: list[int] = []
    for i in sorted(range(len(kernels)), key=lambda i: (kernels[i]["ts"], -kernels[i]["dur"])):
        while around and kernels[around[-1]]["ts"] + kernels[around[-1]]["dur"] <= kernels[i]["ts"]:
            around.pop()
        if around:
            own[around[-1]] -= kernels[i]["dur"]
        around.append(i)
    return own
