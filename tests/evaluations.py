"""Made-up evaluations that several tests of reports share."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from polycast.evaluating.budget import Verdict
from polycast.evaluating.evaluation import Evaluation, Subject
from polycast.evaluating.refused import Refused
from polycast.evaluating.scoring import Difference
from polycast.measure import Measurement
from polycast.report import Report
from polycast.statistics import Interval

N = 4800
AGAINST = "mnist (2f06e72de813)"
TOP1, SIZE, LATENCY = 0.9829, 26454, 0.0491


def measured(name: str, value: float, unit: str, better: Any = "lower", width: float = 0.0, n: int = N) -> Measurement:
    spread = Interval(value - width, value + width, "95 %") if width else None
    return Measurement(name, value, unit, n, better, "device", spread)


def evaluation(
    precision: str, size: int, latency: float, drop: float, half: float = 0.002, budget: float | None = 0.01
) -> Evaluation:
    """Make the evaluation of one build for the CPU: bytes, ms, what top-1 loses and half the interval of that."""
    baseline = [
        measured("size", SIZE, "bytes", n=1),
        measured("top1", TOP1, "share", "higher", 0.004),
        measured("latency", LATENCY, "ms", width=0.001),
    ]
    ratio = LATENCY / latency
    own = [
        measured("size", size, "bytes", n=1),
        measured("top1", TOP1 - drop, "share", "higher", 0.004),
        measured("agreement", 1 - abs(drop), "share", "higher", 0.004),
        measured("latency", latency, "ms", width=0.01 * latency),
        measured("speedup", ratio, "x", "higher", 0.02 * ratio),
    ]
    reached = {"weights": {precision: 0.97, "fp32": 0.03}, "macs": {precision: 0.99, "fp32": 0.01}}
    asked = {"weights": {precision: 0.9}, "macs": {precision: 0.9}}
    promise = {"asked": asked, "reached": reached} if precision != "fp32" else {"asked": {"weights": {"as given": 1.0}}}
    verdict = Verdict("max_drop", "1pp", f"top1 is {drop * 100:.2f} pp worse", budget is not None and drop <= budget)
    return Evaluation(
        Subject(f"cpu-{precision}", "cpu", precision, f"out/cpu-{precision}", promise),
        AGAINST,
        "test.npz",
        N,
        {each.name: each for each in baseline},
        {each.name: each for each in own},
        {"top1": Difference("top1", -drop, "share", N, "higher", Interval(-drop - half, -drop + half, "95 %, paired"))},
        {},
        (verdict,) if budget is not None else (),
    )


REFUSED = Refused(
    "cpu-int3",
    "cpu",
    "int3",
    AGAINST,
    "PromiseError",
    "asked 90% of weights in int3, reached 12.1%",
    "Because: conv1 (Conv): 5 channels are no multiple of 16",
)


def crowd() -> tuple[Evaluation, ...]:
    """Give the builds of a sweep as they come: several close together, one over its budget, one ruined."""
    return (
        evaluation("fp32", 26406, 0.0412, 0.0, 0.0004),
        evaluation("fp16", 13302, 0.0884, 0.0002, 0.0006),
        evaluation("int8", 8100, 0.0231, 0.0021),
        evaluation("int8-dynamic", 8400, 0.0512, 0.0008),
        evaluation("int8-weights", 8300, 0.0440, 0.0004),
        evaluation("int4", 5200, 0.0498, 0.0142),
        evaluation("auto", 9100, 0.0225, 0.0011),
        evaluation("int2", 3900, 0.0490, 0.42),
    )


def sensitivity(layers: int = 6) -> dict[str, Any]:
    """Give what each of some layers loses at three precisions, as JSON spells it."""
    rng = random.Random(layers)
    ways = ("int8", "int8-dynamic", "int4")
    rows = [
        {
            "name": f"conv{i}",
            "op": "Conv",
            "nodes": [f"conv{i}"],
            "weights": 500 * 2**i,
            "macs": 10**6,
            "noise": [10 ** -rng.uniform(3, 6), None if i == 0 else 10 ** -rng.uniform(4, 7), 10 ** -rng.uniform(1, 3)],
            "kl": [None] * 3,
            "bytes": [-1500 * 2**i, -1500 * 2**i, -1750 * 2**i],
        }
        for i in range(layers)
    ]
    named = [{"name": way, "pass": way} for way in ways]
    return {"schema": 1, "samples": 32, "size": SIZE, "ways": named, "whole": [1e-3, 1e-4, 3e-2], "layers": rows}


def report(*evaluations: Evaluation, **more: Any) -> Report:
    """Put evaluations into a report, by default those of ``crowd``, beside a refused build and with commands."""
    given = evaluations or crowd()
    commands = {e.build.name: (f"polycast compile m.onnx -p {e.build.precision} -o out",) for e in given}
    return replace(Report(given, (REFUSED,), commands, {"cpu-int8": sensitivity()}), **more)


def sized(runtime: str = "runner", **more: Any) -> dict[str, Any]:
    """Make what a manifest says of sizes: 42,000 bytes that became 13,500."""
    planned = {"bytes": 5000, "least": 5000, "at": "conv<1>", "op": "Conv", "alive": {"x": 5000}, "shapes": {"x": [1]}}
    return {
        "runtime": {"name": runtime},
        "size": {
            "original": {"bytes": 42_000, "weights": {"fp32": 40_000}},
            "weights": {"int8": 10_000, "fp32": 1_000},
            "layers": [{"layer": f"layer{i}", "op": "Conv", "bytes": {"int8": 1_000}} for i in range(11)],
            "others": {"layers": 2, "bytes": {"fp32": 1}},
        },
        "activations": planned,
        "files": {
            "model.onnx": {"bytes": 13_500, "deployed": True},
            "golden.npz": {"bytes": 99_999, "deployed": False},
        },
        **more,
    }
