"""compile(): the page that is the compiler.

source → load → Model → pipeline → Model → target.write → Build, held to its promise and to the original on the way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycast import targets as target_catalogue
from polycast.calibrating.folder import cache_folder
from polycast.calibrating.lint import lint
from polycast.evaluating.budget import Budget, parse_size

from . import gate
from . import verify as verifier
from .auto import Auto, Choice
from .build import Build, open_build, spell_steps, whole_or_nothing, write_manifest
from .errors import InputError, PassError, PromiseError, RecipeError, ToolchainError, UnsupportedError
from .fallback import Fallback
from .golden import Agreement, Golden, agree, make_golden, own_rounding, rounding_tolerance
from .guard import Guarded, guard
from .load import load
from .metrics import Metric, find
from .model import Model
from .passbase import Numerics, PassContext
from .pipeline import Pipeline, Progress
from .readme import readme
from .recipe import Recipe
from .reference import open_model
from .samples import Samples, open_samples
from .shares import Shares, count
from .targetbase import Target

if TYPE_CHECKING:
    from .load import Source


def compile(
    source: Source,
    targets: Sequence[str] | str = ("cpu",),
    precision: Sequence[str] | str = "fp32",
    *,
    out: str | Path,
    recipe: str | Path | None = None,
    passes: str | None = None,
    calibration: str | Path | Samples | None = None,
    data: str | Path | Samples | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    runtime: str = "",
    tune: float = 0.0,
    example_inputs: Any = None,
    keep: str | Path | None = None,
    max_memory: str | int | None = None,
    max_cpu_share: float | None = None,
    cache: str | Path | None = None,
    max_drop: str | float | None = None,
    max_size: str | int | None = None,
    max_latency: str | float | None = None,
    metrics: Sequence[str | Metric] = (),
    progress: Progress | None = None,
) -> list[Build]:
    """Compile one model for every target at every precision, each into ``out/<target>-<precision>``.

    source: what ``load`` takes. targets, precision: names, or one text with commas.
    recipe, passes: a TOML file, or a pipeline's text form, in place of precision.
    calibration: what passes may look at, unlabelled. data: what the build is scored on; no pass ever sees it.
    shapes: fixed shape by input name. runtime: what executes the builds, where a target has several.
    tune: minutes of trying schedules on this machine, for each build; what is found is kept for later ones.
    keep: a folder for the model after each pass.
    max_memory: bytes, or "2GiB", that looking at the calibration samples may hold.
    max_cpu_share: percent of the MACs that a build for another device may leave to the CPU.
    cache: the folder where what was seen of the samples is kept, so that it is looked at once; None: the user's own.
    max_drop, max_size, max_latency, metrics: the budget of precision ``auto``, and what its drop is told by; as for
    ``evaluate``.

    Returns: the builds, in the order of targets and then of precisions. Of several, ``out/agreement.json`` says how
    near each comes to the original and to each other.
    Raises: PolycastError; what was written before it stays, and nothing half-written does.
    """
    budget = Budget.parse(max_drop, max_size, max_latency)
    wanted = tuple(find(metric) if isinstance(metric, str) else metric for metric in metrics)
    chosen = [target_catalogue.find(name, runtime).tuned(tune, progress) for name in _names(targets)]
    recipes = [_recipes(target, _names(precision), recipe, passes) for target in chosen]
    if budget != Budget() and all(each is not None for list_of in recipes for each in list_of):
        raise RecipeError("a budget is given, and nothing to choose by it", "-p auto chooses; polycast evaluate checks")
    _tell(progress, "load", 0)
    model = load(source, example_inputs=example_inputs, shapes=shapes)
    came_from = Path(model.origin.uri.removeprefix("hf:").partition("?")[0])
    beside = came_from if came_from.is_dir() else came_from.parent
    calibrate = _samples(calibration, model, beside, progress)
    score = _samples(data, model, beside, progress)
    _tell(progress, "run the original", 0)
    golden = make_golden(model, calibrate or score, "calibration" if calibrate else "data")
    line = Line(
        model,
        golden,
        count(model, golden.shapes),
        calibrate,
        tuple(lint(calibrate, score)) if calibrate else (),
        Path(keep) if keep else None,
        None if max_memory is None else parse_size(max_memory),
        Path(cache) if cache else cache_folder(),
        max_cpu_share,
        progress,
    )
    builds = [
        line.auto(
            target, () if runtime or "@" in name else target_catalogue.others(target), Path(out), budget, score, wanted
        )
        if each is None
        else line.cast(target, line.guarded(target, each), Path(out))
        for name, target, list_of in zip(_names(targets), chosen, recipes, strict=True)
        for each in list_of
    ]
    if len(builds) > 1:
        gate.hold(builds, golden, line.runs, Path(out))
    return builds


@dataclass(frozen=True)
class Line:
    """What the builds of one compile share.

    lint: what is odd about the calibration samples. runs: what the builds gave for the golden inputs.
    """

    model: Model
    golden: Golden
    before: Shares
    calibration: Samples | None = None
    lint: tuple[str, ...] = ()
    keep: Path | None = None
    max_memory: int | None = None
    cache: Path | None = None
    max_cpu_share: float | None = None
    progress: Progress | None = None
    runs: gate.Runs = field(default_factory=gate.Runs)

    def context(self, target: Target) -> PassContext:
        """Give what passes for ``target`` may look at."""
        return PassContext(
            target.features, self.calibration, max_memory=self.max_memory, cache=self.cache, progress=self.progress
        )

    def guarded(self, target: Target, recipe: Recipe) -> Guarded:
        """Give ``recipe`` with what it had better leave in float; one that the user wrote stays as it is written."""
        if recipe.name not in target.precisions:
            return Guarded(recipe)
        return guard(self.model, recipe, Recipe.of(target, target.precisions[0]), self.context(target))

    def cast(self, target: Target, guarded: Guarded, out: Path, chosen: Choice | None = None, label: str = "") -> Build:
        """Make one build, named ``label`` or the target: the passes, the promise, the target, the agreement."""
        started = time.perf_counter()
        recipe = guarded.recipe
        probe = target.probe()
        if not probe.build.yes:
            raise ToolchainError(f"{target} cannot be built here: {probe.build.reason}", probe.build.mend)
        name = f"{label or target.label}-{recipe.name}"
        ctx = self.context(target)
        keep = self.keep / name if self.keep else None
        lowered = recipe.pipeline.run(self.model, ctx, keep=keep, progress=self.progress)
        after = count(lowered, self.golden.shapes)
        asked = count(lowered, self.golden.shapes, guarded.left_out) if guarded.left_out else after
        recipe.promise.check(self.before, asked, _reasons(lowered))
        if problems := target.problems(lowered):
            raise UnsupportedError(f"{target} lacks what this model needs: {', '.join(problems)}")
        fallback = Fallback.of_model(target, lowered, self.golden.shapes)
        if fallback is not None and self.max_cpu_share is not None:
            fallback.hold(self.max_cpu_share, target)
        with whole_or_nothing(out / name) as folder:
            _tell(self.progress, f"write {name}", 0)
            runtime = dict(target.write(lowered, folder))
            written = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            deployed = set(written) - {"run.py"}
            names = [port.name for port in self.model.signature.outputs]
            kept = self.golden.write(folder / "golden.npz", names)
            if guarded.sensitivity:
                table = json.dumps(guarded.sensitivity.to_json(), indent=1)
                (folder / "sensitivity.json").write_text(table, encoding="utf-8")
            (folder / "verify.py").write_bytes(Path(verifier.__file__).read_bytes())
            manifest: dict[str, Any] = {
                "model": {"name": self.model.name, "origin": _origin(self.model), "digest": lowered.digest},
                "target": str(target),
                "features": sorted(target.features),
                "evidence": probe.evidence if probe.run.yes else "not run",
                "recipe": {"name": recipe.name, "pipeline": str(recipe.pipeline)},
                "promise": {
                    "asked": recipe.promise.asked(),
                    "reached": after.to_json(),
                    **({"kept": list(guarded.left_out)} if guarded.left_out else {}),
                },
                "signature": self.model.signature.to_json(),
                "steps": spell_steps(lowered.history),
                "runtime": runtime,
                **({"fallback": fallback.to_json()} if fallback else {}),
                **({"auto": chosen.to_json()} if chosen else {}),
                **({"guard": guarded.to_json()} if guarded.kept else {}),
                **({"calibration": self._calibration()} if self.calibration else {}),
                "golden": {"n": 0, "samples": self.golden.source, "tolerance": 0.0},
                "agreement": {"n": 0, "not_run": self.golden.reason or probe.run.reason},
            }
            write_manifest(folder, manifest, deployed)
            if probe.run.yes:
                if (kernels := target.kernels(folder)) is not None:
                    runtime["kernels"] = dict(kernels)
                _tell(self.progress, f"compare {name} with the original", 0)
                session = self.runs.record(name, target.open(folder))
                found = agree(self.golden, session, names, rounding_tolerance(self.model))
                agreement = _hold(self.model, lowered, recipe.pipeline, self.golden, found, ctx)
                manifest["agreement"] = agreement.to_json()
            else:
                _tell(self.progress, f"compare the graph of {name} with the original", 0)
                found = _agreement_of_graph(lowered, self.golden, names, rounding_tolerance(self.model))
                agreement = _hold(self.model, lowered, recipe.pipeline, self.golden, found, ctx)
                manifest["agreement"]["graph"] = agreement.to_json()
            kept = kept if agreement.n else 0
            manifest["golden"] |= {"n": kept, "tolerance": _golden_tolerance(agreement)}
            (folder / "README.md").write_text(readme(name, manifest), encoding="utf-8")
            write_manifest(folder, manifest, deployed)
            if kept and probe.run.yes:
                _tell(self.progress, f"let {name} verify itself", 0)
                _let_verify_itself(folder)
        _tell(self.progress, f"wrote {name}", 1)
        return Build(out / name, open_build(out / name).manifest, time.perf_counter() - started)

    def _calibration(self) -> dict[str, Any]:
        assert self.calibration is not None
        return {"samples": len(self.calibration), "kind": self.calibration.kind, "lint": list(self.lint)}

    def auto(
        self,
        target: Target,
        rivals: Sequence[Target],
        out: Path,
        budget: Budget,
        score: Samples | None,
        metrics: Sequence[Metric],
    ) -> Build:
        """Make a build at every precision of ``target``, and a mix, and keep the one that measuring chooses.

        rivals: the same hardware through other runtimes, whose builds stand beside.
        Raises: RecipeError where nothing can be measured here; BudgetError where no build keeps the budget.
        """
        probe = target.probe()
        if not probe.run.yes or probe.evidence != "device" or not self.golden.feeds:
            reason = self.golden.reason or probe.run.reason
            raise RecipeError(f"-p auto chooses by measuring, and {target} cannot be measured here: {reason}")
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:

            def automatic(one: Target) -> Auto:
                cast, samples = partial(self.cast, one, out=Path(folder)), score or self.calibration
                return Auto(one, self.model, self.golden, self.context(one), cast, samples, budget, metrics)

            chosen = replace(automatic(target), rivals=[automatic(one) for one in rivals]).choose()
        named = replace(chosen.guarded, recipe=replace(chosen.guarded.recipe, name=AUTO))
        return self.cast(chosen.target or target, named, out, chosen, target.label)


def _agreement_of_graph(lowered: Model, golden: Golden, names: list[str], tolerance: float) -> Agreement:
    """Run what the target was given on the CPU: what a device that is not here will be held to."""
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        try:
            return agree(golden, open_model(lowered, Path(folder)), names, tolerance)
        except InputError as error:
            return Agreement(0, golden.source, 0.0, None, None, tolerance, reason=error.message)


def _let_verify_itself(folder: Path) -> None:
    """Run the build's own runner on its golden samples, in a process of its own, as on the user's device.

    What agreement is measured on runs in this process, where a runtime may compute with other settings than alone.
    Raises: PromiseError with what the runner says.
    """
    if (runner := folder / "run.py").is_file():
        done = subprocess.run([sys.executable, "-B", runner, "--verify"], capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
            raise PromiseError(f"the build does not verify itself: python run.py --verify says: {said[-1]}")


def _hold(
    model: Model, lowered: Model, pipeline: Pipeline, golden: Golden, found: Agreement, ctx: PassContext
) -> Agreement:
    """Hold a build to the original: rounding at most where no pass is lossy, and never NaN or infinity.

    Raises: PassError naming the pass after which the outputs leave the tolerance; PromiseError on NaN or infinity.
    """
    if found.within or not found.n:
        return found
    if pipeline.numerics is Numerics.LOSSY:
        if found.worst == float("inf"):
            raise PromiseError(
                f"output {found.output!r} of the build has NaN, infinity or a shape where the original does not",
                "Give --calibration, so that values out of range are seen and stay in float32",
            )
        return found
    names = [port.name for port in model.signature.outputs]
    own = own_rounding(model, golden, names)
    if own == float("inf"):
        reason = "the original itself gives NaN or infinity, or not, when only its rounding changes"
        return replace(found, n=0, worst=0.0, reason=reason)
    tolerance = max(found.tolerance, _AMPLIFY * own)
    if found.worst <= tolerance:
        return replace(found, tolerance=tolerance)
    raise PassError(
        f"{_blame(model, lowered, golden, tolerance, ctx)} moves output {found.output!r} by {found.worst:.3g} of its "
        f"largest value; rounding explains {tolerance:.3g}",
        "This is a bug of ours: run again with --keep DIR to have the model after each pass, and report it",
    )


#: A build may move by this many times what the original itself moves when only its rounding changes.
_AMPLIFY = 8.0


def _golden_tolerance(agreement: Agreement) -> float:
    """Give what the golden outputs are held to elsewhere: rounding, or for a lossy build twice what it lost here."""
    return float(f"{max(agreement.tolerance, 2 * agreement.worst):.3g}") if agreement.n else 0.0


def _blame(model: Model, lowered: Model, golden: Golden, tolerance: float, ctx: PassContext) -> str:
    """Find the first pass after which the outputs leave the tolerance, by running the model after each."""
    names = [port.name for port in model.signature.outputs]
    stages = [model]
    for step in lowered.history[len(model.history) :]:
        stages.append(Pipeline.parse(step.what).run(stages[-1], ctx))
    for earlier, later in pairwise(stages):
        if later.digest == earlier.digest:
            continue
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
            if not agree(golden, open_model(later, Path(folder)), names, tolerance).within:
                return later.history[-1].what
    return "no pass alone, but the runtime,"


#: The precision that stands for whichever measuring chooses.
AUTO = "auto"


def _recipes(
    target: Target, precisions: list[str], recipe: str | Path | None, passes: str | None
) -> list[Recipe | None]:
    """Give the recipes that were asked for; None stands for AUTO."""
    if recipe is not None and passes is not None:
        raise RecipeError("both a recipe and passes are given", "Give one of them")
    if recipe is not None:
        return [Recipe.read(Path(recipe))]
    if passes is not None:
        return [Recipe.parse(passes)]
    return [None if precision == AUTO else Recipe.of(target, precision) for precision in precisions]


def _names(names: Sequence[str] | str) -> list[str]:
    listed = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if not listed or not all(listed):
        raise RecipeError(f"an empty name in {names!r}")
    return list(dict.fromkeys(listed))


def _samples(
    samples: str | Path | Samples | None, model: Model, beside: Path, progress: Progress | None
) -> Samples | None:
    """Open what the user gave. Arrays are read to their end, so that a NaN in the last row is not found after hours."""
    if isinstance(samples, str | Path):
        samples = open_samples(samples, model.signature, beside=beside)
        if samples.kind in ("arrays", "batches"):
            for done, _ in enumerate(samples):
                if progress and done % 100 == 0:
                    progress(f"check {samples.source}", done, len(samples))
    if samples is not None and len(samples) == 0:
        raise InputError(f"{samples.source} holds no samples")
    return samples


def _reasons(model: Model) -> Any:
    return (str(skip) for step in model.history for skip in step.skips)


def _origin(model: Model) -> dict[str, str]:
    """Name where the model came from without the folders of this machine, so that a rebuild elsewhere is the same."""
    return {"uri": Path(model.origin.uri).name or model.origin.uri, "sha256": model.origin.sha256}


def _tell(progress: Progress | None, what: str, done: int) -> None:
    if progress:
        progress(what, done, 1)
