"""Agreement: each build beside the original and beside each other, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .prose import boxed
from .tables import Cell, Column, Sheet

Cells = Sequence[Mapping[str, Any]]

_TITLE = "How near they are to each other"
_HEADS = ("worst", "cosine", "same top-1", "n", "evidence", "holds")


def agreements(cells: Cells) -> str:
    """Write the cells of agreement.json as a table; nothing where there are none."""
    if not cells:
        return ""
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("build", "against", *_HEADS))
    body = "".join(_row(cell) for cell in cells)
    table = f'<table class="agree"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    hint = (
        "On the golden samples. Worst: the largest deviation of any output, as a share of its largest value. A build "
        "whose passes only round is held to a tolerance of that; a lossy one, to noise below the signal."
    )
    return f'<section class="near"><h2>{_TITLE}</h2><p class="hint">{hint}</p>{boxed(_TITLE, table)}</section>'


def agreement_sheet(cells: Cells) -> Sheet:
    """Lay the same out as rows of words."""
    rows = [(str(cell["build"]), str(cell["against"]), *_figures(cell)) for cell in cells]
    columns = [
        Column(name, "", tuple(Cell(row[at]) for row in rows), words=True)
        for at, name in enumerate(("build", "against", *_HEADS))
    ]
    return Sheet(_TITLE, tuple(columns[:1]), tuple(columns[1:]))


def _row(cell: Mapping[str, Any]) -> str:
    values = "".join(f"<td>{escape(value)}</td>" for value in (str(cell["against"]), *_figures(cell)))
    failed = ' class="missed"' if cell.get("within_tolerance") is False else ""
    return f'<tr{failed}><th scope="row">{escape(str(cell["build"]))}</th>{values}</tr>'


def _figures(cell: Mapping[str, Any]) -> tuple[str, ...]:
    if not cell.get("n"):
        return ("–", "–", "–", "0", "not run", str(cell.get("not_run", "")))
    worst, cosine, top = cell.get("worst"), cell.get("cosine"), cell.get("same_top1")
    held = "yes" if cell["within_tolerance"] else "NO"
    if cell.get("tolerance") is not None:
        limit = f"tolerance {cell['tolerance']:.2g}"
    else:
        noise = "" if cell.get("noise") is None else f" {cell['noise']:.2g}"
        limit = f"noise{noise} of the signal, tolerance 1"
    return (
        "∞" if worst is None else f"{worst:.2g}",
        "–" if cosine is None else f"{cosine:.6f}",
        "–" if top is None else f"{top:.1%}",
        str(cell["n"]),
        str(cell["evidence"]),
        f"{held}, {limit}",
    )
