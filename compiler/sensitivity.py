"""Sensitivity: what each layer of a model loses at each way of quantizing it, alone, on the user's samples."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .metrics import KNOWN, Metric
from .model import Model, name_of
from .outputs import class_scores
from .passbase import Numerics, Pass, PassContext
from .pipeline import Pipeline, apply
from .reference import open_model
from .samples import Sample, Samples
from .shares import macs_of, weighted
from .statistics import Array
from .targetbase import Session

SCHEMA = 1

#: So many samples are looked at, at most and at least; in between, as many as keep all runs under RUNS_MACS.
MOST_SAMPLES, LEAST_SAMPLES = 32, 4
RUNS_MACS = 4e12
#: After so many samples, so many numbers in the outputs are enough.
SOME_SAMPLES, ENOUGH = 8, 250_000
#: The outputs of the model that are held in memory to compare with, in bytes.
HELD_BYTES = 256 << 20
#: A model of more layers has those that are alike looked at together.
GROUPS = 200
#: What NaN, infinity or outputs of another shape count as: noise a million times the signal.
RUINED = 1e6


@dataclass(frozen=True)
class Layer:
    """One node with a weight, or several that are decided on together: equal in kind, or of one shared weight.

    weights: elements; macs: multiply-accumulates of one run, of all its nodes.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    weights: int
    macs: int


@dataclass(frozen=True)
class Sensitivity:
    """What each layer loses at each way, where every other layer stays as it is.

    ways: the name of each way and the spelling of its passes.
    noise [layers, ways]: noise power over signal power of the worst output; None where the pass does not act there.
    kl [layers, ways]: nats per row of class scores, mean; None without class scores.
    bytes [layers, ways]: what the weights of the model grow by, mostly negative.
    whole [ways]: the noise of a way on all layers at once, and on what else its pass acts on.
    size: bytes of all weights before any way. samples: how many were looked at.
    """

    layers: tuple[Layer, ...]
    ways: Mapping[str, str]
    noise: tuple[tuple[float | None, ...], ...]
    kl: tuple[tuple[float | None, ...], ...]
    bytes: tuple[tuple[int, ...], ...]
    whole: tuple[float | None, ...]
    size: int
    samples: int

    def column(self, way: str) -> Array:
        """Give the noise of every layer at ``way``; NaN where its pass does not act."""
        at = list(self.ways).index(way)
        return np.array([math.nan if (value := row[at]) is None else value for row in self.noise])

    def saved(self, way: str) -> Array:
        """Give the bytes that every layer gives up at ``way``."""
        at = list(self.ways).index(way)
        return -np.array([row[at] for row in self.bytes], dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON, rounded to six digits."""
        return {
            "schema": SCHEMA,
            "samples": self.samples,
            "size": self.size,
            "ways": [{"name": name, "pass": spelling} for name, spelling in self.ways.items()],
            "whole": _short(self.whole),
            "layers": [
                {**asdict(layer), "noise": _short(noise), "kl": _short(kl), "bytes": list(grown)}
                for layer, noise, kl, grown in zip(self.layers, self.noise, self.kl, self.bytes, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any], where: str = "sensitivity") -> Sensitivity:
        """Read what ``to_json`` gave. Raises: InputError for another schema, or where something is missing."""
        try:
            if table["schema"] != SCHEMA:
                raise InputError(f"{where} has schema {table['schema']!r}, this polycast reads {SCHEMA}")
            rows = table["layers"]
            return cls(
                tuple(Layer(r["name"], r["op"], tuple(r["nodes"]), r["weights"], r["macs"]) for r in rows),
                {way["name"]: way["pass"] for way in table["ways"]},
                tuple(tuple(row["noise"]) for row in rows),
                tuple(tuple(row["kl"]) for row in rows),
                tuple(tuple(row["bytes"]) for row in rows),
                tuple(table["whole"]),
                table["size"],
                table["samples"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where} is no sensitivity: {type(error).__name__}: {error}") from error


def _short(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.6g}") for value in values]


def sensitivity(model: Model, ways: Mapping[str, Pipeline], ctx: PassContext, samples: Samples) -> Sensitivity:
    """Measure what every layer of ``model`` loses at each of ``ways``, one after another.

    model: as it is before any lossy pass. ways: by the name of the way its passes; those that quantize layers are told
    which by their parameter ``only``, and those before them see the whole model.
    Each layer is changed alone and a few of ``samples`` are run, so the work grows with layers times ways, not with
    their combinations. That noise adds up over layers holds while each is small beside the signal.
    With ``ctx.cache``, what was measured once of the same model, ways and samples is read back.
    Source: Lin, Talathi and Annapureddy 2016, arXiv:1511.06393, section 3 (noise powers of layers add).
    Raises: InputError naming the sample that the model does not run on.
    """
    sweep: Sweep | None = None
    columns = []
    for name, way in ways.items():
        kept = _kept(model, way, ctx, samples)
        column = _read(kept)
        if column is None:
            sweep = sweep or Sweep(model, ctx, samples)
            column = sweep.over(name, way)
            _write(kept, json.dumps(column.to_json()))
        columns.append(replace(column, ways={name: str(way)}))
    return _beside(columns)


def _beside(columns: Sequence[Sensitivity]) -> Sensitivity:
    """Put the ways of several sensitivities of the same layers side by side."""
    return replace(
        columns[0],
        ways={name: way for each in columns for name, way in each.ways.items()},
        noise=tuple(tuple(chain(*rows)) for rows in zip(*(each.noise for each in columns), strict=True)),
        kl=tuple(tuple(chain(*rows)) for rows in zip(*(each.kl for each in columns), strict=True)),
        bytes=tuple(tuple(chain(*rows)) for rows in zip(*(each.bytes for each in columns), strict=True)),
        whole=tuple(chain(*(each.whole for each in columns))),
    )


@dataclass(frozen=True)
class _Lost:
    """What a change costs: noise over signal, nats of divergence, and bytes of weights more; nothing changed: None."""

    noise: float | None = None
    kl: float | None = None
    grown: int = 0


class Sweep:
    """The samples that layers are changed on, and what the unchanged model gives for them."""

    def __init__(self, model: Model, ctx: PassContext, samples: Samples) -> None:
        self.model = model
        self.ctx = replace(ctx, original=ctx.original or model.graph)
        self.layers = layers_on(model, samples)
        macs = (len(self.layers) + 2) * sum(layer.macs for layer in self.layers)
        most = max(LEAST_SAMPLES, min(MOST_SAMPLES, int(RUNS_MACS / max(1, macs))))
        self.samples: list[Sample] = []
        self.reference: list[list[np.ndarray]] = []
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
            session = open_model(model, Path(folder), optimized=True)
            held = numbers = 0
            for sample in islice(samples, most):
                outputs = session.run(sample.feeds)
                held += sum(output.nbytes for output in (*outputs, *sample.feeds.values()))
                if self.samples and held > HELD_BYTES:
                    break
                self.samples.append(sample)
                self.reference.append(outputs)
                numbers += sum(output.size for output in outputs)
                if len(self.samples) >= SOME_SAMPLES and numbers >= ENOUGH:
                    break

    def over(self, name: str, way: Pipeline) -> Sensitivity:
        """Change every layer in one way. The whole model goes first: what its pass observes, each layer needs."""
        stage, total = f"sensitivity: {name}", len(self.layers) + 1
        self.ctx.tell(stage, 0, total)
        whole = self.noise(way)
        at = next((i for i, each in enumerate(way.passes) if selects(each)), len(way.passes))
        repaired = self._through(Pipeline(way.passes[:at]), self.model)
        found = []
        for done, layer in enumerate(self.layers, 1):
            self.ctx.tell(stage, done, total)
            changed = self._through(_narrowed(way.passes[at:], layer.nodes), repaired)
            found.append(self._lost(changed, repaired))
        self.ctx.tell(stage, total, total)
        return Sensitivity(
            tuple(self.layers),
            {name: str(way)},
            tuple((lost.noise,) for lost in found),
            tuple((lost.kl,) for lost in found),
            tuple((lost.grown,) for lost in found),
            (whole,),
            self.model.weight_bytes,
            len(self.samples),
        )

    def noise(self, pipeline: Pipeline) -> float | None:
        """Give the noise that ``pipeline`` adds to the outputs; None where it leaves the model as it is."""
        return self._lost(self._through(pipeline, self.model, self.ctx), self.model).noise

    def _through(self, pipeline: Pipeline, model: Model, ctx: PassContext | None = None) -> Model:
        """Send ``model`` through; without ``ctx``, silently."""
        for each in pipeline.passes:
            model = apply(each, model, ctx or replace(self.ctx, progress=None))
        return model

    def _lost(self, changed: Model, repaired: Model) -> _Lost:
        if changed.digest == repaired.digest:
            return _Lost()
        grown = changed.weight_bytes - repaired.weight_bytes
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
            try:
                noise, kl = self._compare(open_model(changed, Path(folder), optimized=True))
            except InputError:
                return _Lost(RUINED, None, grown)  # the model runs on these samples, and what came of it does not
        return _Lost(noise, kl, grown)

    def _compare(self, session: Session) -> tuple[float, float | None]:
        """Give the noise power over the signal power of the worst output, and the divergence of class scores."""
        metrics = [_telling(self.reference[0])]
        if class_scores(self.reference[0]) is not None:
            metrics.append(KNOWN["kl"])
        pieces: dict[str, list[Array]] = defaultdict(list)
        for sample, reference in zip(self.samples, self.reference, strict=True):
            outputs = session.run(sample.feeds)
            with np.errstate(invalid="ignore", over="ignore"):  # of what is ruined
                for metric in metrics:
                    pieces[metric.name].append(metric.per_sample(outputs, sample, reference))
        lost = [_as_loss(metric, metric.value(np.concatenate(pieces[metric.name]))) for metric in metrics]
        return lost[0], lost[1] if len(lost) > 1 else None


def _telling(outputs: Sequence[np.ndarray]) -> Metric:
    floats = any(output.dtype.kind == "f" and output.size for output in outputs)
    return KNOWN["sqnr" if floats else "agreement"]


def _as_loss(metric: Metric, value: float) -> float:
    """Turn the value of a metric into what is lost: a ratio of powers, a share, or nats; RUINED for NaN."""
    lost = {"sqnr": 10 ** (-value / 10), "agreement": 1 - value}.get(metric.name, max(value, 0.0))
    return min(lost, RUINED) if not math.isnan(lost) else RUINED


def selects(each: Pass) -> bool:
    """Whether a pass quantizes layers, and can be told which."""
    return each.numerics is Numerics.LOSSY and {"only", "keep"} <= {f.name for f in fields(each)}


def _narrowed(passes: Iterable[Any], nodes: tuple[str, ...]) -> Pipeline:
    """Give ``passes`` with those that quantize layers held to ``nodes``."""
    return Pipeline(tuple(replace(each, only=nodes) if selects(each) else each for each in passes))


def layers_on(model: Model, samples: Samples) -> list[Layer]:
    """Give the layers that a sensitivity on ``samples`` is about."""
    first = next(iter(samples))
    return grouped(layers(model, {name: array.shape for name, array in first.feeds.items()}))


def layers(model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> list[Layer]:
    """Give every node with a weight as a layer, in order; nodes that share a stored weight are one.

    shapes: input name -> concrete shape at which multiply-accumulates are counted.
    """
    found: dict[int, Layer] = {}
    for node, weight in weighted(model, shapes):
        own = Layer(name_of(node), node.op_type, (name_of(node),), weight.elements, macs_of(node, weight))
        if (first := found.get(id(weight.stored))) is not None:
            own = replace(first, nodes=(*first.nodes, *own.nodes), macs=first.macs + own.macs)
        found[id(weight.stored)] = own
    return list(found.values())


def grouped(given: Sequence[Layer], most: int = GROUPS) -> list[Layer]:
    """Join layers until there are ``most`` at most: neighbours among those of one op and size; then the smallest."""
    kinds: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for number, layer in enumerate(given):
        kinds[layer.op, layer.weights, layer.macs].append(number)
    longest = max(map(len, kinds.values()), default=1)
    together = next(
        (k for k in range(1, longest) if sum(math.ceil(len(each) / k) for each in kinds.values()) <= most), longest
    )
    runs = [each[at : at + together] for each in kinds.values() for at in range(0, len(each), together)]
    if len(runs) > most:
        runs.sort(key=lambda run: -sum(given[number].weights for number in run))
        runs = [*runs[: most - 1], sorted(number for run in runs[most - 1 :] for number in run)]
    return [_joined([given[number] for number in run]) for run in sorted(runs)]


def _joined(run: Sequence[Layer]) -> Layer:
    if len(run) == 1:
        return run[0]
    (op, _), *_ = Counter(layer.op for layer in run).most_common(1)
    nodes = tuple(node for layer in run for node in layer.nodes)
    name = f"{run[0].name} and {len(nodes) - 1} more"
    return Layer(name, op, nodes, sum(layer.weights for layer in run), sum(layer.macs for layer in run))


def _kept(model: Model, way: Pipeline, ctx: PassContext, samples: Samples) -> Path | None:
    """Give the file that holds the sensitivity of the same model, way and samples, if the user keeps any."""
    if ctx.cache is None:
        return None
    h = hashlib.sha256(repr((SCHEMA, model.digest, str(way), sorted(ctx.features))).encode())
    h.update(repr([name_of(node) for node, _ in weighted(model)]).encode())
    for part in chain(_contents(ctx.calibration or ()), [b"on"], _contents(islice(samples, MOST_SAMPLES))):
        h.update(part)
    return ctx.cache / f"sensitivity-{h.hexdigest()[:32]}.json"


def _read(kept: Path | None) -> Sensitivity | None:
    """Read what was kept; None where there is nothing, or it is damaged or of an older schema."""
    try:
        return Sensitivity.from_json(json.loads(kept.read_text(encoding="utf-8"))) if kept is not None else None
    except (OSError, ValueError, InputError):
        return None


def _contents(samples: Iterable[Sample]) -> Iterator[bytes]:
    for sample in samples:
        for name, array in sample.feeds.items():
            yield repr((name, array.dtype.str, array.shape)).encode()
            yield array.tobytes() if array.dtype != object else repr(array.tolist()).encode()


def _write(kept: Path | None, text: str) -> None:
    """Write a file of the cache whole. A cache that cannot be written is no reason to fail."""
    if kept is not None:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False, encoding="utf-8") as part:
                part.write(text)
            Path(part.name).replace(kept)
