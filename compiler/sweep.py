"""Sweep: every target at every precision, built, evaluated and kept, and one report of them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycast import targets as target_catalogue
from polycast.evaluating.budget import Budget
from polycast.evaluating.evaluation import Evaluation
from polycast.evaluating.refused import Refused

from .build import open_build
from .commands import Spelling
from .compile import AUTO, compile
from .errors import BudgetError, PolycastError, PromiseError, RecipeError, UnsupportedError
from .evaluate import evaluate
from .kept import Record, Shelf, write_whole
from .layer_costs import layer_costs
from .load import load
from .making import Making, choosing, folder_of, machine
from .metrics import find
from .model import Dims, Model
from .recipe import Recipe, instead
from .report import Report
from .samples import Samples, open_samples
from .targetbase import Target

if TYPE_CHECKING:
    from polycast.evaluating.worker import Feeds

    from .build import Build
    from .load import Source
    from .pipeline import Progress

#: What auto is told of what its build is held to.
_OF_AUTO = ("max_drop", "max_size", "max_latency", "metrics")

#: The files of a report, by their format.
FILES = {"html": "report.html", "md": "report.md", "json": "report.json", "csv": "report.csv"}


def sweep(
    source: Source,
    targets: Sequence[str] | str = ("cpu",),
    precision: Sequence[str] | str = "fp32",
    *,
    data: str | Path | Samples,
    out: str | Path,
    calibration: str | Path | Samples | None = None,
    metrics: Sequence[str] = (),
    max_drop: str | float | None = None,
    max_size: str | int | None = None,
    max_latency: str | float | None = None,
    shapes: Mapping[str, Dims] | None = None,
    example_inputs: Any = None,
    max_memory: str | int | None = None,
    max_cpu_share: float | None = None,
    seconds: float = 2.0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Build and evaluate every target at every precision, and write the report of them all into ``out``.

    Each build and its evaluation are kept as soon as they are done, under what they were made from: a second sweep
    does nothing, an interrupted one goes on where it was. A build that is refused is a row with the reason.

    source, targets, precision, calibration, data, shapes, example_inputs: as for ``compile``; max_memory and
    max_cpu_share too.
    metrics, max_drop, max_size, max_latency, seconds: as for ``evaluate``.
    say: called with a line for each build that is done, and how long the rest will take.

    Returns: the report; what misses a budget is in it and raises nothing.
    Raises: PolycastError when the model, the data or a name cannot be read, or nothing at all could be built.
    """
    asked = _asked(targets, precision)
    budget = Budget.parse(max_drop, max_size, max_latency)
    for metric in metrics:
        find(metric)
    if progress:
        progress("load", 0, len(asked))
    model = load(source, example_inputs=example_inputs, shapes=shapes)
    beside = folder_of(model)
    for samples in (calibration, data):
        if isinstance(samples, str | Path):
            open_samples(samples, model.signature, beside=beside)  # what cannot be read is said before any work
    limits = {"max_drop": max_drop, "max_size": max_size, "max_latency": max_latency}
    options = {"max_memory": max_memory, "max_cpu_share": max_cpu_share}
    run = _Run(
        model,
        beside,
        Making.of(model, Path(out), calibration=calibration, data=data, **options),
        {"calibration": calibration, "data": data, **options},
        {"metrics": list(metrics), **limits, "seconds": seconds},
        budget,
        progress,
        say or (lambda line: None),
    )
    found = run.all(asked)
    evaluations = tuple(each for each in found if isinstance(each, Evaluation))
    refused = tuple(each for each in found if isinstance(each, Refused))
    if not evaluations:
        first = refused[0]
        raise PolycastError(f"nothing was built: {first.name}: {first.reason}", first.hint)
    spelt = Spelling(source, data, calibration, dict(shapes or {}), options, tuple(metrics), limits, Path(out))
    commands = {each.name: spelt.both(each.name, str(each.target), each.precision) for each in asked}
    report = Report(evaluations, refused, commands if spelt.is_whole else {})
    report = report.with_sensitivity(run.layer_costs(asked, evaluations))
    for form, name in FILES.items():
        write_whole(Path(out) / name, report.render(form))
    return report


@dataclass(frozen=True)
class _Asked:
    """One build that was asked for."""

    target: Target
    precision: str

    @property
    def name(self) -> str:
        return f"{self.target.label}-{self.precision}"

    @property
    def recipes(self) -> list[Recipe]:
        """What it may be made by: one recipe, all of the target's for AUTO, none where the target does not have it."""
        if self.precision != AUTO:
            return [Recipe.of(self.target, self.precision)] if _has(self.target, self.precision) else []
        return [Recipe.of(target, name) for target in (self.target, *self.rivals) for name in target.precisions]

    @property
    def rivals(self) -> tuple[Target, ...]:
        """The same hardware through other runtimes, which compete where measuring chooses."""
        return () if self.target.runtime else target_catalogue.others(self.target)


def _asked(targets: Sequence[str] | str, precision: Sequence[str] | str) -> list[_Asked]:
    """Pair targets with precisions.

    Raises: RecipeError for a target that nobody knows, or a precision that none of the targets has.
    """
    chosen = [target_catalogue.find(name) for name in _names(targets)]
    wanted = _names(precision)
    for name in wanted:
        if not any(name == AUTO or name in target.declined or _has(target, name) for target in chosen):
            known = sorted({AUTO, *(p for target in chosen for p in target.precisions)})
            raise RecipeError.unknown(f"precision for {', '.join(map(str, chosen))}", name, known)
    return [_Asked(target, name) for target in chosen for name in wanted]


def _has(target: Target, precision: str) -> bool:
    return precision not in target.declined and target.recipe(precision) is not None


def _names(names: Sequence[str] | str) -> list[str]:
    listed = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if not listed or not all(listed):
        raise RecipeError(f"an empty name in {names!r}")
    return list(dict.fromkeys(listed))


@dataclass(frozen=True)
class _Run:
    """One run of a sweep: what all builds share.

    beside: the folder of the model. building, measuring: arguments of ``compile`` and ``evaluate``.
    """

    model: Model
    beside: Path
    making: Making
    building: Mapping[str, Any]
    measuring: Mapping[str, Any]
    budget: Budget
    progress: Progress | None
    say: Callable[[str], None]

    @property
    def shelf(self) -> Shelf:
        """Where builds and records lie."""
        return self.making.shelf

    def all(self, asked: Sequence[_Asked]) -> list[Evaluation | Refused]:
        """Go through what was asked; what is kept is taken as it is."""
        kept = {each.name: self.kept(each) for each in asked}
        waiting = [each.name for each in asked if kept[each.name] is None]
        if not waiting:
            self.say(f"nothing to do: all {len(asked)} builds are in {self.shelf.folder} as asked")
        elif len(waiting) < len(asked):
            self.say(f"{len(asked) - len(waiting)} of {len(asked)} builds are kept from an earlier run")
        for reason, names in self._outdated([each for each in asked if each.name in waiting]).items():
            self.say(f"made again, since {reason} changed: {', '.join(names)}")
        took = self._took(asked)
        found: list[Evaluation | Refused] = []
        for number, each in enumerate(asked, 1):
            outcome = kept[each.name]
            if outcome is None:
                started = time.perf_counter()
                outcome = self.make(each, f"[{number}/{len(asked)}] {each.name}")
                own = time.perf_counter() - started
                waiting.remove(each.name)
                if isinstance(outcome, Evaluation):
                    took[each.name] = own
                did = f"refused: {outcome.reason}" if isinstance(outcome, Refused) else _verdict(outcome)
                rest = _remaining(waiting, took)
                self.say(f"[{number}/{len(asked)}] {each.name}: {did} ({_clock(own)}{rest})")
            found.append(outcome)
        return found

    def _outdated(self, asked: Sequence[_Asked]) -> dict[str, list[str]]:
        """Say which builds were made from something else, by what that was."""
        reasons: dict[str, list[str]] = {}
        for each in asked:
            record = self.shelf.record(each.name)
            if record is not None and (changed := record.changed(self.made_from(each))):
                reasons.setdefault(" and ".join(changed), []).append(each.name)
        return reasons

    def _took(self, asked: Sequence[_Asked]) -> dict[str, float]:
        """Give the seconds that each build took when it was last made."""
        records = {each.name: self.shelf.record(each.name) for each in asked}
        return {name: record.seconds for name, record in records.items() if record and record.evaluation}

    def kept(self, each: _Asked) -> Evaluation | Refused | None:
        """Give what an earlier run kept of ``each``, if it would come out the same again."""
        record = self.shelf.record(each.name)
        if record is None or not record.fits(self.made_from(each)):
            return None
        if record.refused is not None:
            return record.refused
        build = self.shelf.build(each.name, record)
        if build is None or not record.holds(self.measured_with(each)):
            return None
        return self.shelf.evaluation(build, record)

    def make(self, each: _Asked, label: str) -> Evaluation | Refused:
        """Build and evaluate ``each``, and keep both as soon as they are done."""
        started = time.perf_counter()

        def told(stage: str, done: int, total: int) -> None:
            if self.progress:
                self.progress(f"{label}: {stage}", done, total)

        made_from = self.made_from(each)
        record = self.shelf.record(each.name)
        build = self.shelf.build(each.name, record) if record and record.fits(made_from) else None
        try:
            if build is None:
                build = self.build(each, told)
                self.shelf.keep(each.name, Record(made_from))
        except (BudgetError, PromiseError, UnsupportedError) as error:
            refused = self.refused(each, error)
            self.shelf.keep(each.name, Record(made_from, refused=refused))
            return refused
        except PolycastError as error:
            return self.refused(each, error)  # what a tool or a disk refuses today, it may do tomorrow
        try:
            evaluation = evaluate(
                build, against=self.model, data=self.building["data"], progress=told, **self.measuring
            )
        except RecipeError:
            raise  # a metric or a budget that does not fit, fits no build
        except PolycastError as error:
            return self.refused(each, error)
        seconds = time.perf_counter() - started
        self.shelf.keep(each.name, Record(made_from, self.measured_with(each), "", seconds, evaluation))
        return evaluation

    def build(self, each: _Asked, told: Progress) -> Build:
        """Compile ``each``. Raises: PolycastError."""
        if not each.recipes:
            reason = each.target.declined.get(each.precision, f"it has {', '.join(each.target.precisions)}")
            raise UnsupportedError(
                f"{each.target} has no {each.precision}: {reason}", instead(each.target, each.precision)
            )
        more = {name: self.measuring[name] for name in _OF_AUTO} if each.precision == AUTO else {}
        [build] = compile(
            self.model,
            [str(each.target)],
            each.precision,
            out=self.shelf.folder,
            progress=told,
            **self.building,
            **more,
        )
        return build

    def layer_costs(self, asked: Sequence[_Asked], found: Sequence[Evaluation]) -> dict[str, Mapping[str, float]]:
        """Give by build the seconds that each of its layers takes more in float, where the float build is there too."""
        timed = {evaluation.build.name for evaluation in found if "latency" in evaluation.measurements}
        costs: dict[str, Mapping[str, float]] = {}
        for each in asked:
            floats = _Asked(each.target, each.target.precisions[0]).name
            record = self.shelf.record(each.name)
            if record is None or not {each.name, floats} <= timed:
                continue
            if record.layers is None:
                if self.progress:
                    self.progress(f"{each.name}: time its layers", 0, 1)
                build, plain = (open_build(self.shelf.folder / name) for name in (each.name, floats))
                record = replace(record, layers=layer_costs(build, plain, self.first_sample))
                self.shelf.keep(each.name, record)
            costs[each.name] = record.layers or {}
        return costs

    @cached_property
    def first_sample(self) -> Feeds:
        """What one run takes."""
        data = self.building["data"]
        samples = open_samples(data, self.model.signature, beside=self.beside) if isinstance(data, str | Path) else data
        return dict(next(iter(samples)).feeds)

    def refused(self, each: _Asked, error: PolycastError) -> Refused:
        """Give the row of a build that ``error`` stopped."""
        against = f"{self.model.name} ({self.model.origin.sha256[:12]})"
        return Refused.because(error, each.name, str(each.target), each.precision, against)

    def made_from(self, each: _Asked) -> dict[str, Any]:
        """Give all that the build of ``each`` depends on."""
        if each.precision != AUTO:
            return self.making.facts(each.target, each.recipes)
        metrics = [find(name) for name in self.measuring["metrics"]]
        return self.making.facts(each.target, each.recipes, choosing(each.target, each.rivals, self.budget, metrics))

    def measured_with(self, each: _Asked) -> dict[str, Any]:
        """Give all that the evaluation of ``each`` depends on beside the build."""
        return {**self.measuring, "budget": repr(self.budget), "machine": machine(each.target)}


def _verdict(evaluation: Evaluation) -> str:
    if evaluation.missed:
        return "misses " + "; ".join(map(str, evaluation.missed))
    return "done, within budget" if evaluation.budgets else "done"


def _remaining(waiting: Sequence[str], took: Mapping[str, float]) -> str:
    """Say how long the rest will take: each as long as it last took, or as long as the others on average."""
    if not waiting or not took:
        return ""
    average = sum(took.values()) / len(took)
    return f"; about {_clock(sum(took.get(name, average) for name in waiting))} left for {len(waiting)} more"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
