"""compile(): the page that is the compiler.

source → load → Model → pipeline → Model → target.write → Build, held to its promise and to the original on the way.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycast import targets as target_catalogue
from polycast.calibrating.folder import cache_folder
from polycast.calibrating.lint import lint
from polycast.evaluating.budget import Budget, parse_size

from . import activations, gate, sizes
from . import verify as verifier
from .auto import Auto, unmeasured
from .blame import agreement_of_graph, golden_tolerance, hold, hold_build
from .build import Build, open_build, spell_steps, whole_or_nothing, write_manifest
from .candidates import Choice
from .errors import InputError, PromiseError, RecipeError, ToolchainError
from .fallback import Fallback
from .golden import Golden, agree, make_golden, rounding_tolerance
from .guard import Guarded, guard
from .load import load
from .making import Data, Making, choosing, folder_of
from .metrics import Metric, find
from .model import Dims, Model
from .passbase import PassContext
from .pipeline import Progress
from .readme import readme
from .recipe import Recipe
from .samples import Samples, open_samples, prepared
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
    calibration: Data = None,
    data: Data = None,
    shapes: Mapping[str, Dims] | None = None,
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
    force: bool = False,
    progress: Progress | None = None,
) -> list[Build]:
    """Compile one model for every target at every precision, each into ``out/<target>-<precision>``.

    A build that lies there already, whole and made from the same, is left as it is: its ``seconds`` are None.

    source: what ``load`` takes. targets, precision: names, or one text with commas.
    recipe, passes: a TOML file, or a pipeline's text form, in place of precision.
    calibration: what passes may look at, unlabelled. data: what the build is scored on; no pass ever sees it.
    shapes: by input name a size for each axis: 8, or "..8" for any up to that. runtime: what executes the builds,
    where a target has several.
    tune: minutes of trying schedules on this machine, for each build; what is found is kept for later ones.
    keep: a folder for the model after each pass.
    max_memory: bytes, or "2GiB", that looking at the calibration samples may hold.
    max_cpu_share: percent of the MACs that a build for another device may leave to the CPU.
    cache: the folder where what was seen of the samples is kept, so that it is looked at once; None: the user's own.
    max_drop, max_size, max_latency, metrics: the budget of precision ``auto``, and what its drop is told by; as for
    ``evaluate``.
    force: make every build, whatever lies there.

    Returns: the builds, in the order of targets and then of precisions. Of several, ``out/agreement.json`` says how
    near each comes to the original and to each other.
    Raises: PolycastError; what was written before it stays, and nothing half-written does.
    """
    budget = Budget.parse(max_drop, max_size, max_latency)
    wanted = tuple(find(metric) if isinstance(metric, str) else metric for metric in metrics)
    asked = _asked(targets, runtime, tune, precision, recipe, passes, progress)
    if budget != Budget() and all(each.recipe is not None for each in asked):
        raise RecipeError("a budget is given, and nothing to choose by it", "-p auto chooses; polycast evaluate checks")
    _tell(progress, "load", 0)
    model = load(source, example_inputs=example_inputs, shapes=shapes)
    options = {"max_memory": max_memory, "max_cpu_share": max_cpu_share, "tune": tune}
    making = Making.of(model, Path(out), calibration=calibration, data=data, **options)

    def facts(each: Asked) -> dict[str, Any]:
        by = None if each.recipe else choosing(_measured(each.target), each.rivals, budget, wanted)
        return making.facts(each.target, each.recipes, by)

    kept = {} if force or keep else {each: making.kept(each.name, each.target, facts(each)) for each in asked}
    if builds := gate.up_to_date([kept.get(each) for each in asked], Path(out)):
        return builds
    calibrate = _samples(calibration, model, progress)
    score = _samples(data, model, progress)
    model = replace(model, prepared=prepared(calibrate, score))
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
    for each in asked:
        if kept.get(each) is None:
            changed = making.changed(each.name, facts(each))
            if each.recipe is None:
                build = line.auto(each.target, each.rivals, Path(out), budget, score, wanted)
            else:
                build = line.cast(each.target, line.guarded(each.target, each.recipe), Path(out))
            kept[each] = replace(build, changed=changed)
            making.keep(each.name, facts(each))  # anew: tuning adds to what later builds are made with
    builds = [made for each in asked if (made := kept[each])]
    if len(builds) > 1:
        gate.hold(builds, golden, line.runs, Path(out))
    return builds


@dataclass(frozen=True)
class Asked:
    """One build that is asked for.

    recipe: None where measuring chooses. rivals: the same hardware through other runtimes, which are measured too.
    """

    target: Target
    recipe: Recipe | None
    rivals: tuple[Target, ...] = ()

    @property
    def name(self) -> str:
        """Name of the build's folder."""
        return f"{self.target.label}-{self.recipe.name if self.recipe else AUTO}"

    @property
    def recipes(self) -> list[Recipe]:
        """What the build may be made by."""
        if self.recipe:
            return [self.recipe]
        return [Recipe.of(target, name) for target in (self.target, *self.rivals) for name in target.precisions]


@dataclass(frozen=True)
class Line:
    """What the builds of one compile share.

    lint: what is odd about the calibration samples. runs: what the builds gave for the golden inputs.
    stands_for: the target that builds for another one are measured in the place of, and that has to take them too.
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
    stands_for: Target | None = None

    def context(self, target: Target) -> PassContext:
        """Give what passes for ``target`` may look at."""
        return PassContext(
            target.features, self.calibration, max_memory=self.max_memory, cache=self.cache, progress=self.progress
        )

    def guarded(self, target: Target, recipe: Recipe) -> Guarded:
        """Give ``recipe`` with what it had better leave in float; one that the user wrote stays as it is written."""
        if recipe.name not in target.precisions:
            return Guarded(recipe)
        floats = Recipe.of(target, target.precisions[0])
        if not self.golden.feeds:  # a pass that runs the original would name one op of all that are unknown
            target.check(floats.pipeline.run(self.model, self.context(target)), recipe.name)
        return guard(self.model, recipe, floats, self.context(target))

    def cast(self, target: Target, guarded: Guarded, out: Path, chosen: Choice | None = None, label: str = "") -> Build:
        """Make one build, named ``label`` or the target: the passes, the promise, the target, the agreement."""
        started = time.perf_counter()
        recipe = guarded.recipe
        probe = target.probe()
        if not probe.build.yes:
            raise ToolchainError(f"{target} cannot be built here: {probe.build.reason}", probe.build.mend)
        name = f"{label or target.label}-{recipe.name}"
        ctx = self.context(target)
        lowered = recipe.pipeline.run(self.model, ctx, keep=self.keep and self.keep / name, progress=self.progress)
        after = count(lowered, self.golden.shapes)
        asked = count(lowered, self.golden.shapes, guarded.left_out) if guarded.left_out else after
        recipe.promise.check(self.before, asked, (str(skip) for step in lowered.history for skip in step.skips))
        for each in filter(None, (target, self.stands_for)):
            each.check(lowered, recipe.name)
        fallback = Fallback.of_model(target, lowered, self.golden.shapes)
        if fallback is not None and self.max_cpu_share is not None:
            fallback.hold(self.max_cpu_share, target)
        with whole_or_nothing(out / name) as folder:
            _tell(self.progress, f"write {name}", 0)
            runtime = dict(target.write(lowered, folder))
            written = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            beside = {"run.py", "session.py", *runtime.pop("beside", ())}
            deployed = {name for name in written if name.partition("/")[0] not in beside}
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
                "size": sizes.facts(self.model, lowered),
                "activations": activations.plan(lowered, next(iter(self.golden.feeds), None)).to_json(),
                "signature": self.model.signature.to_json(),
                **({"prepared": dict(self.model.prepared)} if any(self.model.prepared.values()) else {}),
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
                _tell(self.progress, f"compare {name} with the original", 0)
                session = self.runs.record(name, target.open(folder))
                if (kernels := target.kernels(folder)) is not None:
                    runtime["kernels"] = dict(kernels)
                found = agree(self.golden, session, names, rounding_tolerance(self.model))
                agreement = hold_build(self.model, lowered, recipe.pipeline, self.golden, found, ctx)
                manifest["agreement"] = agreement.to_json()
            else:
                _tell(self.progress, f"compare the graph of {name} with the original", 0)
                found = agreement_of_graph(lowered, self.golden, names, rounding_tolerance(self.model))
                agreement = hold(self.model, lowered, recipe.pipeline, self.golden, found, ctx)
                manifest["agreement"]["graph"] = agreement.to_json()
            kept = kept if agreement.n else 0
            manifest["golden"] |= {"n": kept, "tolerance": golden_tolerance(agreement)}
            (folder / "README.md").write_text(readme(name, manifest), encoding="utf-8")
            write_manifest(folder, manifest, deployed)
            if kept and probe.run.yes:
                _tell(self.progress, f"let {name} verify itself", 0)
                _let_verify_itself(folder, target)
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
        measured = _measured(target)
        if not self.golden.feeds:
            self.guarded(measured, Recipe.of(measured, measured.precisions[0]))  # names every op that is unknown
        probe = measured.probe()
        if not probe.run.yes or probe.evidence != "device" or not self.golden.feeds:
            raise unmeasured(target, self.golden.reason or probe.run.reason)
        if budget.latency is not None and measured != target:
            raise RecipeError(f"the latency of {target} cannot be measured here", "polycast verify measures it there")
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:

            def automatic(one: Target) -> Auto:
                line = replace(self, stands_for=target if measured != target else None)
                cast, samples = partial(line.cast, one, out=Path(folder)), score or self.calibration
                return Auto(one, self.model, self.golden, self.context(one), cast, samples, budget, metrics)

            chosen = replace(automatic(measured), rivals=[automatic(one) for one in rivals]).choose()
        chosen = chosen if measured == target else replace(chosen, on=f"{measured}, {probe.hardware}")
        named = replace(chosen.guarded, recipe=replace(chosen.guarded.recipe, name=AUTO))
        return self.cast(chosen.target or target, named, out, chosen, target.label)


def _let_verify_itself(folder: Path, target: Target) -> None:
    """Run the build's own runner on its golden samples, in a process of its own, as on the user's device.

    What agreement is measured on runs in this process, where a runtime may compute with other settings than alone.
    Raises: PromiseError with what the runner says.
    """
    if (runner := folder / "run.py").is_file():
        done = subprocess.run([*target.interpreter, "-B", runner, "--verify"], capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
            why = f"the build does not verify itself: python run.py --verify says: {said[-1]}"
            raise PromiseError(why, "The same file gave the right numbers inside polycast: report it, with the model")


#: The precision that stands for whichever measuring chooses.
AUTO = "auto"


def _asked(
    targets: Sequence[str] | str,
    runtime: str,
    tune: float,
    precision: Sequence[str] | str,
    recipe: str | Path | None,
    passes: str | None,
    progress: Progress | None,
) -> list[Asked]:
    """Pair the targets with the recipes. The other runtimes compete where neither spelling names one."""
    if recipe is not None and passes is not None:
        raise RecipeError("both a recipe and passes are given", "Give one of them")
    asked = []
    for name in _names(targets):
        target = target_catalogue.find(name, runtime).tuned(tune, progress)
        if recipe is not None:
            asked.append(Asked(target, Recipe.read(Path(recipe))))
        elif passes is not None:
            asked.append(Asked(target, Recipe.parse(passes)))
        else:
            rivals = () if runtime or "@" in name else target_catalogue.others(target)
            asked += [
                Asked(target, None, rivals) if p == AUTO else Asked(target, Recipe.of(target, p))
                for p in _names(precision)
            ]
    return asked


def _measured(target: Target) -> Target:
    """Give the target that -p auto measures in the place of ``target``: most often itself."""
    return target_catalogue.find(target.chosen_on) if target.chosen_on else target


def _names(names: Sequence[str] | str) -> list[str]:
    listed = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if not listed or not all(listed):
        raise RecipeError(f"an empty name in {names!r}")
    return list(dict.fromkeys(listed))


def _samples(samples: Data, model: Model, progress: Progress | None) -> Samples | None:
    """Open what the user gave. Arrays are read to their end, so that a NaN in the last row is not found after hours."""
    if isinstance(samples, str | Path):
        samples = open_samples(samples, model.signature, beside=folder_of(model))
        if samples.kind in ("arrays", "batches"):
            for done, _ in enumerate(samples):
                if progress and done % 100 == 0:
                    progress(f"check {samples.source}", done, len(samples))
    if samples is not None and len(samples) == 0:
        raise InputError(f"{samples.source} holds no samples")
    return samples


def _origin(model: Model) -> dict[str, str]:
    """Name where the model came from without the folders of this machine, so that a rebuild elsewhere is the same."""
    return {"uri": Path(model.origin.uri).name or model.origin.uri, "sha256": model.origin.sha256}


def _tell(progress: Progress | None, what: str, done: int) -> None:
    if progress:
        progress(what, done, 1)
