"""Op times: what each layer takes in one run of a build, measured on its target, with all that runs on its account."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from polycast.evaluating.worker import Opening, SavedFeeds, Worker

from .build import Build
from .errors import ToolchainError
from .model import name_of
from .sensitivity import Layer

if TYPE_CHECKING:
    from .statistics import Array

#: What onnxruntime appends to the name of a node, or of its output, when it makes another node of it.
_APPENDED = re.compile(r"(_nchwc|_token_\d+|/duplicated|_fused|_quant|_matmul_add_fusion|_with_bias)+$")


def layer_times(build: Build, layers: Sequence[Layer], known: Collection[str], feeds: SavedFeeds) -> Array | None:
    """Give the seconds that each of ``layers`` takes in one run of ``build``, measured in a process of its own.

    known: the names of the nodes before quantization, by which those that it put in are told from the others.
    Returns: [layers]; None where the runtime does not tell, or the build is no ONNX file.
    """
    import numpy as np

    file = build.path / str(build.manifest["runtime"].get("model", ""))
    if file.suffix != ".onnx":
        return None
    try:
        with Worker(Opening("build", str(build.path.resolve()), feeds)) as worker:
            by_node = worker.profile_nodes()
    except ToolchainError:
        return None
    if by_node is None:
        return None
    sums = charge(by_node, owners(load_graph(file), layers, known))
    return np.array([sums.get(layer.name, 0.0) for layer in layers])


def load_graph(file: Path) -> ir.Graph:
    """Read the graph of an ONNX file; its weights stay where they are."""
    return ir.load(file).graph


def owners(graph: ir.Graph, layers: Sequence[Layer], known: Collection[str]) -> dict[str, str]:
    """Say on whose account each node of ``graph`` runs. Returns: layer by node name, and by output name.

    A node that quantization put in belongs to the layer that it feeds; any other to the last layer before it, since
    what follows a layer is fused into it. What stands before the first layer belongs to that.
    """
    seeds = {name: layer.name for layer in layers for name in layer.nodes}
    nodes = list(graph)
    found: dict[ir.Node, str] = {node: seeds[name_of(node)] for node in nodes if name_of(node) in seeds}
    for node in reversed(nodes):
        if node not in found and name_of(node) not in known:
            fed = (user for output in node.outputs for user, _ in output.uses())
            owner = next((found[user] for user in fed if user in found), None)
            if owner is not None:
                found[node] = owner
    current = next((found[node] for node in nodes if node in found), "")
    named: dict[str, str] = {}
    for node in nodes:
        current = found.get(node, current) if name_of(node) in seeds else current
        owner = found.get(node, current)
        named |= dict.fromkeys((output.name for output in node.outputs if output.name), owner)
        named[name_of(node)] = owner
    return named


def charge(by_node: Mapping[str, float], owner: Mapping[str, str]) -> dict[str, float]:
    """Add up the times of kernels, in the order in which they ran, by the layer on whose account they do.

    A kernel is known by the name of a node or of an output, which the runtime may have added to. One that is not known
    belongs to the layer of the kernel before it.
    """
    sums: dict[str, float] = {}
    current = next(iter(owner.values()), "")
    for name, seconds in by_node.items():
        current = owner.get(name) or owner.get(_APPENDED.sub("", name)) or _longest(name, owner) or current
        sums[current] = math.fsum((sums.get(current, 0.0), seconds))
    return sums


def _longest(name: str, owner: Mapping[str, str]) -> str | None:
    """Give the owner of the longest known name that ``name`` begins with, where a new word begins after it."""
    ends = [match.start() for match in re.finditer(r"[_/.\s]", name)]
    return next((owner[name[:end]] for end in reversed(ends) if name[:end] in owner), None)
