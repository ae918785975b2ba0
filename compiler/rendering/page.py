"""Page: a report as one HTML file that needs nothing beside itself, with scripts or without them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from polycast.evaluating.evaluation import Evaluation
from polycast.evaluating.refused import Refused

from .advice import Advice, advise
from .agreement import agreements
from .details import details, measured_how
from .heatmap import heatmap
from .panels import panels
from .prose import boxed, prose
from .sheets import met_lines, missed_lines, sheet
from .tables import Cell, Column, Sheet
from .waterfall import waterfalls


@dataclass(frozen=True)
class Group:
    """What was held against one original on one set of samples, and what was refused beside it.

    By name of the build, as far as they are there: its manifest, the commands that make it again, and what each of
    its layers loses. agreement: the cells of agreement.json, each build beside the original and beside each other.
    """

    evaluations: tuple[Evaluation, ...]
    refused: tuple[Refused, ...] = ()
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sensitivity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    agreement: Sequence[Mapping[str, Any]] = ()


def page(groups: Sequence[Group], data: Mapping[str, Any]) -> str:
    """Write the page. data: the report as JSON, which stands in the page for who wants to compute with it."""
    script = _part("page.js.tmpl")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    titles = dict.fromkeys(_title(group.evaluations[0])[0] for group in groups)
    return Template(_part("page.html.tmpl")).substitute(
        title=escape(" and ".join(titles)),
        style=_part("page.css.tmpl"),
        script=script,
        digest=digest,
        data=_safe(data),
        groups="\n".join(map(_group, groups)),
        measured=measured_how([e for group in groups for e in group.evaluations]),
    )


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _safe(data: Mapping[str, Any]) -> str:
    """Spell JSON that cannot end the script element in which it stands, whatever the names in it are."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _title(evaluation: Evaluation) -> tuple[str, str]:
    """Give the name of the model, and what it was scored on."""
    name, _, digest = evaluation.against.rpartition(" (")
    n = evaluation.n
    data = f"{evaluation.data}, {n:,} sample{'s' * (n != 1)}" if n else "not evaluated"
    return name or evaluation.against, f"{data} · model {digest.rstrip(')')}" if name else data


def _group(group: Group) -> str:
    name, on = _title(group.evaluations[0])
    return "\n".join(
        [
            '<section class="group">',
            f'<header><p class="kicker"><b>{escape(name)}</b> {escape(on)}</p>',
            _answer(advise(group.evaluations)),
            "</header>",
            panels(group.evaluations),
            _table(group),
            details(group.evaluations, group.refused, group.manifests, group.commands),
            waterfalls(group.manifests),
            agreements(group.agreement),
            heatmap(list(group.sensitivity.values())),
            "</section>",
        ]
    )


def _answer(advice: Advice) -> str:
    """Answer the question that a reader comes with."""
    head = f"Ship <em>{escape(advice.build)}</em>." if advice.build else "Which build should you ship?"
    picks = "".join(
        f"<div><dt>{escape(pick.word)}</dt><dd><b>{escape(pick.build)}</b> {prose(pick.says)}</dd></div>"
        for pick in advice.picks
    )
    return "".join(
        [
            f'<h1>{head}</h1><p class="answer">{prose(advice.says)}</p>',
            f'<p class="among">{prose(advice.among)}</p>',
            f'<dl class="picks">{picks}</dl>' if picks else "",
        ]
    )


def _table(group: Group) -> str:
    """Write the table of all builds: what a terminal shows, with the budgets beside the names."""
    shown = sheet(group.evaluations, group.refused)
    rows = len(shown.identity[0].cells)
    columns = [*shown.columns[:-1], _promises(group, rows)]
    heads = "".join(_head(column) for column in columns)
    body = "".join(_row(number, shown, columns, group) for number in range(rows))
    in_rows = {*map(str, group.refused), *missed_lines(group.evaluations), *met_lines(group.evaluations)}
    warnings, notes = (
        "".join(f"<li>{prose(line)}</li>" for line in lines if line not in in_rows)
        for lines in (shown.warnings, shown.notes)
    )
    return "".join(
        [
            '<section class="builds"><h2>Every build</h2>',
            f'<ul class="warnings">{warnings}</ul>' if warnings else "",
            boxed(
                "Every build",
                '<table class="figures sortable"><thead><tr><th scope="col" data-sort="text">build</th>'
                f"{heads}</tr></thead><tbody>{body}</tbody></table>",
            ),
            f'<ul class="notes">{notes}</ul>' if notes else "",
            "</section>",
        ]
    )


def _head(column: Column) -> str:
    beside = f"<small>{escape(column.beside)}</small>" if column.beside else ""
    unit = f" <small>{escape(column.unit)}</small>" if column.unit else ""
    kind = "text" if column.words else "number"
    return f'<th scope="col" data-sort="{kind}">{escape(column.name)}{unit}{beside}</th>'


def _row(number: int, shown: Sheet, columns: Sequence[Column], group: Group) -> str:
    """Write the row of the original, of a build, or of what was refused."""
    _, precision, evidence = (column.cells[number].value for column in shown.identity)
    builds, after = len(group.evaluations), len(group.refused)
    of = number - (len(shown.identity[0].cells) - builds - after)
    if of >= builds:
        return _refused(group.refused[of - builds], len(columns))
    cells = "".join(_cell(column, number) for column in columns)
    if of < 0:
        return (
            '<tr class="original" data-build="original"><th scope="row" data-label="build">original'
            f"<small>{escape(precision)}</small></th>{cells}</tr>"
        )
    evaluation = group.evaluations[of]
    name = escape(evaluation.build.name)
    missed = "".join(f'<small class="miss">misses {prose(str(verdict))}</small>' for verdict in evaluation.missed)
    met = " · within budget" if evaluation.budgets and not evaluation.missed else ""
    return (
        f'<tr class="{"missed" if missed else "build"}" data-build="{name}"><th scope="row" data-label="build">'
        f'<a href="#build-{name}">{name}</a><small>{escape(evidence)}{met}</small>{missed}</th>{cells}</tr>'
    )


def _refused(refused: Refused, columns: int) -> str:
    hint = f"<small>{prose(refused.hint)}</small>" if refused.hint else ""
    return (
        f'<tr class="refused"><th scope="row" data-label="build"><a href="#build-{escape(refused.name)}">'
        f"{escape(refused.name)}</a><small>refused</small></th>"
        f'<td class="why" colspan="{columns}">{prose(refused.reason)}{hint}</td></tr>'
    )


def _cell(column: Column, number: int) -> str:
    cell = column.cells[number]
    label = escape(f"{column.name} {column.unit}".strip())
    if cell.reason:
        return f'<td class="none" data-label="{label}"><span>not run</span><small>{escape(cell.reason)}</small></td>'
    beside = f"<small>{prose(' '.join(cell.beside).rstrip(';'))}</small>" if cell.beside else ""
    key = _key(cell.value)
    sort = f' data-value="{key}"' if key else ""
    kind = ' class="words"' if column.words else ""
    return f'<td{kind} data-label="{label}"{sort}><span>{prose(cell.value)}</span>{beside}</td>'


def _key(value: str) -> str:
    """Give what a figure is sorted by; equal outputs have no noise at all."""
    if value == "equal":
        return "Infinity"
    text = value.replace(",", "")
    try:
        return f"{float(text):g}"
    except ValueError:
        return ""


def _promises(group: Group, rows: int) -> Column:
    """Give the column of promises, shorter than in words: what was reached, and below it what was asked."""
    cells = []
    for evaluation in group.evaluations:
        asked, reached = (evaluation.build.promise.get(key, {}) for key in ("asked", "reached"))
        precision = next(iter(asked.get("weights", {})), "as given")
        shares = [
            (word, reached.get(of, {}).get(precision, 0.0), asked[of][precision])
            for of, word in (("weights", "weights"), ("macs", "MACs"))
            if of in asked and precision in asked[of]
        ]
        if precision == "as given" or not shares:
            cells.append(Cell("as given"))
            continue
        got = ", ".join(f"{share * 100:.0f} % {word}" for word, share, _ in shares)
        wanted = ", ".join(f"{share * 100:.0f} %" for *_, share in shares)
        cells.append(Cell(got, (f"in {precision}; asked {wanted}",)))
    return _padded("promise", cells, rows, len(group.refused))


def _padded(name: str, cells: Sequence[Cell], rows: int, after: int) -> Column:
    """Give a column of words whose cells stand beside the builds, with dashes beside the others."""
    before = rows - len(cells) - after
    return Column(name, "", (*[Cell("–")] * before, *cells, *[Cell("–")] * after), words=True)
