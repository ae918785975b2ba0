"""Choosing a precision by measuring: the fastest build that loses no more than its user allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from polycast.evaluating.budget import Budget
from polycast.evaluating.losses import Loss, losses
from polycast.evaluating.race import race
from polycast.evaluating.worker import Opening, saved

from .build import Build
from .candidates import FASTER, SLOWER, Candidate, Choice, decide, faster, smallest, too_large
from .errors import BudgetError, InputError, PassError, PromiseError, RecipeError, ToolchainError, UnsupportedError
from .golden import Golden
from .guard import Guarded, cut, guard
from .metrics import KNOWN, Metric
from .mixed import MIXED, Bounds, Mix, Table, solve
from .model import Model, graphs, name_of
from .op_times import layer_times
from .passbase import PassContext
from .recipe import Recipe
from .samples import Samples
from .sensitivity import layers_on, sensitivity
from .targetbase import Target

#: How long each candidate is timed.
SECONDS = 1.5
#: How much of the drop that is allowed a mix is solved for; each time that it loses more, for a quarter of the noise.
AIM, TRIES = 0.7, 3

#: What says that one build cannot be made: others may. A kernel that is wrong is among it, and the build says so.
_PASSED_OVER = (PromiseError, UnsupportedError, PassError)


def unmeasured(target: Target, reason: str) -> RecipeError:
    """Build the error for a target whose builds cannot be measured here."""
    return RecipeError(
        f"-p auto chooses by measuring, and {target} cannot be measured here: {reason}",
        f"Name the precision, or several: -p {','.join(target.precisions)}",
    )


@dataclass
class Auto:
    """What is chosen from, and by what. cast: makes the build of a recipe.

    rivals: the same for other runtimes, whose builds stand beside.
    samples: what losses are told by; None where the user gave none. A mix is solved on the calibration samples, where
    there are any.
    """

    target: Target
    model: Model
    golden: Golden
    ctx: PassContext
    cast: Callable[[Guarded], Build]
    samples: Samples | None = None
    budget: Budget = field(default_factory=Budget)
    metrics: Sequence[Metric] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Loss] = field(default_factory=dict)
    rivals: Sequence[Auto] = ()

    def choose(self) -> Choice:
        """Make a build at every precision of the target, and a mix of them; judge, time and choose.

        Raises: BudgetError where no build keeps the budget, saying what each reached.
        """
        made = dict(self._make())
        first, *_ = made
        for rival in self.rivals:
            made |= self._made_by(rival)
        fit = self._judge(made, first)
        if (mix := self._mix(made, first)) is not None:
            fit[MIXED] = mix
        timed = self._time(fit | {first: made[first]}, first)
        try:
            return decide(timed, first, self.budget, self.reasons)
        except BudgetError as error:
            raise BudgetError(f"{error.message}; {smallest(made | fit)}", error.hint) from None

    def _make(self) -> Iterator[tuple[str, Candidate]]:
        """Make every precision; the first is the one to beat, so it has to be there.

        Of one that leaves layers in float, all of it too: a budget says what is lost better than a guess of each layer.
        """
        base: Candidate | None = None
        for precision in self.target.precisions:
            try:
                if base is not None and self._is_slow(precision, base):
                    self.reasons[precision] = "no faster than float, with weights that were just rounded"
                    continue
                guarded = guard(self.model, self._recipe(precision), self._recipe(self.target.precisions[0]), self.ctx)
                made = Candidate(guarded, self.cast(guarded))
            except _PASSED_OVER as error:
                if base is None:
                    raise
                self.reasons[precision] = error.message
                continue
            base = base or made
            yield precision, made
            if guarded.kept and self.budget.drop is not None:
                yield from self._whole(precision)

    def _whole(self, precision: str) -> Iterator[tuple[str, Candidate]]:
        """Make a precision with nothing kept in float."""
        guarded = Guarded(replace(self._recipe(precision), name=f"{precision}-whole"))
        try:
            yield guarded.recipe.name, Candidate(guarded, self.cast(guarded))
        except _PASSED_OVER as error:
            self.reasons[guarded.recipe.name] = error.message

    def _made_by(self, rival: Auto) -> dict[str, Candidate]:
        """Make every precision of a rival, under the name of its runtime; one that cannot be made is passed over."""
        runtime, made = rival.target.executor, {}
        try:
            for precision, each in rival._make():
                made[f"{runtime} {precision}"] = replace(each, target=rival.target)
        except (*_PASSED_OVER, ToolchainError) as error:
            self.reasons[runtime] = error.message
        self.reasons |= {f"{runtime} {precision}": reason for precision, reason in rival.reasons.items()}
        return made

    def _is_slow(self, precision: str, base: Candidate) -> bool:
        """Whether a precision is no faster than ``base``, where that can be told before its weights are searched.

        What is to be small is made in any case.
        """
        recipe = self._recipe(precision)
        sketch = Recipe(f"{precision}-sketch", recipe.pipeline.hastily(), recipe.promise)
        if self.budget.size is not None or sketch.pipeline == recipe.pipeline:
            return False
        sketched = Candidate(Guarded(sketch), self.cast(Guarded(sketch)))
        timed = self._time({"": base, precision: sketched}, "")
        return precision in timed and not faster(timed[precision], timed[""])

    def _recipe(self, precision: str) -> Recipe:
        return Recipe.of(self.target, precision)

    def _judge(self, made: Mapping[str, Candidate], first: str) -> dict[str, Candidate]:
        """Give those that lose no more than allowed; of the others note why not."""
        fit = {
            name: each for name, each in made.items() if name == first or each.build.agreement.get("within_tolerance")
        }
        lossy = {name: each for name, each in made.items() if name not in fit}
        told = {name: reason for name, each in lossy.items() if (reason := self._untold(each.build))}
        self.reasons |= told
        lossy = {name: each for name, each in lossy.items() if name not in told}
        for name, loss in self._losses({name: each.build for name, each in lossy.items()}).items():
            if isinstance(loss, str):
                self.reasons[name] = f"it is lossy, and what it loses cannot be told: {loss}"
                continue
            self.measured[name] = loss
            if loss.within(self.budget.drop):
                fit[name] = replace(lossy[name], loss=loss)
            else:
                self.reasons[name] = loss.words
        return fit

    def _untold(self, build: Build) -> str:
        """Say why nobody can tell what a lossy build loses, or nothing."""
        if not build.agreement["n"]:
            return "it could not be compared with the original"
        if self.samples is None:
            return "it is lossy, and there are no samples to see what it loses: give --calibration or --data"
        return ""

    def _losses(self, builds: Mapping[str, Build]) -> dict[str, Loss | str]:
        """Say what builds lose. Without a budget nothing may change that a user would see: the largest entries."""
        if not builds or self.samples is None:
            return {}
        if self.budget.drop is not None:
            return losses(self.model, builds, self.samples, self.metrics, self.ctx.tell)
        try:
            return losses(self.model, builds, self.samples, (KNOWN["agreement"],), self.ctx.tell)
        except InputError:
            return dict.fromkeys(builds, "no output has a largest entry to compare")

    def _mix(self, made: Mapping[str, Candidate], first: str) -> Candidate | None:
        """Solve for a mix of the precisions and make it, where one is foretold to be worth it."""
        table = self._table(made, first)
        if table is None:
            return None
        for bounds, least in self._attempts(table, made):
            mix = solve(table, bounds, least=least)
            if mix is None or mix.is_pure or not self._pays(mix, bounds):
                continue
            try:
                mixed = Guarded(mix.recipe(), sensitivity=table.sensitivity, is_mix=True)
                tried = Candidate(mixed, self.cast(mixed), mix=mix)
            except _PASSED_OVER as error:
                self.reasons[MIXED] = error.message
                return None
            fit = self._judge({first: made[first], MIXED: tried}, first)
            if MIXED in fit:
                self.reasons.pop(MIXED, None)
                return fit[MIXED]
        return None

    def _table(self, made: Mapping[str, Candidate], first: str) -> Table | None:
        """Measure what each layer takes and loses in each precision that quantizes layers.

        A precision in which no layer is faster than in those that lose less is of use for its size alone.
        """
        floats = self._recipe(first).pipeline
        cuts = {name: cut(self._recipe(name).pipeline, floats) for name in made if self._is_own(name)}
        parts = {name: part for name, part in cuts.items() if part is not None}
        samples = self.ctx.calibration or self.samples
        if not parts or samples is None:
            return None
        start = next(iter(parts.values())).start
        lowered = start.run(self.model, self.ctx)
        every = layers_on(lowered, samples)
        known = {name_of(node) for graph in graphs(lowered.graph) for node in graph}
        with saved(self.golden.feeds[0]) as feeds:
            own = {name: layer_times(made[name].build, every, known, feeds) for name in (first, *parts)}
        plain = own.pop(first)
        if plain is None:
            return None
        seconds = {name: plain if times is None else times for name, times in own.items()}
        useful, least = {}, plain
        for name in sorted(parts, key=lambda name: self.measured[name].drop):
            sooner = bool((seconds[name] * FASTER < least).any())
            if parts[name].start == start and (sooner or self.budget.size is not None):
                useful[name] = parts[name]
                least = np.minimum(least, seconds[name])
        if not useful:
            return None
        found = sensitivity(lowered, {name: part.bare for name, part in useful.items()}, self.ctx, samples)
        size = made[first].build.bytes
        beside = {name: int(size - made[name].build.bytes - found.saved(name).sum()) for name in useful}
        return Table(found, useful, {"": plain, **seconds}, size, beside)

    def _is_own(self, name: str) -> bool:
        return name in self.measured and name in self.target.precisions

    def _attempts(self, table: Table, made: Mapping[str, Candidate]) -> Iterator[tuple[Bounds, str]]:
        """Yield what to solve for: speed within the drop that is foretold, less of it each time; then size."""
        size = inf if self.budget.size is None else float(self.budget.size)
        noise = self._noise(table, made)
        for number in range(TRIES if noise < inf else 1):
            yield Bounds(noise / 4**number, size), "seconds"
        if table.size > size:
            yield Bounds(inf, size), "noise"

    def _noise(self, table: Table, made: Mapping[str, Candidate]) -> float:
        """Foretell the noise at which the drop is what is allowed, from what whole precisions lost at theirs.

        An error grows with the root of the noise, and what comes of it, entries that change places, with the error.
        """
        whole = dict(zip(table.sensitivity.ways, table.sensitivity.whole, strict=True))
        noises = {name: made[name].guarded.after or whole[name] for name in table.parts}
        pairs = [(self.measured[name].drop, noise) for name, noise in noises.items() if noise]
        if self.budget.drop is None:
            return AIM**2 / 4 * min((noise for drop, noise in pairs if drop > 0), default=inf)
        loss = next(iter(self.measured.values()))
        allowed = self.budget.drop.allowed(loss.before, loss.unit)
        steepest = max((drop / noise**0.5 for drop, noise in pairs), default=0.0)
        return (AIM * allowed / steepest) ** 2 if steepest > 0 else inf

    def _pays(self, mix: Mix, bounds: Bounds) -> bool:
        """Whether a mix is foretold to be faster than float and than every precision that is allowed, or smaller."""
        if bounds.size < inf:
            return True
        allowed = [name for name in mix.table.parts if name not in self.reasons]
        return all(mix.seconds < SLOWER * float(mix.table.seconds[name].sum()) for name in ("", *allowed))

    def _time(self, fit: Mapping[str, Candidate], first: str) -> dict[str, Candidate]:
        """Time all that could be chosen, each in processes of its own."""
        small = [name for name, each in fit.items() if not too_large(each, self.budget)]
        if not small or (len(fit) == 1 and self.budget.latency is None):
            return dict(fit)
        with saved(self.golden.feeds[0]) as feeds:
            openings = {
                name: Opening("build", str(fit[name].build.path.resolve()), feeds)
                for name in dict.fromkeys((first, *small))
            }

            def told(done: int, total: int) -> None:
                self.ctx.tell("time the candidates", done, total)

            heats = race(openings, SECONDS, told, stays=first)
        timed = {}
        for name, each in fit.items():
            if isinstance(own := heats.get(name, []), str):
                self.reasons[name] = f"it could not be timed: {own}"
            else:
                timed[name] = replace(each, heats=tuple(own))
        return timed
