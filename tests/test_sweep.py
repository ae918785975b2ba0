"""Sweep: what is done is kept, what is refused is a row, and a second run does nothing."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import REFUSED, crowd, evaluation, sensitivity
from models import conv_net, labelled, save
from onnx import TensorProto, helper

from polycast import fingerprint
from polycast.build import Build, write_manifest
from polycast.cli import main
from polycast.compile import compile
from polycast.data.arrays import open_npz
from polycast.errors import BudgetError, InputError, PolycastError, RecipeError, UnsupportedError
from polycast.evaluating.budget import Verdict, parse_size
from polycast.evaluating.evaluation import Evaluation, Subject
from polycast.load import load
from polycast.report import Report, against_of
from polycast.sweep import FILES, sweep

#: The module, whose name in the package is that of its function.
sweeping = sys.modules["polycast.sweep"]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Work in a folder with a model and its data. Evaluations are made up, but for where a test is about a real one."""
    monkeypatch.chdir(tmp_path)
    conv_net(Path("m.onnx"))
    labelled(Path("test.npz"))
    if "real" not in request.fixturenames:
        monkeypatch.setattr(sweeping, "evaluate", made_up)
        monkeypatch.setattr(sys.modules["polycast.compile"], "_let_verify_itself", lambda *_: None)
    monkeypatch.setattr("polycast.evaluating.bench.HEATS", 1)
    return tmp_path


def made_up(build: Build, *, max_size: str | None = None, **more: Any) -> Evaluation:
    """Evaluate nothing: the figures are made up, but for the size."""
    like = evaluation(build.precision, build.bytes, 0.04, 0.001, budget=None)
    limit = None if max_size is None else parse_size(max_size)
    verdict = Verdict("max_size", f"{limit} bytes", f"{build.bytes} bytes", limit is not None and build.bytes <= limit)
    return replace(like, build=Subject.of(build), against=against_of(build), budgets=(verdict,) if limit else ())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each time that something is compiled or evaluated."""
    noted: list[str] = []

    def noting(word: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted_call(*args: Any, **more: Any) -> Any:
            noted.append(word)
            return call(*args, **more)

        return noted_call

    for word in ("compile", "evaluate"):
        monkeypatch.setattr(sweeping, word, noting(word, getattr(sweeping, word)))
    return noted


def run(precision: str = "fp32,fp16", said: list[str] | None = None, **more: Any) -> Report:
    options: dict[str, Any] = {"data": "test.npz", "out": "out", "seconds": 0.02} | more
    return sweep("m.onnx", "cpu", precision, say=None if said is None else said.append, **options)


def files(folder: str = "out") -> dict[str, tuple[int, bytes]]:
    """Give time and contents of every file."""
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_a_second_sweep_does_nothing(calls: list[str]) -> None:
    said: list[str] = []
    first = run(said=said)
    assert calls == ["compile", "evaluate"] * 2
    assert re.fullmatch(r"\[1/2\] cpu-fp32: done \(.+ s; about .+ s left for 1 more\)", said[0])
    assert re.fullmatch(r"\[2/2\] cpu-fp16: done \(.+ s\)", said[1])
    before = files()
    assert {"cpu-fp32/model.onnx", ".polycast/cpu-fp16.json", *FILES.values()} <= set(before)
    calls.clear()
    said.clear()
    assert run(said=said) == first
    assert calls == []
    assert said == ["nothing to do: all 2 builds are in out as asked"]
    assert files() == before, "not even written again"


def test_an_interrupted_sweep_goes_on(calls: list[str]) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("[2/2]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)
    assert calls == ["compile", "evaluate", "compile"]
    kept = {name: facts for name, facts in files().items() if name.startswith("cpu-fp32/")}
    assert {name.partition("/")[0] for name in files()} == {"cpu-fp32", ".polycast"}, "nothing half-written"
    calls.clear()
    said: list[str] = []
    report = run(said=said)
    assert calls == ["compile", "evaluate"], "of the second alone"
    assert said[0] == "1 of 2 builds are kept from an earlier run"
    assert said[1].startswith("[2/2] cpu-fp16: done")
    assert [e.build.name for e in report.evaluations] == ["cpu-fp32", "cpu-fp16"]
    assert {name: facts for name, facts in files().items() if name.startswith("cpu-fp32/")} == kept


def test_a_build_is_kept_though_its_evaluation_was_interrupted(calls: list[str], monkeypatch: Any) -> None:
    def stopped(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweeping, "evaluate", stopped)
        run("fp32")
    assert calls == ["compile"]
    run("fp32")
    assert calls == ["compile", "evaluate"]


def other_data() -> dict[str, Any]:
    labelled(Path("other.npz"), seed=7)
    return {"data": "other.npz"}


def same_data_elsewhere() -> dict[str, Any]:
    Path("moved").mkdir()
    shutil.copy("test.npz", "moved/test.npz")
    return {"data": "moved/test.npz"}


def other_weights() -> dict[str, Any]:
    conv_net(Path("m.onnx"), seed=3)
    return {}


def less_than_was_written() -> dict[str, Any]:
    Path("out/cpu-fp32/model.onnx").write_bytes(b"cut")
    return {}


def another_build_in_its_place() -> dict[str, Any]:
    compile("m.onnx", out="elsewhere", precision="fp16")
    shutil.rmtree("out/cpu-fp32")
    shutil.copytree("elsewhere/cpu-fp16", "out/cpu-fp32")
    return {}


def a_damaged_record() -> dict[str, Any]:
    Path("out/.polycast/cpu-fp32.json").write_text('{"schema": 1, "made')
    return {}


def a_changed_library() -> dict[str, Any]:
    record = json.loads(Path("out/.polycast/cpu-fp32.json").read_text())
    record["made_from"]["libraries"]["onnxruntime"] = "1.0"
    Path("out/.polycast/cpu-fp32.json").write_text(json.dumps(record))
    return {}


BOTH = ["compile", "evaluate"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (other_data, BOTH),
        (same_data_elsewhere, []),
        (other_weights, BOTH),
        (less_than_was_written, BOTH),
        (another_build_in_its_place, BOTH),
        (a_damaged_record, BOTH),
        (a_changed_library, BOTH),
        (lambda: {"max_drop": "1pp"}, ["evaluate"]),
        (lambda: {"metrics": ["sqnr"]}, ["evaluate"]),
        (lambda: {"shapes": {"x": (1, 3, 8, 8)}}, BOTH),
        (lambda: {"calibration": "test.npz"}, BOTH),
    ],
    ids=[
        "data", "same-data", "weights", "truncated", "replaced", "record", "library", "budget", "metric", "shape",
        "calibration",
    ],
)  # fmt: skip
def test_what_it_is_made_from_is_what_it_is_kept_by(
    calls: list[str], change: Callable[[], dict[str, Any]], again: list[str]
) -> None:
    run("fp32")
    more = change()
    calls.clear()
    run("fp32", **more)
    assert calls == again
    calls.clear()
    run("fp32", **more)
    assert calls == []


def test_it_is_said_why_a_build_is_made_again() -> None:
    run()
    conv_net(Path("m.onnx"), seed=3)
    said: list[str] = []
    run(said=said, **other_data())
    assert said[0] == "made again, since data and model changed: cpu-fp32, cpu-fp16"


def test_a_sweep_that_has_moved_is_the_same_sweep(calls: list[str]) -> None:
    run("fp32")
    Path("out").rename("there")
    calls.clear()
    report = run("fp32", out="there")
    assert calls == []
    assert [e.build.path for e in report.evaluations] == ["there/cpu-fp32"]


def test_the_build_is_what_compile_makes() -> None:
    run("fp32")
    compile("m.onnx", out="alone", data="test.npz")
    contents = {name: facts[1] for name, facts in files("out/cpu-fp32").items()}
    assert contents == {name: facts[1] for name, facts in files("alone/cpu-fp32").items()}


def weightless(path: Path) -> None:
    """Write a model that has no weights, so that there is nothing to make float16."""
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]) for name in ("x", "y")]
    save(helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "relu", sides[:1], sides[1:]), path)


def test_what_is_refused_is_a_row_and_kept(calls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    weightless(Path("m.onnx"))
    said: list[str] = []
    report = run(metrics=["sqnr"], said=said)
    [refused] = report.refused
    assert (refused.name, refused.kind) == ("cpu-fp16", "PromiseError")
    assert refused.reason.startswith("nothing to make fp16")
    assert [e.build.name for e in report.evaluations] == ["cpu-fp32"]
    assert said[-1].startswith("[2/2] cpu-fp16: refused: nothing to make fp16")
    calls.clear()
    assert run(metrics=["sqnr"]) == report
    assert calls == []
    command = ["sweep", "m.onnx", "-p", "fp32,fp16", "--data", "test.npz", "--metric", "sqnr", "-o", "cli"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "cpu-fp16 was refused: nothing to make fp16" in captured.out
    assert "[2/2] cpu-fp16: refused" in captured.err, "said on stderr where that is no terminal, too"
    assert captured.err.endswith("report: cli/report.html\n")


def test_what_a_target_lacks_is_refused_and_what_none_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow:
        runtimes = ()
        precisions = ("fp32",)
        declined: Mapping[str, str] = {"bf16": "it computes in float32 all the same"}
        label = "narrow"

        def recipe(self, name: str) -> str | None:
            return "clean" if name == "fp32" else None

        def __str__(self) -> str:
            return "narrow"

    wide = sweeping.target_catalogue.find("cpu")
    monkeypatch.setattr(sweeping.target_catalogue, "find", {"narrow": Narrow(), "cpu": wide}.__getitem__)
    asked = sweeping._asked("narrow,cpu", "fp32,fp16,bf16")
    assert [each.name for each in asked[:4]] == ["narrow-fp32", "narrow-fp16", "narrow-bf16", "cpu-fp32"]
    for each, reason in ((asked[1], "it has fp32"), (asked[2], "it computes in float32 all the same")):
        with pytest.raises(UnsupportedError, match=f"narrow has no {each.precision}: {reason}"):
            sweeping._Run.build(None, each, None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="unknown precision for narrow 'fp16'"):
        sweeping._asked("narrow", "fp32,fp16")


def test_when_all_is_refused_that_is_an_error() -> None:
    weightless(Path("m.onnx"))
    with pytest.raises(PolycastError, match="nothing was built: cpu-fp16: nothing to make fp16"):
        run("fp16", metrics=["sqnr"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32,fp61"}, "unknown precision for cpu 'fp61'\nDid you mean 'fp16'?"),
        ({"precision": "fp32,"}, "an empty name"),
        ({"metrics": ["topp1"]}, "topp1"),
        ({"max_drop": "much"}, "max drop 'much' cannot be read"),
        ({"data": "none.npz"}, "no data at none.npz"),
        ({"calibration": "none.npz"}, "no data at none.npz"),
    ],
    ids=str,
)
def test_what_is_misspelt_is_said_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolycastError, match=re.escape(message)):
        run(**options)
    assert not Path("out").exists()


def test_data_that_does_not_fit_is_said_before_any_work() -> None:
    np.savez("bad.npz", z=np.zeros((4, 3), np.float32))
    with pytest.raises(InputError, match=r"bad\.npz"):
        run(data="bad.npz")
    assert not Path("out").exists()


def test_a_missed_budget_is_exit_status_3_and_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "m.onnx", "-p", "fp32,fp16", "--data", "test.npz", "--max-size", "2KB", "-o", "out"]
    assert main(command) == 3
    captured = capsys.readouterr()
    assert "[1/2] cpu-fp32: misses max size:" in captured.err
    assert "budget missed: cpu-fp32: max size:" in captured.err
    assert "cpu-fp16" in captured.out
    assert "misses max size" in Path("out/report.html").read_text()
    assert main(command) == 3, "and no less when all is kept"
    assert "nothing to do" in capsys.readouterr().err


def test_a_budget_that_auto_cannot_keep_is_exit_status_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def choosing(source: Any, targets: Any, precision: str, **more: Any) -> Any:
        if precision == "auto":
            assert (more["max_drop"], more["metrics"]) == ("1pp", ["top1"])
            raise BudgetError("no build keeps the budget: fp32: it is 4,000 bytes")
        return compile(source, targets, precision, **more)

    monkeypatch.setattr(sweeping, "compile", choosing)
    command = ["sweep", "m.onnx", "-p", "fp32,auto", "--data", "test.npz", "--max-drop", "1pp", "--metric", "top1"]
    assert main([*command, "-o", "out"]) == 3
    captured = capsys.readouterr()
    assert "budget missed: cpu-auto: no build keeps the budget" in captured.err
    assert "cpu-auto was refused: no build keeps the budget" in captured.out


def test_each_row_has_the_command_that_makes_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"x": (2, 3, 8, 8)}
    more: dict[str, Any] = {"metrics": ["sqnr"], "max_drop": 5, "shapes": shapes, "calibration": Path("test.npz")}
    report = run("fp16", max_memory="1GiB", max_cpu_share=50.0, **more)
    before = files("out/cpu-fp16")
    made, evaluated = (shlex.split(line) for line in report.commands["cpu-fp16"])
    assert made[:2] == ["polycast", "compile"]
    assert made[made.index("--max-cpu-share") + 1] == "50.0"
    assert evaluated[:2] == ["polycast", "evaluate"]
    shutil.rmtree("out/cpu-fp16")
    assert main(made[1:]) == 0
    assert {name: text for name, (_, text) in files("out/cpu-fp16").items()} == {n: t for n, (_, t) in before.items()}
    assert evaluated[2:] == shlex.split("out/cpu-fp16 --against m.onnx --data test.npz --metric sqnr --max-drop 5")


def test_a_model_in_memory_has_no_command() -> None:
    model = load("m.onnx")
    report = sweep(model, data=open_npz(Path("test.npz"), model.signature), out="out", seconds=0.02)
    assert report.commands == {}
    assert len(report.evaluations) == 1


@pytest.fixture
def real() -> None:
    """Ask for a real evaluation."""


@pytest.mark.usefixtures("real")
def test_the_report_is_there_in_every_form() -> None:
    report = run("fp32")
    assert Report.read(["out"]) == report
    assert Report.read(["out/report.json"]) == report
    rows = list(csv.DictReader(StringIO(Path("out/report.csv").read_text())))
    assert [row["build"] for row in rows] == ["original", "cpu-fp32"]
    assert Path("out/report.md").read_text() == report.render("md")
    html = Path("out/report.html").read_text()
    assert "fuse_conv_bn" in html, "sites come from the builds"
    assert html == Report.read(["out"]).render("html")


def test_what_a_layer_costs_in_float_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def costs(build: Build, floats: Build, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
        looked.append(f"{build.name} beside {floats.name} on {feeds['x'].shape}")
        return {"conv0": 1e-5}

    def with_layers(source: Any, targets: Any, precision: str, **more: Any) -> Any:
        [build] = compile(source, targets, precision, **more)
        if precision == "fp16":
            (build.path / "sensitivity.json").write_text(json.dumps(sensitivity(2)))
            facts = {name: fact for name, fact in build.manifest.items() if name not in ("schema", "files", "seal")}
            write_manifest(build.path, facts, {"model.onnx"})
        return [build]

    monkeypatch.setattr(sweeping, "layer_costs", costs)
    monkeypatch.setattr(sweeping, "compile", with_layers)
    report = run()
    shape = "(1, 3, 8, 8)"
    assert looked == [f"cpu-fp32 beside cpu-fp32 on {shape}", f"cpu-fp16 beside cpu-fp32 on {shape}"]
    first, second = report.sensitivity["cpu-fp16"]["layers"]
    assert first["seconds"] == 1e-5
    assert "seconds" not in second
    assert run() == report
    assert len(looked) == 2


def test_the_markdown_of_a_sweep() -> None:
    report = Report(crowd(), (REFUSED,))
    assert report.render("md") == (GOLDEN / "sweep.md").read_text(encoding="utf-8")


def test_json_and_csv_have_what_was_refused(tmp_path: Path) -> None:
    report = Report(crowd()[:1], (REFUSED,), {"cpu-fp32": ("polycast compile",)})
    (tmp_path / "r.json").write_text(report.render("json"))
    assert Report.read([tmp_path / "r.json"]) == report
    original, fp32, int3 = csv.DictReader(StringIO(report.render("csv")))
    assert (original["build"], fp32["build"]) == ("original", "cpu-fp32")
    assert (int3["build"], int3["evidence"]) == ("cpu-int3", "refused")
    assert int3["size_bytes"] == "not run: asked 90% of weights in int3, reached 12.1%"
    assert all(cell.strip() for row in (original, fp32, int3) for cell in row.values())
    (tmp_path / "r.json").write_text('{"evaluations": [], "refused": [{"name": "x"}]}')
    with pytest.raises(InputError, match="is no refused build"):
        Report.read([tmp_path / "r.json"])


def test_two_reports_that_call_two_things_alike_tell_neither() -> None:
    one = Report(crowd()[:1], commands={"cpu-fp32": ("a",), "cpu-int8": ("b",)})
    two = Report((replace(crowd()[0], against="kws (abc)"),), commands={"cpu-fp32": ("c",)})
    assert one.joined(two).commands == {"cpu-int8": ("b",)}


def test_how_long_the_rest_takes() -> None:
    assert sweeping._remaining([], {"a": 1.0}) == ""
    assert sweeping._remaining(["b"], {}) == "", "nothing is known yet"
    assert sweeping._remaining(["b", "c"], {"a": 10.0, "b": 30.0}) == "; about 50 s left for 2 more"
    assert [sweeping._clock(s) for s in (0.44, 9.96, 61, 100, 6300)] == ["0.4 s", "10.0 s", "61 s", "2 min", "1.8 h"]


def test_a_fingerprint_is_of_contents() -> None:
    Path("a").mkdir()
    labelled(Path("a/x.npz"))
    shutil.copytree("a", "b")
    assert fingerprint.of_data("a") == fingerprint.of_data(Path("b"))
    Path("b/x.npz").rename("b/y.npz")
    assert fingerprint.of_data("a") != fingerprint.of_data("b")
    signature = load("m.onnx").signature
    same, more = (open_npz(Path(name), signature) for name in ("test.npz", "test.npz"))
    assert fingerprint.of_data(same) == fingerprint.of_data(more)
    labelled(Path("other.npz"), seed=9)
    assert fingerprint.of_data(same) != fingerprint.of_data(open_npz(Path("other.npz"), signature))
    assert fingerprint.of_data(None) is None


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--help"]) == 0
    assert "  polycast sweep model.onnx " in capsys.readouterr().out
