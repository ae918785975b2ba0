"""Heat map: what each layer loses at each precision, and what it would cost to keep it in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from .advice import size_text
from .prose import boxed, prose
from .tables import figure

#: Noise of this many dB below the signal and less is drawn as none, of this many as the worst.
QUIET, LOUD = 60.0, 10.0

_TITLE = "What each layer loses"
_ABSENT = (
    f'<section class="layers"><h2>{_TITLE}</h2><p class="among">The sensitivity of the layers was not '
    "measured. <code>polycast sweep … -p int8 --calibration C</code> measures it.</p></section>"
)


def heatmap(tables: Sequence[Mapping[str, Any]]) -> str:
    """Draw sensitivities of one model, as ``Sensitivity.to_json`` spells them: layers down, precisions across.

    A cell is how far the noise that this layer alone adds to the outputs is below the signal, in dB.
    """
    sensitivity = joined(tables)
    if not sensitivity["layers"]:
        return _ABSENT
    ways = [str(way["name"]) for way in sensitivity["ways"]]
    seconds = any(row["seconds"] for row in sensitivity["layers"])
    heads = [("layer", "text"), ("op", "text"), ("weights", "number")]
    heads += [(way, "number") for way in ways] + [("in float: bytes", "number")]
    heads += [("in float: ms", "number")] * seconds
    head = "".join(f'<th scope="col" data-sort="{kind}">{escape(name)}</th>' for name, kind in heads)
    rows = "".join(_row(layer, seconds) for layer in sensitivity["layers"])
    table = (
        f'<table class="heat sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
        f"<tfoot>{_whole(sensitivity, 1 + seconds)}</tfoot></table>"
    )
    n = sensitivity["samples"]
    hint = (
        "How far the noise on the outputs is below the signal, in dB, where this layer alone is quantized "
        f"({n:,} samples). The stronger the colour, the worse; a dash means that the precision does not reach the "
        "layer. On the right, what the layer would take more, were it left in float: beside the smallest of these in "
        "bytes, beside the fastest build in ms, as the runtime’s own profiler tells them."
    )
    table = boxed(_TITLE, table, "box tall")
    return f'<section class="layers"><h2>{_TITLE}</h2><p class="hint">{hint}</p>{table}</section>'


def joined(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the ways of several sensitivities beside each other; a way that is there already comes once."""
    layers: dict[str, dict[str, Any]] = {}
    ways: dict[str, Mapping[str, Any]] = {}
    whole: list[float | None] = []
    for table in tables:
        fresh = [(at, way) for at, way in enumerate(table["ways"]) if way["name"] not in ways]
        for layer in table["layers"]:
            fresh_row = {**layer, "noise": [None] * len(ways), "bytes": [0] * len(ways), "seconds": []}
            row = layers.setdefault(layer["name"], fresh_row)
            row["seconds"] += [layer["seconds"]] if "seconds" in layer else []
            row["noise"] += [layer["noise"][at] for at, _ in fresh]
            row["bytes"] += [layer["bytes"][at] for at, _ in fresh]
        ways |= {way["name"]: way for _, way in fresh}
        whole += [table["whole"][at] for at, _ in fresh]
        for row in layers.values():
            row["noise"] += [None] * (len(ways) - len(row["noise"]))
            row["bytes"] += [0] * (len(ways) - len(row["bytes"]))
    samples = max((table["samples"] for table in tables), default=0)
    return {"ways": list(ways.values()), "layers": list(layers.values()), "whole": whole, "samples": samples}


def _row(layer: Mapping[str, Any], seconds: bool) -> str:
    cells = "".join(_noise(value) for value in layer["noise"])
    saved = max((-grown for grown in layer["bytes"]), default=0)
    cost = f'<td data-value="{saved}">{"+" + size_text(saved) if saved > 0 else "–"}</td>'
    if seconds:
        more = max(layer["seconds"], default=None)
        cost += "<td>–</td>" if more is None else f'<td data-value="{more:g}">{prose(f"{more * 1e3:+.3f}")}</td>'
    nodes, weights = escape(", ".join(layer["nodes"])), layer["weights"]
    return (
        f'<tr><th scope="row" title="{nodes}">{escape(layer["name"])}</th><td class="words">{escape(layer["op"])}</td>'
        f'<td data-value="{weights}">{_count(weights)}</td>{cells}{cost}</tr>'
    )


def _noise(value: float | None) -> str:
    """Write one cell: the figure, on a colour as deep as the noise is loud."""
    if value is None:
        return '<td class="cell">–</td>'
    if value <= 0:
        return '<td class="cell" data-value="-999">none</td>'
    below = -10 * log10(value)
    depth = min(1.0, max(0.0, (QUIET - below) / (QUIET - LOUD)))
    return f'<td class="cell" style="--depth:{depth:.2f}" data-value="{-below:.2f}">{below:.1f}</td>'


def _whole(sensitivity: Mapping[str, Any], rest: int) -> str:
    cells = "".join(_noise(value) for value in sensitivity["whole"])
    return f'<tr><th scope="row">all at once</th><td></td><td></td>{cells}<td colspan="{rest}"></td></tr>'


def _count(elements: int) -> str:
    for unit, each in (("M", 10**6), ("k", 10**3)):
        if elements >= each:
            return f"{figure(elements / each)} {unit}"
    return str(elements)
