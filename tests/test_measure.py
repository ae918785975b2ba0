"""Measurements and what they refuse; latency of what costs a known time."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polycast.errors import ToolchainError
from polycast.evaluating.footprint import model_file
from polycast.load import load
from polycast.measure import LEAST_ROUNDS, Measurement, Stopwatch, figures, latency, time_in_turns
from polycast.statistics import Interval


@pytest.mark.parametrize(
    "broken",
    [{"unit": ""}, {"n": 0}, {"evidence": "not run"}, {"value": float("nan")}, {"value": float("inf")}],
    ids=str,
)
def test_no_number_without_unit_n_and_evidence(broken: dict[str, object]) -> None:
    whole = {"name": "top1", "value": 0.5, "unit": "share", "n": 10, "better": "higher", "evidence": "device"}
    Measurement(**whole)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top1"):
        Measurement(**whole | broken)  # type: ignore[arg-type]


def test_a_measurement_survives_json() -> None:
    plain = Measurement("top1", 0.5, "share", 10, "higher", "emulated", Interval(0.2, 0.8, "95 % Wilson"))
    endless = Measurement("sqnr", float("inf"), "dB", 3, "higher", "device", Interval(60, float("inf"), "x"), "equal")
    for m in (plain, endless):
        assert Measurement.from_json(m.name, json.loads(json.dumps(m.to_json(), allow_nan=False))) == m


def test_latency_of_what_takes_twice_as_long() -> None:
    slow, fast = (Stopwatch(lambda seconds=seconds: time.sleep(seconds)) for seconds in (0.004, 0.002))
    measured = latency({"original": slow, "build": fast}, against="original", rows=3, seconds=0.2)
    original, build = measured["original"], measured["build"]
    assert isinstance(original, dict) and isinstance(build, dict)
    # sleep() never wakes early.
    assert build["latency"].value >= 2 and original["latency"].value >= 4
    assert build["latency"].value <= build["latency_p90"].value <= build["latency_p99"].value
    assert build["throughput"].value == pytest.approx(3e3 / build["latency"].value)
    assert build["speedup"].value == pytest.approx(original["latency"].value / build["latency"].value)
    spread = build["speedup"].spread
    assert spread is not None and 1 < spread.low <= build["speedup"].value <= spread.high
    assert "speedup" not in original
    assert {m.n for m in build.values()} == {original["latency"].n}
    assert original["latency"].n >= LEAST_ROUNDS


def test_runs_are_taken_in_turns() -> None:
    order: list[str] = []
    runs = {name: Stopwatch(lambda name=name: (order.append(name), time.sleep(0.015))) for name in "AB"}
    times = time_in_turns(runs, seconds=0.06)  # one run fills a turn
    timed = "".join(order[6:])  # three calls each warm up
    assert timed.startswith("ABBAABBA")
    assert {series.shape for series in times.values()} == {(len(timed) / 2, 1)}
    assert gc.isenabled()


def test_a_turn_is_as_long_for_all_as_the_slowest_makes_it() -> None:
    runs: list[str] = []
    slow = Stopwatch(lambda: (runs.append("slow"), time.sleep(0.0045)))
    fast = Stopwatch(lambda: (runs.append("fast"), time.sleep(0.0005)))
    times = time_in_turns({"slow": slow, "fast": fast}, seconds=0.02)
    a, b = times.values()
    assert a.shape == b.shape
    rounds, in_a_turn = a.shape
    assert rounds == LEAST_ROUNDS and 1 < in_a_turn <= 4
    assert runs.count("slow") == 3 + rounds * (in_a_turn + 1), "each turn begins with a run that is not counted"


def test_a_very_short_run_is_timed_many_at_a_time() -> None:
    runs: list[None] = []
    found = latency({"original": Stopwatch(lambda: runs.append(None))}, against="original", seconds=0.02)["original"]
    assert isinstance(found, dict)
    assert len(runs) > 20 * found["latency"].n
    assert found["latency"].value < 0.1


def test_an_emulated_session_has_no_speed() -> None:
    with pytest.raises(ValueError, match="emulated"):
        latency({"original": Stopwatch(list), "build": Stopwatch(list, "emulated")}, against="original")


class Failing(Stopwatch):
    """Fails at its third turn."""

    turns = 0

    def time(self, times: int) -> list[float]:
        self.turns += 1
        if self.turns == 3:
            raise ToolchainError("out of memory")
        return super().time(times)


@pytest.mark.parametrize("name", ["original", "build"])
def test_who_fails_is_left_out_and_says_why(name: str) -> None:
    subjects = {"original": Stopwatch(list), "build": Stopwatch(list), name: Failing(list)}
    found = latency(subjects, against="original", seconds=0.02)
    [other] = {"original", "build"} - {name}
    assert found[name] == "out of memory"
    timings = found[other]
    assert isinstance(timings, dict)
    assert "speedup" not in timings
    assert timings["latency"].n >= LEAST_ROUNDS


def test_the_size_of_a_model_counts_the_weights_beside_it(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    import onnx

    source = zoo("mlperftiny/kws.onnx")
    with model_file(load(str(source))) as (path, size):
        assert (path, size) == (source, source.stat().st_size)
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(source), split, save_as_external_data=True, location="weights.bin", size_threshold=1000)
    with model_file(load(str(split))) as (path, size):
        assert path == split
        assert size == split.stat().st_size + (tmp_path / "weights.bin").stat().st_size


def test_measuring_imports_nothing_heavy() -> None:
    script = "import sys, polycast.evaluate, polycast.report; print({'onnxruntime', 'rich', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_without_the_original_there_is_no_speedup() -> None:
    found = latency({"a": Stopwatch(list), "b": Stopwatch(list)}, against="original", seconds=0.02)
    assert all(isinstance(timings, dict) and "speedup" not in timings for timings in found.values())
    assert latency({}, against="original") == {}


def test_several_heats_count_as_so_many_openings() -> None:
    """Each heat is a ratio of its own: the median of them is given, and the lowest and the highest."""
    fast = np.full((4, 5), 1.0)
    heats = [{"original": fast * slower, "build": fast} for slower in (2.0, 2.5, 1.5)]
    speedup = figures(heats, "original")["build"]["speedup"]
    assert (speedup.value, speedup.n) == (2.0, 60)
    assert (speedup.spread.low, speedup.spread.high) == (1.5, 2.5)
    assert speedup.spread.what == "lowest and highest of 3 openings"


def test_a_heat_that_fails_is_the_reason_for_all() -> None:
    times = np.ones((2, 2))
    found = figures([{"original": times, "build": times}, {"original": times, "build": "it died"}], "original")
    assert found["build"] == "it died"
    assert found["original"]["latency"].n == 8
