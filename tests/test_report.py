"""Reports: their text is held to the letter, since it is what users read."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polycast.errors import InputError, RecipeError
from polycast.evaluating.budget import Verdict
from polycast.evaluating.evaluation import Evaluation, Subject
from polycast.evaluating.scoring import Difference
from polycast.measure import Measurement
from polycast.rendering.tables import aligned, byte_unit, figure, points, signed
from polycast.report import Report
from polycast.statistics import Interval
from polycast.targetbase import Evidence

N = 4800
AGAINST = {"against": "mnist (2f06e72de813)", "data": "test.npz", "n": N}


def m(
    name: str,
    value: float,
    unit: str,
    better: str = "lower",
    n: int = 500,
    evidence: Evidence = "device",
    spread: tuple[float, float] | None = None,
    note: str = "",
) -> Measurement:
    interval = Interval(*spread, "95 %") if spread else None
    return Measurement(name, value, unit, n, better, evidence, interval, note)  # type: ignore[arg-type]


def by_name(*measurements: Measurement) -> dict[str, Measurement]:
    return {each.name: each for each in measurements}


def figures(size: float, top1: float, latency: float, memory: float, load: float) -> list[Measurement]:
    return [
        m("size", size, "bytes", n=1),
        m("top1", top1, "share", "higher", N, spread=(top1 - 0.004, top1 + 0.004)),
        m("latency", latency, "ms", spread=(latency * 0.98, latency * 1.02)),
        m("memory", memory * 2**20, "bytes", n=3),
        m("load_time", load, "ms", n=3),
    ]


def change(value: float, low: float, high: float) -> dict[str, Difference]:
    return {"top1": Difference("top1", value, "share", N, "higher", Interval(low, high, "95 % Agresti-Min, paired"))}


BASELINE = by_name(*figures(26454, 0.982916, 0.0491, 10.5, 14.1))
MET = Verdict("max_drop", "1pp", "top1 is 0.00 pp worse", True)

FP32 = Evaluation(
    Subject("cpu-fp32", "cpu", "fp32", "out/cpu-fp32", {"asked": {"weights": {"as given": 1.0}}, "reached": {}}),
    **AGAINST,
    baseline=BASELINE,
    measurements=by_name(
        *figures(26406, 0.982916, 0.0312, 10.4, 24.6),
        m("speedup", 1.574, "x", "higher", spread=(1.55, 1.6)),
        m("agreement", 1.0, "share", "higher", N),
        m("sqnr", float("inf"), "dB", "higher", N, note="equal to the original, bit for bit"),
    ),
    differences=change(0.0, -0.00041, 0.00041),
    not_run={},
    budgets=(MET,),
)
FP16 = Evaluation(
    Subject(
        "cpu-fp16",
        "cpu",
        "fp16",
        "out/cpu-fp16",
        {
            "asked": {"weights": {"fp16": 0.9}, "macs": {"fp16": 0.9}},
            "reached": {"weights": {"fp16": 0.984, "fp32": 0.016}, "macs": {"fp16": 1.0}},
        },
    ),
    **AGAINST,
    baseline=BASELINE,
    measurements=by_name(
        *figures(13302, 0.969166, 0.0884, 11.2, 31.0),
        m("speedup", 0.5554, "x", "higher", spread=(0.54, 0.57)),
        m("agreement", 0.985, "share", "higher", N),
        m("sqnr", 61.234, "dB", "higher", N),
    ),
    differences=change(-0.01375, -0.0174, -0.01),
    not_run={},
    budgets=(Verdict("max_drop", "1pp", "top1 is 1.38 pp worse", False),),
    notes=("NaN in the outputs of the build: 2 of 4,800 rows",),
)
EMULATED = Evaluation(
    Subject("android-arm64-fp32", "android:arm64", "fp32", "out/android-arm64-fp32", FP32.build.promise),
    **AGAINST,
    baseline=BASELINE,
    measurements=by_name(
        m("size", 31337, "bytes", n=1),
        m("top1", 0.982708, "share", "higher", N, "emulated"),
        m("agreement", 0.9998, "share", "higher", N, "emulated"),
        m("sqnr", 128.4, "dB", "higher", N, "emulated"),
    ),
    differences=change(-0.000208, -0.00082, 0.0004),
    not_run=dict.fromkeys(("latency", "speedup"), "emulated: numerics only, never speed")
    | dict.fromkeys(("memory", "load_time"), "no phone is connected"),
)
REPORT = Report((FP32, FP16, EMULATED))

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("golden", "form", "width"),
    [
        ("report-80.txt", "table", 80),
        ("report-wide.txt", "table", 200),
        ("report.md", "md", 0),
        ("report.csv", "csv", 0),
    ],
)
def test_the_text_of_a_report(golden: str, form: str, width: int) -> None:
    assert REPORT.render(form, width=width or None) == (GOLDEN / golden).read_text(encoding="utf-8")


def test_csv_has_a_figure_or_a_reason_in_every_cell() -> None:
    rows = list(csv.DictReader(StringIO(REPORT.render("csv"))))
    assert [row["build"] for row in rows] == ["original", "cpu-fp32", "cpu-fp16", "android-arm64-fp32"]
    assert all(cell.strip() for row in rows for cell in row.values())
    original, _, fp16, emulated = rows
    assert float(fp16["top1"]) == 0.969166
    assert (fp16["top1_change"], fp16["top1_change_low"], fp16["top1_change_high"]) == ("-0.01375", "-0.0174", "-0.01")
    assert fp16["missed"] == "max drop: top1 is 1.38 pp worse, allowed 1pp"
    assert fp16["promise"] == "fp16: 98.4 % of weights (asked 90 %), 100 % of MACs (asked 90 %)"
    assert emulated["evidence"] == "emulated"
    assert emulated["latency_ms"] == "not run: emulated: numerics only, never speed"
    assert (original["agreement"], original["top1_change"]) == ("not run: is the original", "n/a")
    assert (original["size_bytes"], original["memory_bytes"]) == ("26454", "11010048")


def test_json_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(REPORT.render("json"))
    assert Report.read([tmp_path / "report.json"]) == REPORT
    (tmp_path / "one.json").write_text(json.dumps(FP16.to_json()))
    (tmp_path / "list.json").write_text(json.dumps([FP32.to_json()]))
    assert Report.read([tmp_path / "list.json", tmp_path / "one.json"]) == Report((FP32, FP16))


def manifest(origin: str = "2f06e72de813" + "0" * 52) -> dict[str, object]:
    return {
        "schema": 1,
        "model": {"name": "mnist", "origin": {"uri": "mnist.onnx", "sha256": origin}, "digest": "d"},
        "target": "cpu",
        "evidence": "device",
        "recipe": {"name": "fp32", "pipeline": "clean"},
        "promise": FP32.build.promise,
        "signature": {"inputs": [], "outputs": []},
        "steps": [],
        "runtime": {},
        "golden": {"n": 1},
        "agreement": {"n": 16, "samples": "data", "same_top1": 1.0, "sqnr_db": 130.0},
        "files": {"model.onnx": {"sha256": "", "bytes": 26406, "deployed": True}},
    }


def test_a_folder_of_builds_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cpu-fp32", "cpu-other"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "manifest.json").write_text(json.dumps(manifest()))
    (tmp_path / "out" / "e.json").write_text(json.dumps(FP32.to_json()))
    (tmp_path / "out" / "settings.json").write_text('{"not": "ours"}')
    monkeypatch.chdir(tmp_path)
    found = Report.read(["out"])
    assert [e.build.name for e in found.evaluations] == ["cpu-fp32", "cpu-other"]
    fp32, other = found.evaluations
    assert fp32 == FP32, "its build is there already"
    assert (other.n, other.measurements["agreement"].n) == (0, 16)
    text = found.render("md")
    assert text.count("**mnist") == 1, "a build of the same model stands beside its evaluated sisters"
    assert "not run: needs polycast evaluate" in text
    assert "- cpu-other: agreement and sqnr are of compile time, on 16 data samples" in text


def test_evaluations_of_two_models_are_two_tables() -> None:
    other = Evaluation(**{**vars(FP16), "against": "kws (abc)"})
    text = Report((FP32, other)).render("md")
    assert text.count("| original") == 2


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"evalu')
    (tmp_path / "other.json").write_text('{"not": "ours"}')
    for name, message in (
        ("none.json", "cannot read .*none.json: No such file"),
        ("broken.json", "broken.json is no JSON"),
        ("other.json", "other.json holds no evaluation"),
    ):
        with pytest.raises(InputError, match=message):
            Report.read([tmp_path / name])
    with pytest.raises(InputError, match=r"no builds and no evaluations in .*\nGive a folder that polycast compile"):
        Report.read([tmp_path])
    with pytest.raises(RecipeError, match="unknown format 'markdown'"):
        REPORT.render("markdown")


@pytest.mark.parametrize("width", [20, 50, 66, 79, 101, 140])
def test_a_table_is_never_wider_than_its_terminal(width: int) -> None:
    text = REPORT.render("table", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    shown = " ".join(text.split())
    for head in ("agreement", "latency", "memory", "load", "sqnr", "promise"):
        assert head in shown, "shown, or named as left out"


def test_colour_is_asked_for() -> None:
    assert "\x1b[" in REPORT.render("table", width=80, color=True)
    assert "\x1b[" not in REPORT.render("table", width=80)


@pytest.mark.parametrize("spread", [(0.97, 1.01), (0.985, 0.995)], ids=["not sure", "as two sessions differ"])
def test_a_tie_is_not_called_slower(spread: tuple[float, float]) -> None:
    speedup = m("speedup", 0.99, "x", "higher", spread=spread)
    tie = Evaluation(**{**vars(FP32), "measurements": FP32.measurements | {"speedup": speedup}})
    assert "slower" not in Report((tie,)).render("table", width=80)


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ({}, ""),
        ("the runtime gives no per-op times", ": the runtime gives no per-op times"),
        ({"Conv": 31e-4, "Cast": 9e-4, "Mul": -2e-4}, ": most of it in Conv (+3.10 ms), Cast (+0.900 ms)"),
        ({"Conv": 3.0, "Cast": 0.1}, ": most of it in Conv (+3,000 ms)"),
        (dict.fromkeys("ABCDEFG", 1e-3), ": part of it in A (+1.00 ms), B (+1.00 ms), C (+1.00 ms)"),
        ({"Conv": -1e-3, "Add": 0.0}, ": none of it in its ops"),
    ],
    ids=str,
)
def test_what_costs_the_time_is_said_with_slower(costs: dict[str, float] | str, said: str) -> None:
    text = Report((Evaluation(**{**vars(FP16), "costs": costs}),)).render("md")
    assert f"- cpu-fp16 is 1.80x slower than the original{said}\n" in text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0"), (0.000293, "0.000293"), (0.0000123, "1.23e-05"), (0.0999999, "0.100"), (4.2, "4.20"), (99.97, "100"),
        (9.996, "10.0"), (1234.5, "1,234"), (-0.5, "-0.500"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_three_significant_digits(x: float, text: str) -> None:
    assert figure(x) == text


@given(st.floats(1e-4, 1e6))
def test_a_figure_is_within_half_a_unit_of_its_third_digit(x: float) -> None:
    assert abs(float(figure(x).replace(",", "")) - x) <= 0.00501 * x


def test_a_change_of_rank_correlation_has_four_decimals() -> None:
    spearman = {"spearman": Difference("spearman", -0.00123, "rho", 1500, "higher", Interval(-0.002, -0.0004, "x"))}
    measured = by_name(m("size", 10, "bytes"), m("spearman", 0.86716, "rho", "higher", 1500))
    text = Report((Evaluation(**{**vars(FP32), "measurements": measured, "differences": spearman}),)).render("md")
    assert "0.8672 (-0.0012 [-0.0020, -0.0004])" in text


def test_signs_points_units_and_alignment() -> None:
    assert [signed(0.5), signed(-0.5), signed(0)] == ["+0.500", "-0.500", "+0"]
    assert [points(0.00414), points(-0.00004), points(-0.2)] == ["+0.41", "+0.00", "-20.00"]
    assert [byte_unit([3])[0], byte_unit([1023, 2**20])[0], byte_unit([2**30])[0]] == ["B", "MiB", "GiB"]
    assert aligned(["1.5", "12.25", "not run", "3"]) == [" 1.5 ", "12.25", "not run", " 3   "]
