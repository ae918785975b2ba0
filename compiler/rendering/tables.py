"""Tables: figures as text, and a sheet of them as a terminal table or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from math import floor, isfinite, log10

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_GAP = 2


@dataclass(frozen=True)
class Cell:
    """A figure or a word, the lines that go with it, or the ``reason`` why there is none."""

    value: str = ""
    beside: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Column:
    """One column: its name, its unit, and what ``beside`` of its cells is. The highest ``rank`` is dropped first."""

    name: str
    unit: str
    cells: tuple[Cell, ...]
    beside: str = ""
    rank: int = 0
    words: bool = False

    @property
    def head(self) -> str:
        """Name and unit on one line."""
        return f"{self.name} {self.unit}".strip()


@dataclass(frozen=True)
class Sheet:
    """A table with its title above and its notes below; ``warnings`` are the notes that are bad news.

    identity: columns of words that say what a row is. A terminal stacks them into one.
    """

    title: str
    identity: tuple[Column, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def figure(x: float) -> str:
    """Write three significant digits: ``0.0123``, ``4.20``, ``98.3``, ``1,234``."""
    if x == 0 or not isfinite(x):
        return f"{x:g}"
    exponent = floor(log10(abs(float(f"{x:.2e}"))))
    return f"{x:.2e}" if exponent < -4 else f"{x:,.{max(0, 2 - exponent)}f}"


def signed(x: float) -> str:
    """Write three significant digits with their sign."""
    text = figure(x)
    return text if text.startswith("-") else f"+{text}"


def points(x: float) -> str:
    """Write a difference of shares as signed percentage points with two decimals; nothing is ``-0.00``."""
    return f"{round(x * 100, 2) + 0.0:+.2f}"


def byte_unit(sizes: Sequence[float]) -> tuple[str, float]:
    """Give the unit in which the largest of ``sizes`` reads well, and its bytes."""
    largest = max(sizes, default=2**20)
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if largest >= size:
            return unit, float(size)
    return "B", 1.0


def aligned(texts: Sequence[str]) -> list[str]:
    """Pad figures on both sides so that their decimal points stand below each other; words stay as they are."""
    parts = [text.partition(".") if text[:1].isdigit() else None for text in texts]
    before = max((len(p[0]) for p in parts if p), default=0)
    after = max((len(p[1] + p[2]) for p in parts if p), default=0)
    return [
        p[0].rjust(before) + (p[1] + p[2]).ljust(after) if p else text for text, p in zip(texts, parts, strict=True)
    ]


def markdown(sheet: Sheet) -> str:
    """Write ``sheet`` in Markdown: one line a row, every column, reasons in full."""
    columns = []
    for column in (*sheet.identity, *sheet.columns):
        head = f"{column.head} ({column.beside})" if column.beside else column.head
        figures = aligned([f"not run: {c.reason}" if c.reason else c.value for c in column.cells])
        texts = [
            f"{text} ({' '.join(cell.beside)})" if cell.beside else text
            for text, cell in zip(figures, column.cells, strict=True)
        ]
        texts = [_escaped(text) for text in (head, *texts)]
        # What has something beside it is read from the left, a bare figure from the right.
        columns.append((column.words or bool(column.beside), max(map(len, texts)), texts))
    lines = [
        "| " + " | ".join(t[row].ljust(w) if left else t[row].rjust(w) for left, w, t in columns) + " |"
        for row in range(len(columns[0][2]))
    ]
    rule = "|".join(f" {'-' * width} " if left else f" {'-' * (width - 1)}: " for left, width, _ in columns)
    notes = [f"- {_escaped(note)}" for note in (*sheet.warnings, *sheet.notes)]
    return "\n".join(
        [f"**{_escaped(sheet.title)}**", "", lines[0], f"|{rule}|", *lines[1:], *([""] if notes else []), *notes]
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def terminal(sheet: Sheet, width: int, color: bool = False) -> str:
    """Write ``sheet`` for a terminal ``width`` characters wide; columns that do not fit are dropped, and named."""
    shown, reasons = _footnoted(sheet)
    kept, dropped = _fitting([_stacked(shown.identity), *shown.columns], width)
    notes = [*sheet.warnings, *(f"{_mark(i)} {reason}" for i, reason in enumerate(reasons, 1)), *sheet.notes]
    if dropped:
        notes.append(f"no room in {width} columns for {', '.join(c.head for c in dropped)}: see --format md")
    return _with_rich(replace(sheet, columns=tuple(kept), notes=tuple(notes)), width, color)


def _stacked(columns: Sequence[Column]) -> Column:
    """Put columns of words into one, below each other."""
    first, second, third = columns
    cells = tuple(Cell(a.value, (b.value, c.value)) for a, b, c in zip(*(c.cells for c in columns), strict=True))
    return Column(first.name, second.name, cells, third.name, words=True)


def _footnoted(sheet: Sheet) -> tuple[Sheet, list[str]]:
    """Put a mark in place of each reason. Returns: the sheet, and the reasons in the order of their marks."""
    reasons = list(dict.fromkeys(cell.reason for column in sheet.columns for cell in column.cells if cell.reason))
    columns = tuple(
        replace(
            c, cells=tuple(Cell(f"not run{_mark(reasons.index(x.reason) + 1)}") if x.reason else x for x in c.cells)
        )
        for c in sheet.columns
    )
    return replace(sheet, columns=columns), reasons


def _mark(number: int) -> str:
    return str(number).translate(_SUPERSCRIPT)


def _fitting(columns: Sequence[Column], width: int) -> tuple[list[Column], list[Column]]:
    """Choose the columns that fit, the lowest rank first; the first column always stays. Returns: kept, dropped."""
    chosen, used = [0], _width(columns[0])
    for i in sorted(range(1, len(columns)), key=lambda i: columns[i].rank):
        needed = _GAP + _width(columns[i])
        if used + needed <= width:
            chosen.append(i)
            used += needed
    return [columns[i] for i in sorted(chosen)], [c for i, c in enumerate(columns) if i not in chosen]


def _width(column: Column) -> int:
    figures = aligned([cell.value for cell in column.cells])
    lines = [line for cell in column.cells for line in cell.beside]
    return max(map(len, (column.name, column.unit, column.beside, *figures, *lines)))


def _with_rich(sheet: Sheet, width: int, color: bool) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Beside the padding, this box puts one space between columns.
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )
    heads = max(bool(c.beside) + 2 for c in sheet.columns)
    for column in sheet.columns:
        lines = [column.name, column.unit, column.beside][:heads]
        table.add_column("\n".join(lines), justify="left" if column.words else "right", no_wrap=True)
    figures = [aligned([cell.value for cell in column.cells]) for column in sheet.columns]
    rows = len(sheet.columns[0].cells)
    for row in range(rows):
        texts = []
        for column, values in zip(sheet.columns, figures, strict=True):
            text = Text(values[row], style="bold" if column is sheet.columns[0] else "")
            for line in column.cells[row].beside:
                text.append(f"\n{line}", style="dim")
            texts.append(text)
        table.add_row(*texts)
        if row < rows - 1:
            table.add_row()
    out = StringIO()
    console = Console(file=out, width=max(width, 20), force_terminal=color, no_color=not color, highlight=False)
    console.print(Text(sheet.title, style="bold"), "", table, sep="\n")
    if sheet.warnings or sheet.notes:
        console.print()
    for note in sheet.notes:
        console.print(Text(note, style="red" if note in sheet.warnings else "dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
