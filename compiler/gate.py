"""Gate: the builds of one compile beside the original and beside each other, on the same inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from .build import Build
from .errors import PromiseError
from .golden import Golden
from .kept import write_whole
from .outputs import position_scores
from .passbase import Numerics
from .pipeline import Pipeline
from .targetbase import Evidence, Session
from .verify import difference

#: What the outputs of one build may take in memory while the others are made.
_KEPT_BYTES = 64 << 20

#: From the strongest to the weakest: a cell has the evidence of the weaker of its two sides.
_STRENGTH: tuple[Evidence, ...] = ("device", "emulated", "predicted", "not run")

ORIGINAL = "original"
FILES = ("agreement.json", "agreement.md")

Outputs = Sequence[np.ndarray]


@dataclass
class Runs:
    """What every build of a compile gave for the golden inputs, by name of the build; of large outputs, the first."""

    outputs: dict[str, list[Outputs]] = field(default_factory=dict)

    def record(self, name: str, session: Session) -> Session:
        """Give ``session``, what it gives from now on being kept under ``name``."""
        self.outputs[name] = []
        return _Recorded(session.evidence, session, self.outputs[name])


@dataclass
class _Recorded:
    evidence: Evidence
    session: Session
    kept: list[Outputs]
    room: int = _KEPT_BYTES

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        outputs = self.session.run(feeds)
        self.room -= sum(array.nbytes for array in outputs)
        if self.room > 0:
            self.kept.append([np.array(array) for array in outputs])
        return outputs


@dataclass(frozen=True)
class Cell:
    """One build beside ``against``: the original, or another build.

    worst: largest deviation of any output, relative to its largest value; for integer outputs the share that differs.
    noise: root mean square of the error over that of the outputs, of the worst float output. cosine: of the worst
    float output. same_top1: share of rows of class scores with the same highest one.
    tolerance: what ``worst`` is held to; None where passes are lossy: then ``noise`` stays below 1, since at 1 the
    outputs are no nearer than zeros are. reason: why there is none of this.
    """

    build: str
    against: str
    evidence: Evidence = "not run"
    n: int = 0
    worst: float = 0.0
    noise: float | None = None
    cosine: float | None = None
    same_top1: float | None = None
    tolerance: float | None = None
    reason: str = ""

    @property
    def within(self) -> bool:
        """Whether it keeps its tolerance, or could not be run. False on NaN."""
        if not self.n:
            return True
        return self.worst <= self.tolerance if self.tolerance is not None else self.noise is None or self.noise < 1

    def to_json(self) -> dict[str, Any]:
        """Spell for agreement.json, rounded to six digits."""
        if not self.n:
            return {"build": self.build, "against": self.against, "evidence": "not run", "not_run": self.reason}
        figures = {
            name: float(f"{value:.6g}") if isinstance(value, float) and np.isfinite(value) else _plain(value)
            for name, value in asdict(self).items()
            if name != "reason"
        }
        return figures | {"within_tolerance": self.within}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) else value


@dataclass(frozen=True)
class Table:
    """Every build beside the original, then every build beside every other.

    builds: by name, the sha256 of the manifest of each, where they lie in a folder.
    """

    cells: tuple[Cell, ...]
    builds: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Spell for agreement.json."""
        return {"cells": [cell.to_json() for cell in self.cells], "builds": dict(self.builds)}

    def markdown(self) -> str:
        """Write the table in Markdown."""
        rows = [_HEAD, tuple("---" for _ in _HEAD), *(_row(cell) for cell in self.cells)]
        return "# Agreement\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

    def text(self) -> str:
        """Write the table with aligned columns."""
        rows = [_HEAD, *(_row(cell) for cell in self.cells)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD) - 1)]
        lines = (
            "  ".join((*(each.ljust(width) for each, width in zip(row, widths, strict=False)), row[-1])) for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def hold(self) -> None:
        """Hold every cell to its tolerance. Raises: PromiseError naming all that leave it."""
        outside = [
            f"{cell.build} against {cell.against}: off by {cell.worst:.3g} of the largest value, {_limit(cell)}"
            for cell in self.cells
            if not cell.within
        ]
        if outside:
            raise PromiseError(
                "builds do not agree: " + "; ".join(outside),
                f"Each is whole and stays; all figures are in {FILES[1]}. --keep DIR has the model after each pass",
            )


_HEAD = ("build", "against", "worst", "cosine", "same top-1", "n", "evidence", "holds")


def _row(cell: Cell) -> tuple[str, ...]:
    if not cell.n:
        return (cell.build, cell.against, "–", "–", "–", "0", "not run", cell.reason)
    cosine = "–" if cell.cosine is None else f"{cell.cosine:.6f}"
    top = "–" if cell.same_top1 is None else f"{cell.same_top1:.1%}"
    word = "yes" if cell.within else "NO"
    return (
        cell.build,
        cell.against,
        f"{cell.worst:.2g}",
        cosine,
        top,
        str(cell.n),
        cell.evidence,
        f"{word}, {_limit(cell)}",
    )


def _limit(cell: Cell) -> str:
    if cell.tolerance is not None:
        return f"tolerance {cell.tolerance:.2g}"
    return "noise" + ("" if cell.noise is None else f" {cell.noise:.2g}") + " of the signal, tolerance 1"


def compare(builds: Sequence[Build], golden: Golden, runs: Runs) -> Table:
    """Compare what ``builds`` gave for the golden inputs with the original, and with each other."""
    beside = [_against_original(build, builds, golden, runs) for build in builds]
    return Table((*beside, *(_against_each_other(one, other, runs) for one, other in combinations(builds, 2))))


def hold(builds: Sequence[Build], golden: Golden, runs: Runs, out: Path) -> None:
    """Compare ``builds``, write agreement.json and agreement.md into ``out``, and hold each to its tolerance.

    Raises: PromiseError naming every pair that leaves its tolerance; the builds stay.
    """
    for build in builds:
        if build.agreement["n"] and build.name not in runs.outputs:
            _run_again(build, golden, runs)
    table = replace(compare(builds, golden, runs), builds=_manifests(builds))
    for name, text in _files(table).items():
        write_whole(out / name, text)
    table.hold()


def _files(table: Table) -> dict[str, str]:
    text = json.dumps(table.to_json(), indent=2, ensure_ascii=False) + "\n"
    return dict(zip(FILES, (text, table.markdown()), strict=True))


def _run_again(build: Build, golden: Golden, runs: Runs) -> None:
    """Run a build that was kept from an earlier compile."""
    session = runs.record(build.name, build.open())
    for feeds in golden.feeds:
        session.run(feeds)


def read(out: Path) -> Table:
    """Read the table that ``hold`` wrote into ``out``."""
    table = json.loads((out / FILES[0]).read_text(encoding="utf-8"))
    return Table(tuple(_cell(cell) for cell in table["cells"]), table.get("builds", {}))


def up_to_date(kept: Sequence[Build | None], out: Path) -> list[Build]:
    """Give the builds where all of them are there and, of several, ``out`` has the table of these very ones.

    Raises: PromiseError as ``hold`` does, where that table says so.
    """
    builds = [build for build in kept if build is not None]
    if len(builds) < len(kept):
        return []
    if len(builds) > 1:
        try:
            table, written = read(out), {name: (out / name).read_text(encoding="utf-8") for name in FILES}
        except (OSError, ValueError, KeyError, TypeError):
            return []
        if table.builds != _manifests(builds) or _files(table) != written:
            return []
        table.hold()
    return builds


def _manifests(builds: Sequence[Build]) -> dict[str, str]:
    return {build.name: build.stamp for build in builds}


def _cell(table: Mapping[str, Any]) -> Cell:
    known = {name: value for name, value in table.items() if name not in ("within_tolerance", "not_run")}
    worst = known.get("worst", 0.0)
    return Cell(**known | {"worst": float("inf") if worst is None else worst, "reason": table.get("not_run", "")})


def _against_original(build: Build, builds: Sequence[Build], golden: Golden, runs: Runs) -> Cell:
    found = runs.outputs.get(build.name)
    if not found or not build.agreement["n"]:
        return Cell(build.name, ORIGINAL, reason=str(build.agreement.get("not_run", "its outputs are too large")))
    others = (other for other in builds if other is not build and other.name in runs.outputs)
    return _measured(build.name, ORIGINAL, golden.outputs, found, _evidence(build), _tolerance(build, others))


def _against_each_other(one: Build, other: Build, runs: Runs) -> Cell:
    for build in (one, other):
        if not runs.outputs.get(build.name) or not build.agreement["n"]:
            reason = str(build.agreement.get("not_run", "its outputs are too large"))
            return Cell(one.name, other.name, reason=f"{build.name}: {reason}")
    both = None if _is_lossy(one) or _is_lossy(other) else _tolerance(one) + _tolerance(other)  # type: ignore[operator]
    evidence = max(_evidence(one), _evidence(other), key=_STRENGTH.index)
    return _measured(one.name, other.name, runs.outputs[other.name], runs.outputs[one.name], evidence, both)


def _tolerance(build: Build, others: Iterable[Build] = ()) -> float | None:
    """Give what ``worst`` of ``build`` beside the original is held to.

    Where passes are lossy, that is what another build of the very same graph says that its outputs may be off by.
    """
    if not _is_lossy(build):
        return float(build.agreement["tolerance"])
    digest = build.manifest["model"]["digest"]
    golden = (other.manifest["golden"] for other in others if other.manifest["model"]["digest"] == digest)
    return min((float(each["tolerance"]) for each in golden if each["n"]), default=None)


def _is_lossy(build: Build) -> bool:
    return Pipeline.parse(str(build.manifest["recipe"]["pipeline"])).numerics is Numerics.LOSSY


def _evidence(build: Build) -> Evidence:
    return build.manifest["evidence"]  # type: ignore[no-any-return]


def _measured(
    name: str,
    against: str,
    wanted: Sequence[Outputs],
    found: Sequence[Outputs],
    evidence: Evidence,
    limit: float | None,
) -> Cell:
    """Compare output by output, over all samples that both sides ran."""
    samples = list(zip(wanted, found, strict=False))
    worst = max((difference(w, np.asarray(f)) for ws, fs in samples for w, f in zip(ws, fs, strict=True)), default=0.0)
    columns = list(zip(*(zip(ws, fs, strict=True) for ws, fs in samples), strict=True))
    angles = [_angle(column) for column in columns if column[0][0].dtype.kind == "f" and np.isfinite(worst)]
    return Cell(
        name,
        against,
        evidence,
        len(samples),
        worst,
        max((noise for noise, _ in angles), default=None),
        min((cosine for _, cosine in angles), default=None),
        _same_top1(samples) if np.isfinite(worst) else None,
        limit if np.isfinite(worst) else 0.0,
    )


def _angle(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Give noise and cosine of one output over all samples, in float64; what is not finite in both is left out."""
    want = np.concatenate([np.ravel(w).astype(np.float64) for w, _ in pairs])
    found = np.concatenate([np.ravel(f).astype(np.float64) for _, f in pairs])
    finite = np.isfinite(want)
    want, found = want[finite], found[finite]
    signal, other = float(np.linalg.norm(want)), float(np.linalg.norm(found))
    if not signal or not other:
        return (0.0, 1.0) if signal == other else (float("inf"), 0.0)
    return float(np.linalg.norm(found - want)) / signal, float(want @ found) / (signal * other)


def _same_top1(samples: Sequence[tuple[Outputs, Outputs]]) -> float | None:
    hits: list[np.ndarray] = []
    for wanted, found in samples:
        scores = position_scores(wanted)
        if scores is None:
            return None
        ours = np.asarray(found[scores.index]).reshape(scores.values.shape)
        hits.append((ours.argmax(-1) == scores.values.argmax(-1)).ravel())
    return float(np.concatenate(hits).mean())
