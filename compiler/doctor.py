"""Doctor: per target and runtime, what can be built and run on this machine, on what, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

from polycast import targets

from .targetbase import Probe, Target

#: Columns of text that is not for a terminal, which has no width.
_WIDE = 10_000


def examine() -> list[dict[str, Any]]:
    """Probe every target with every runtime that it has, and each of its chips that is another case here.

    Returns: a row each, with ``target`` as a user spells it, ``runtime``, ``arches``, ``precisions``, ``declined``
    with the reason of each, ``features``, ``hardware``, ``evidence``, and the answers ``build`` and ``run``, each
    ``yes``, ``reason`` and ``mend``.
    """
    kinds = ((kind, runtime) for kind in targets.catalogue().values() for runtime in kind.runtimes)
    return [_row(target, probe) for kind, runtime in kinds for target, probe in _cases(kind, runtime)]


def _cases(kind: type[Target], runtime: str) -> Iterator[tuple[Target, Probe]]:
    """Yield the target as it is without a chip, and with each of which anything else can be built or run here."""
    plain = kind(runtime=runtime)
    usual = plain.probe()
    yield plain, usual
    for arch in kind.arches:
        target = kind(arch=arch, runtime=runtime)
        probe = target.probe()
        if _gist(probe) != _gist(usual):
            yield target, probe


def _gist(probe: Probe) -> tuple[object, ...]:
    return probe.build.yes, probe.run.yes, probe.evidence


def _row(target: Target, probe: Probe) -> dict[str, Any]:
    return {
        "target": str(target),
        "runtime": target.executor,
        "arches": [] if target.arch else list(target.arches),
        "precisions": list(target.precisions),
        "declined": dict(target.declined),
        "features": sorted(target.features),
        "hardware": probe.hardware,
        "evidence": probe.evidence,
        "build": vars(probe.build),
        "run": vars(probe.run),
    }


def render(rows: Sequence[Mapping[str, Any]], width: int | None = None, color: bool = False) -> str:
    """Write ``rows`` as a table, and below it, by target, what it takes and what mends what it cannot.

    width: columns of the terminal; None where the text is not for one.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("target", "runtime", "build", "run", "on"):
        table.add_column(head, no_wrap=head != "on", overflow="fold")
    for row in rows:
        answers = (Text(_word(row[question]["yes"]), _style(row[question]["yes"])) for question in ("build", "run"))
        table.add_row(row["target"], row["runtime"], *answers, _place(row))
    out = StringIO()
    console = Console(
        file=out, width=width or _WIDE, force_terminal=color, no_color=not color, color_system="auto" if color else None
    )
    console.print(table)
    for row in rows:
        console.print(Text(f"\n{row['target']}", "bold"))
        details = Table.grid(padding=(0, 2, 0, 0))
        for word, text in _details(row):
            details.add_row(Text(word), Text(text, overflow="fold"))
        console.print(Padding(details, (0, 0, 0, 2)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _place(row: Mapping[str, Any]) -> str:
    if not row["run"]["yes"]:
        return "–"
    told = "" if row["evidence"] == "device" else f" ({row['evidence']})"
    return f"{row['hardware'] or 'this machine'}{told}"


def _details(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for question in ("build", "run"):
        answer = row[question]
        yield question, f"{_word(answer['yes'])}: {answer['reason']}"
        if answer["mend"]:
            yield "", f"{'better' if answer['yes'] else 'to mend it'}: {answer['mend']}"
    if row["arches"]:
        yield "chips", ", ".join(row["arches"])
    yield "precisions", ", ".join(row["precisions"])


def _word(yes: bool) -> str:
    return "yes" if yes else "no"


def _style(yes: bool) -> str:
    return "green" if yes else "yellow"
