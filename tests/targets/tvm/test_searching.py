"""MetaSchedule searches where a run spends the most, and keeps what is faster in turns; builds do its steps again."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_net

pytest.importorskip("tvm")

from polycast.load import load
from polycast.targets._tvm import cpu_lowering, cpu_tuning, library, metaschedule, searching, static
from polycast.targets._tvm.cpu_arch import this_cpu
from polycast.targets._tvm.metaschedule import Proposals
from polycast.targets._tvm.records import Called, Search, calls_of, kernels_of
from polycast.targets._tvm.traces import Trace
from polycast.targets._tvm.trials import Trials
from polycast.targets.cuda import Cuda

#: Seconds of each schedule of each kernel, of which None is our own.
SECONDS = {
    "small": {None: 1.0, "s1": 0.5},
    "large": {None: 4.0, "l1": 5.0, "l2": 2.0, "l3": 1.99},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path / "cache"))


def seconds(kernel: str, choice: Trace | None) -> float:
    return SECONDS[kernel][choice.steps if choice else None]


class Told(Trials):
    """Reads the seconds off the table."""

    def __init__(self, timer: Any) -> None:
        self.seconds = seconds

    def close(self) -> None:
        pass


@dataclass
class Listed(Proposals):
    """Proposes what the table has, one at a time; stops: raises where there is no more, as a user does."""

    stops: bool = False
    learned: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = [Trace(each) for each in SECONDS[self.function] if each]

    def next(self) -> list[Trace]:
        if not self._left and self.stops:
            raise KeyboardInterrupt
        return [self._left.pop(0)] if self._left else []

    def learn(self, times: Any) -> None:
        self.learned += times


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search[Any]:
    monkeypatch.setattr(searching, "Trials", Told)
    kept = cpu_tuning.records_of(this_cpu(), "chip")
    return Search(kept, lambda kernel: [], lambda kernel, choice: lambda: seconds(kernel, choice))


def run(search: Search[Any], order: list[str], *, stops: bool = False) -> list[searching.Kernel]:
    def propose(function: str, most: int, seed: int) -> Listed:
        order.append(function)
        return Listed(this_cpu(), function, most, seed, stops=stops)

    calls = {"a": Called("small", 3), "b": Called("large", 1)}
    kernels = {"a": "small", "b": "large", "unused": "small"}
    return searching.deepen(search, kernels, calls, propose, time.monotonic() + 60)


def test_what_costs_the_most_is_searched_first_and_the_faster_is_kept(search: Search[Any]) -> None:
    order: list[str] = []
    found = run(search, order)
    assert order == ["large", "small"]
    assert search.kept.read() == {"a": Trace("s1"), "b": Trace("l2")}  # l3 is faster by less than runs differ
    assert search.kept.tried() == {"a": 1 + searching.MOST, "b": 3 + searching.MOST}  # there are no others
    assert searching.summary(found) == "tuned: MetaSchedule tried 4 schedules of 2 kernels: large ×2.00, small ×2.00"


def test_what_was_found_before_an_interruption_is_kept(search: Search[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(search, [], stops=True)
    assert search.kept.read() == {"a": Trace("s1"), "b": Trace("l2")}


def test_what_has_been_searched_is_not_searched_again(search: Search[Any]) -> None:
    search.kept.add_tried("b", searching.MOST)
    order: list[str] = []
    assert [each.key for each in run(search, order)] == ["a"] and order == ["small"]


def test_a_build_does_the_steps_again_and_passes_over_those_that_do_not_fit(tmp_path: Path) -> None:
    from tvm import s_tir

    model, cpu = static.fixed(load(conv_net(tmp_path / "m.onnx")))[0], this_cpu()
    module = cpu_lowering.fused(model, cpu)[1]
    assert calls_of(module).keys() == kernels_of(module).keys()
    key, kernel = next(iter(cpu_lowering.kernels(model, cpu).items()))
    schedule = s_tir.Schedule(kernel)
    last = schedule.get_child_blocks(schedule.get_sblock("root"))[-1]
    schedule.unroll(schedule.get_loops(last)[-1])
    trace = Trace(json.dumps(_listed(schedule.trace.as_json())))
    plain, again = cpu_lowering.lower(model, cpu), cpu_lowering.lower(model, cpu, {key: trace})
    assert again.tuned == {key: trace}
    assert _runs(again) == pytest.approx(_runs(plain), rel=1e-5)
    passed = cpu_lowering.lower(model, cpu, {key: Trace(trace.steps.replace("Unroll", "Vectorise"))})
    assert passed.tuned == {} and str(passed.module) == str(plain.module)


def _listed(value: Any) -> Any:
    return str(value) if isinstance(value, str) else [*map(_listed, value)] if hasattr(value, "__iter__") else value


def _runs(lowered: Any) -> np.ndarray:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    machine = VirtualMachine(library.executable(lowered), tvm.cpu())
    port = lowered.inputs[0]
    [result] = machine["main"](tvm.runtime.tensor(np.random.default_rng(0).random(port.shape, np.float32)))
    return result.numpy()


@pytest.mark.slow
def test_metaschedule_proposes_what_builds_and_runs_and_learns_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metaschedule, "BATCH", 3)
    model, cpu = static.fixed(load(conv_net(tmp_path / "m.onnx")))[0], this_cpu()
    key, kernel = next(iter(cpu_lowering.kernels(model, cpu).items()))
    proposals, trials = Proposals(cpu, kernel, 6, 1), Trials(partial(cpu_tuning.timer, cpu))
    first = proposals.next()
    times = [trials.seconds(kernel, trace) for trace in first]
    assert trials.seconds(kernel, Trace("[][")) is None
    trials.close()
    assert len(first) == 3 and all(times)
    proposals.learn(times)
    assert not set(proposals.next()) & set(first)
    plain, again = cpu_lowering.lower(model, cpu), cpu_lowering.lower(model, cpu, {key: first[0]})
    assert again.tuned == {key: first[0]}
    assert _runs(again) == pytest.approx(_runs(plain), rel=1e-5)


def test_metaschedule_proposes_for_a_gpu_that_is_elsewhere() -> None:
    """What it proposes shares the work among threads, as a kernel without threads cannot run there."""
    from tvm import te

    x, axis = te.placeholder((128, 64), name="x"), te.reduce_axis((0, 64))
    kernel = te.create_prim_func([x, te.compute((128,), lambda i: te.max(x[i, axis], axis=axis), name="most")])
    proposed = Proposals(Cuda(arch="sm_90").gpu, kernel, 8, 1).next()
    assert proposed
    for trace in proposed:
        assert "threadIdx.x" in str(trace.scheduled(kernel))
