"""Report: evaluations side by side, as a terminal table, Markdown, JSON, CSV or one HTML page."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

from polycast.evaluating.evaluation import Evaluation, Subject
from polycast.evaluating.on_device import with_device
from polycast.evaluating.refused import Refused
from polycast.evaluating.scoring import Difference
from polycast.rendering.agreement import agreement_sheet
from polycast.rendering.page import Group, page
from polycast.rendering.sheets import evidence_of, promise_text, sheet
from polycast.rendering.tables import Sheet, markdown, terminal
from polycast.rendering.waterfall import byte_sheet

from . import gate
from .build import Build, open_build
from .errors import InputError, RecipeError
from .measure import Measurement

SCHEMA = 1
FORMATS = ("table", "md", "json", "csv", "html")


@dataclass(frozen=True)
class Report:
    """Evaluations side by side; a build that nobody evaluated is an evaluation with n = 0.

    refused: builds that were asked for and are not there. commands: by build, what makes and evaluates it again.
    sensitivity: by build, what each layer loses at its precision, as ``Sensitivity.to_json`` spells it.
    agreement: the cells of agreement.json, where builds were compiled together. builds: the builds themselves, where
    they were read beside their evaluations.
    """

    evaluations: tuple[Evaluation, ...]
    refused: tuple[Refused, ...] = ()
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sensitivity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    agreement: tuple[Mapping[str, Any], ...] = ()
    builds: tuple[Build, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> Report:
        """Read JSON files (an evaluation, a list of them, or a report) and folders of builds and such files.

        What a device found of a build lies beside it, and is told with it.

        Raises: InputError where there is nothing to read, or a named file is no evaluation.
        """
        found, builds = cls(()), []
        for path in map(Path, paths):
            if path.is_dir():
                manifests = [path / "manifest.json", *sorted(path.glob("*/manifest.json"))]
                beside = [open_build(m.parent) for m in manifests if m.is_file()]
                own = cls(())
                for file in sorted(path.glob("*.json")):
                    own = own.joined(_in_file(file, named=False))
                own = replace(own, agreement=own.agreement + _together(path, [build.name for build in beside]))
                known = {e.build.name for e in own.evaluations}
                builds += [build for build in beside if build.path.resolve().name not in known]
                found = found.joined(own).joined(cls((), builds=tuple(beside)))
            else:
                found = found.joined(_in_file(path, named=True))
        known = {str(Path(e.build.path).resolve()) for e in found.evaluations}
        found = found.joined(cls(tuple(unevaluated(b) for b in builds if str(b.path.resolve()) not in known)))
        there = found._builds(found.evaluations)
        on_devices = (with_device(e, there[e.build.name]) if e.build.name in there else e for e in found.evaluations)
        found = replace(found, evaluations=tuple(on_devices))
        if not found.evaluations and not found.refused:
            raise InputError(
                f"no builds and no evaluations in {', '.join(map(str, paths))}",
                "Give a folder that polycast compile wrote to, or a file of polycast evaluate --json",
            )
        return found

    def joined(self, other: Report) -> Report:
        """Put the builds of both side by side."""
        return Report(
            self.evaluations + other.evaluations,
            self.refused + other.refused,
            _agreed(self.commands, other.commands),
            _agreed(self.sensitivity, other.sensitivity),
            self.agreement + other.agreement,
            self.builds + other.builds,
        )

    def render(self, form: str = "table", *, width: int | None = None, color: bool = False) -> str:
        """Write the report as ``table``, ``md``, ``json``, ``csv`` or ``html``.

        width: of the terminal, asked for where None.
        Raises: RecipeError for another format.
        """
        sheets = (sheet(group.evaluations, group.refused) for group in self._groups())
        if form == "table":
            columns = width or shutil.get_terminal_size((80, 24)).columns
            return "\n\n".join(terminal(each, columns, color) for each in sheets) + "\n"
        if form == "md":
            return "\n\n".join(markdown(each) for group in self._groups() for each in _sheets(group)) + "\n"
        if form == "json":
            return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if form == "csv":
            return _csv(self.evaluations, self.refused)
        if form == "html":
            return page(self._groups(), self.to_json())
        raise RecipeError.unknown("format", form, FORMATS)

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON; ``read`` takes it."""
        return {
            "schema": SCHEMA,
            "evaluations": [evaluation.to_json() for evaluation in self.evaluations],
            **({"refused": [each.to_json() for each in self.refused]} if self.refused else {}),
            **({"commands": {name: list(lines) for name, lines in self.commands.items()}} if self.commands else {}),
            **({"sensitivity": {name: dict(t) for name, t in self.sensitivity.items()}} if self.sensitivity else {}),
            **({"agreement": [dict(cell) for cell in self.agreement]} if self.agreement else {}),
        }

    def _groups(self) -> list[Group]:
        """Put together what was held against the same model on the same data, and builds of that model beside it."""
        groups: dict[tuple[str, str, int], list[Evaluation]] = {}
        for evaluation in sorted(self.evaluations, key=lambda e: e.n == 0):
            key = (evaluation.against, evaluation.data, evaluation.n)
            if not evaluation.n:
                key = next((k for k in groups if k[0] == evaluation.against), key)
            groups.setdefault(key, []).append(evaluation)
        waiting = list(self.refused)
        found = []
        for (against, *_), evaluations in groups.items():
            refused = tuple(each for each in waiting if each.against == against)
            waiting = [each for each in waiting if each.against != against]
            builds = self._builds(evaluations)
            manifests = {name: build.manifest for name, build in builds.items()}
            tables = dict(self.sensitivity) or _sensitivities(builds)
            near = tuple(cell for cell in self.agreement if cell["build"] in {e.build.name for e in evaluations})
            found.append(Group(tuple(evaluations), refused, manifests, self.commands, tables, near))
        return found

    def _builds(self, evaluations: Sequence[Evaluation]) -> dict[str, Build]:
        """Give by name the builds of ``evaluations`` that are still there: of the same name and the same original."""
        found: dict[str, Build] = {}
        for evaluation in evaluations:
            name = evaluation.build.name
            near = [build for build in self.builds if build.path.resolve().name == name]
            if (Path(evaluation.build.path) / "manifest.json").is_file():
                near.append(open_build(evaluation.build.path))
            found.update((name, build) for build in near if against_of(build) == evaluation.against)
        return found

    def with_sensitivity(self, costs: Mapping[str, Mapping[str, float]]) -> Report:
        """Give the report with what each layer loses, where its builds say so.

        costs: by build and layer, the seconds a run that it takes more in float.
        """
        tables = {}
        for name, table in _sensitivities(self._builds(self.evaluations)).items():
            more = costs.get(name, {})
            rows = [row | ({"seconds": more[row["name"]]} if row["name"] in more else {}) for row in table["layers"]]
            tables[name] = {**table, "layers": rows}
        return replace(self, sensitivity=tables)


def _together(folder: Path, builds: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
    """Give what agreement.json in ``folder`` says of ``builds``; nothing where there is none, or it is damaged."""
    try:
        cells = gate.read(folder).to_json()["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(cell for cell in cells if cell["build"] in builds)


def _sheets(group: Group) -> Iterator[Sheet]:
    """Yield what Markdown says of a group: the figures, where the bytes go, and how near the builds are."""
    yield sheet(group.evaluations, group.refused)
    if (sizes := byte_sheet(group.manifests)) is not None:
        yield sizes
    if group.agreement:
        yield agreement_sheet(group.agreement)


def _agreed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Put both into one; what two models call by the same name is told of neither."""
    both = {**ours, **theirs}
    return {name: value for name, value in both.items() if ours.get(name, value) == theirs.get(name, value)}


def _sensitivities(builds: Mapping[str, Build]) -> dict[str, Mapping[str, Any]]:
    """Read what each layer of each build loses; a build that nobody measured so has no such file."""
    found = {}
    for name, build in builds.items():
        path = build.path / "sensitivity.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def against_of(build: Build) -> str:
    """Name the original of a build as evaluations do: by its name and the beginning of its sha256."""
    origin = build.manifest["model"]
    return f"{origin['name']} ({origin['origin']['sha256'][:12]})"


def unevaluated(build: Build) -> Evaluation:
    """Give what a build says of itself: its size, and how near it came to the original when it was compiled."""
    said = build.agreement
    evidence, n = build.manifest["evidence"], int(said.get("n", 0))
    found = {"size": Measurement("size", float(build.bytes), "bytes", 1, "lower", "device")}
    for name, value, unit in (("agreement", said.get("same_top1"), "share"), ("sqnr", said.get("sqnr_db"), "dB")):
        if value is not None and n and evidence != "not run":
            found[name] = Measurement(name, float(value), unit, n, "higher", evidence)
    samples = f"{n} {said['samples']} sample{'s' * (n != 1)}" if n else ""
    notes = (f"agreement and sqnr are of compile time, on {samples}",) if n else ()
    return Evaluation(Subject.of(build), against_of(build), "", 0, {}, found, {}, {}, (), notes)


def _in_file(path: Path, *, named: bool) -> Report:
    """Read what one JSON file holds; one that the user did not name may hold something else, which is nothing."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        if not named:
            return Report(())
        raise InputError(f"{path} is no JSON: {error}", "Give a file of polycast evaluate --json") from error
    entries = data.get("evaluations", [data]) if isinstance(data, dict) else data
    ours = isinstance(entries, list) and all(isinstance(e, dict) and "measurements" in e for e in entries)
    beside: Mapping[str, Any] = data if isinstance(data, dict) and "evaluations" in data else {}
    if not ours or not (entries or beside.get("refused")):
        if not named:
            return Report(())
        raise InputError(f"{path} holds no evaluation", "Give a file of polycast evaluate --json")
    return Report(
        tuple(Evaluation.from_json(entry, str(path)) for entry in entries),
        tuple(Refused.from_json(entry, str(path)) for entry in beside.get("refused", ())),
        {name: tuple(lines) for name, lines in beside.get("commands", {}).items()},
        beside.get("sensitivity", {}),
        tuple(beside.get("agreement", ())),
    )


def _csv(evaluations: Sequence[Evaluation], refused: Sequence[Refused] = ()) -> str:
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
    for each in refused:
        about = {"against": each.against, "build": each.name, "target": each.target, "precision": each.precision}
        reasons = {_fields(name)[0]: f"not run: {each.reason}" for name in names}
        rows.append(about | {"evidence": "refused", "promise": each.reason} | reasons)
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
