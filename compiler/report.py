"""Report: evaluations side by side, as a terminal table, Markdown, JSON or CSV."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

from polycast.evaluating.evaluation import Evaluation, Subject
from polycast.evaluating.scoring import Difference
from polycast.rendering.sheets import evidence_of, promise_text, sheet
from polycast.rendering.tables import markdown, terminal

from .build import Build, open_build
from .errors import InputError, RecipeError
from .measure import Measurement

SCHEMA = 1
FORMATS = ("table", "md", "json", "csv")


@dataclass(frozen=True)
class Report:
    """Evaluations side by side; a build that nobody evaluated is an evaluation with n = 0."""

    evaluations: tuple[Evaluation, ...]

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> Report:
        """Read JSON files (an evaluation, a list of them, or a report) and folders of builds and such files.

        Raises: InputError where there is nothing to read, or a named file is no evaluation.
        """
        evaluations: list[Evaluation] = []
        builds: list[Build] = []
        for path in map(Path, paths):
            if path.is_dir():
                manifests = [path / "manifest.json", *sorted(path.glob("*/manifest.json"))]
                builds += [open_build(m.parent) for m in manifests if m.is_file()]
                evaluations += [e for file in sorted(path.glob("*.json")) for e in _in_file(file, named=False)]
            else:
                evaluations += _in_file(path, named=True)
        known = {Path(e.build.path).resolve() for e in evaluations}
        evaluations += [unevaluated(b) for b in builds if b.path.resolve() not in known]
        if not evaluations:
            raise InputError(
                f"no builds and no evaluations in {', '.join(map(str, paths))}",
                "Give a folder that polycast compile wrote to, or a file of polycast evaluate --json",
            )
        return cls(tuple(evaluations))

    def render(self, form: str = "table", *, width: int | None = None, color: bool = False) -> str:
        """Write the report as ``table``, ``md``, ``json`` or ``csv``; width: of the terminal, asked for where None.

        Raises: RecipeError for another format.
        """
        if form == "table":
            columns = width or shutil.get_terminal_size((80, 24)).columns
            return "\n\n".join(terminal(sheet(group), columns, color) for group in self._groups()) + "\n"
        if form == "md":
            return "\n\n".join(markdown(sheet(group)) for group in self._groups()) + "\n"
        if form == "json":
            return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if form == "csv":
            return _csv(self.evaluations)
        raise RecipeError.unknown("format", form, FORMATS)

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON; ``read`` takes it."""
        return {"schema": SCHEMA, "evaluations": [evaluation.to_json() for evaluation in self.evaluations]}

    def _groups(self) -> list[list[Evaluation]]:
        """Put together what was held against the same model on the same data, and builds of that model beside it."""
        groups: dict[tuple[str, str, int], list[Evaluation]] = {}
        for evaluation in sorted(self.evaluations, key=lambda e: e.n == 0):
            key = (evaluation.against, evaluation.data, evaluation.n)
            if not evaluation.n:
                key = next((k for k in groups if k[0] == evaluation.against), key)
            groups.setdefault(key, []).append(evaluation)
        return list(groups.values())


def unevaluated(build: Build) -> Evaluation:
    """Give what a build says of itself: its size, and how near it came to the original when it was compiled."""
    origin, said = build.manifest["model"], build.agreement
    evidence, n = build.manifest["evidence"], int(said.get("n", 0))
    found = {"size": Measurement("size", float(build.bytes), "bytes", 1, "lower", "device")}
    for name, value, unit in (("agreement", said.get("same_top1"), "share"), ("sqnr", said.get("sqnr_db"), "dB")):
        if value is not None and n and evidence != "not run":
            found[name] = Measurement(name, float(value), unit, n, "higher", evidence)
    samples = f"{n} {said['samples']} sample{'s' * (n != 1)}" if n else ""
    notes = (f"agreement and sqnr are of compile time, on {samples}",) if n else ()
    against = f"{origin['name']} ({origin['origin']['sha256'][:12]})"
    return Evaluation(Subject.of(build), against, "", 0, {}, found, {}, {}, (), notes)


def _in_file(path: Path, *, named: bool) -> list[Evaluation]:
    """Read the evaluations in one JSON file; one that the user did not name may hold something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        if not named:
            return []
        raise InputError(f"{path} is no JSON: {error}", "Give a file of polycast evaluate --json") from error
    entries = data.get("evaluations", [data]) if isinstance(data, dict) else data
    ours = isinstance(entries, list) and all(isinstance(e, dict) and "measurements" in e for e in entries)
    if not ours or not entries:
        if not named:
            return []
        raise InputError(f"{path} holds no evaluation", "Give a file of polycast evaluate --json")
    return [Evaluation.from_json(entry, str(path)) for entry in entries]


def _csv(evaluations: Sequence[Evaluation]) -> str:
    """One row a build, and one for each original; figures at full precision in their base unit."""
    names = list(dict.fromkeys(name for e in evaluations for name in (*e.differences, *e.measurements, *e.not_run)))
    rows: list[dict[str, Any]] = []
    for evaluation in evaluations:
        about = {"against": evaluation.against, "data": evaluation.data or "none", "n": evaluation.n}
        original = about | {"build": "original", "target": "onnxruntime", "precision": "as given", "evidence": "device"}
        if evaluation.baseline and not any(row.items() >= original.items() for row in rows):
            cells = (_csv_cells(name, evaluation.baseline.get(name) or "is the original") for name in names)
            rows.append(original | {"promise": "as given"} | _merged(cells))
        build = evaluation.build
        own = {"build": build.name, "target": build.target, "precision": build.precision}
        own |= {"evidence": evidence_of(evaluation), "promise": promise_text(build.promise)}
        cells = (_csv_cells(name, evaluation.cell(name), evaluation.differences.get(name)) for name in names)
        missed = {"missed": "; ".join(map(str, evaluation.missed)) or "none"}
        rows.append(about | own | _merged(cells) | missed)
    order = [*dict.fromkeys(field for row in rows for field in row if not _of_name(field, names))]
    order[-1:-1] = [f for name in names for f in _fields(name) if any(f in row for row in rows)]
    out = StringIO()
    writer = csv.DictWriter(out, order, restval="n/a", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _csv_cells(name: str, cell: Measurement | str, change: Difference | None = None) -> dict[str, Any]:
    """Spell one figure and its interval, or its reason, and its change."""
    value, low, high, changed, changed_low, changed_high = _fields(name)
    fields: dict[str, Any] = {}
    if isinstance(cell, str):
        fields[value] = f"not run: {cell}"
    else:
        write = int if cell.unit == "bytes" else float
        fields[value] = write(cell.value) if isfinite(cell.value) else cell.note
        if cell.spread is not None:
            fields |= {low: write(cell.spread.low), high: write(cell.spread.high)}
    if change is not None:
        fields |= {changed: change.value, changed_low: change.interval.low, changed_high: change.interval.high}
    return fields


def _fields(name: str) -> list[str]:
    """Name the fields that one figure may have; the unit is part of the name where it has a base unit."""
    unit = {"size": "_bytes", "memory": "_bytes", "load_time": "_ms"}.get(name, "_ms" if "latency" in name else "")
    return [name + unit, *(f"{name}_{end}" for end in ("low", "high", "change", "change_low", "change_high"))]


def _of_name(field: str, names: Sequence[str]) -> bool:
    return any(field in _fields(name) for name in names)


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}
