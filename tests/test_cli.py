"""The command line as a user meets it: what it prints, its exit status, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_net, labelled
from onnx import TensorProto, helper

from polycast.cli import app, main
from polycast.manual import EXAMPLES
from polycast.targets import find


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    conv_net(Path("m.onnx"))
    labelled(Path("test.npz"))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    """Run a command that must fail; give what it says on stderr. Stdout stays empty, and no output folder is left."""
    assert main(list(arguments)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert not Path("out").exists()
    return captured.err


def test_compile_prints_one_json_object(here, capsys):
    assert main(["compile", "m.onnx", "-t", "cpu", "-p", "fp32,fp16", "--data", "test.npz", "-o", "out", "--json"]) == 0
    captured = capsys.readouterr()
    builds = json.loads(captured.out)["builds"]
    assert [(b["target"], b["precision"], b["path"]) for b in builds] == [
        ("cpu", "fp32", "out/cpu-fp32"),
        ("cpu", "fp16", "out/cpu-fp16"),
    ]
    for build in builds:
        assert {"bytes", "promise", "agreement", "evidence", "steps"} <= set(build)
        assert set(build["promise"]) == {"asked", "reached"}
        assert all({"pass", "sites", "skips"} == set(step) for step in build["steps"])
        assert build["agreement"]["n"] == 16


def test_a_memory_limit_has_the_estimate_said_before_anything_is_looked_at(here, capsys, monkeypatch):
    monkeypatch.setenv("POLYCAST_CACHE", str(here / "cache"))
    order = ["compile", "m.onnx", "-p", "int8", "--calibration", "test.npz", "-o", "out"]
    assert main([*order, "--max-memory", "1GiB"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("calibrate")]
    assert said
    assert all(re.fullmatch(r"calibrate, at most \d+ MiB", line) for line in said)
    assert len(said) == len(set(said))
    monkeypatch.setenv("POLYCAST_CACHE", str(here / "another"))
    assert main(order) == 0
    assert "calibrate" not in capsys.readouterr().err


def test_the_whole_line(here, capsys):
    assert main(["compile", "m.onnx", "-t", "cpu", "-o", "out", "--keep", "kept"]) == 0
    assert "out/cpu-fp32" in capsys.readouterr().out
    assert Path("kept/cpu-fp32/00-load.onnx").is_file()
    assert main(["verify", "out/cpu-fp32"]) == 0
    assert "golden sample(s) within tolerance" in capsys.readouterr().out
    evaluate = ["evaluate", "out/cpu-fp32", "--against", "m.onnx", "--data", "test.npz"]
    assert main([*evaluate, "--json", "e.json", "--max-drop", "1pp", "--max-size", "1MiB"]) == 0
    assert "cpu" in capsys.readouterr().out
    for form in ("table", "md", "json", "csv"):
        assert main(["report", "e.json", "out", "--format", form]) == 0
        assert "fp32" in capsys.readouterr().out
    assert main(["report", "e.json", "--format", "md", "-o", "r/report.md"]) == 0
    assert "fp32" in Path("r/report.md").read_text()
    assert main(["show", "out/cpu-fp32"]) == 0
    assert "fuse_conv_bn" in capsys.readouterr().out


def test_a_missed_budget_is_exit_status_3(here, capsys):
    assert main(["compile", "m.onnx", "-o", "out"]) == 0
    capsys.readouterr()
    evaluate = ["evaluate", "out/cpu-fp32", "--against", "m.onnx", "--data", "test.npz"]
    assert main([*evaluate, "--max-size", "1KB"]) == 3
    captured = capsys.readouterr()
    assert "budget missed" in captured.err
    assert "fp32" in captured.out, "the report is printed all the same"


def test_show_says_what_each_pass_would_do(here, capsys):
    assert main(["show", "m.onnx"]) == 0
    out = capsys.readouterr().out
    assert "takes  x: float32[batch, 3, 8, 8]" in out
    assert "fuse_conv_bn" in out
    assert main(["show", "m.onnx", "--passes", "fuse_conv_bn", "--json"]) == 0
    [step] = json.loads(capsys.readouterr().out)["steps"]
    assert (step["pass"], step["sites"]) == ("fuse_conv_bn", 1)


def test_passes_and_targets_are_listed(here, capsys):
    assert main(["passes"]) == 0
    out = capsys.readouterr().out
    assert "fold(max_bytes=1048576)" in out
    assert "needs skip-norm" in out
    assert main(["targets"]) == 0
    assert "cpu" in capsys.readouterr().out
    assert main(["targets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["run"]["yes"] is True


@pytest.mark.parametrize("name", app.commands)
def test_every_command_has_help_with_examples_that_it_takes(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage: polycast" in out
    assert EXAMPLES[name]
    for example in EXAMPLES[name]:
        assert f"\n  {example}\n" in out, "whole, on a line of its own"
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("polycast", name)
        given = app.commands[name].make_context(name, arguments).params  # raises for what the command does not take
        for target in given.get("target", "cpu").split(","):
            assert set(given.get("precision", "auto").split(",")) <= {"auto", *find(target).precisions}


def test_usage_is_exit_status_2(here, capsys):
    assert "Missing option" in refused(capsys, "compile", "m.onnx", status=2)
    assert "is not NAME=SIZE" in refused(capsys, "compile", "m.onnx", "-o", "out", "--shape", "x=1,,2", status=2)
    assert "No such command" in refused(capsys, "compiel", status=2)


def test_what_is_misspelt_is_named(here, capsys):
    assert "Did you mean 'cpu'?" in refused(capsys, "compile", "m.onnx", "-t", "cpuu", "-o", "out")
    assert "Did you mean 'fp16'?" in refused(capsys, "compile", "m.onnx", "-p", "fp61", "-o", "out")
    assert "Did you mean 'x'?" in refused(capsys, "compile", "m.onnx", "--shape", "xx=1,3,8,8", "-o", "out")


def test_a_file_that_is_no_model(here, capsys):
    Path("no.onnx").write_text("dear diary")
    assert "no.onnx" in refused(capsys, "compile", "no.onnx", "-o", "out")
    assert "absent.onnx does not exist" in refused(capsys, "compile", "absent.onnx", "-o", "out")
    Path("w.pt").write_bytes(b"\x80\x04K\x01.")
    assert "pickle" in refused(capsys, "compile", "w.pt", "-o", "out")


def test_a_truncated_model(here, capsys):
    whole = Path("m.onnx").read_bytes()
    Path("cut.onnx").write_bytes(whole[: len(whole) // 2])
    assert "cut.onnx" in refused(capsys, "compile", "cut.onnx", "-o", "out")


def test_external_data_that_is_missing_or_leaves_the_folder(here, capsys):
    model = onnx.load("m.onnx")
    onnx.save(model, "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    Path("e.data").rename("moved.data")
    assert "e.data" in refused(capsys, "compile", "e.onnx", "-o", "out")
    Path("sub").mkdir()
    stray = onnx.load("e.onnx", load_external_data=False)
    for initializer in stray.graph.initializer:
        [entry] = [e for e in initializer.external_data if e.key == "location"]
        entry.value = "../moved.data"
    Path("sub/e.onnx").write_bytes(stray.SerializeToString())
    assert "folder" in refused(capsys, "compile", "sub/e.onnx", "-o", "out")


def test_no_opset_import(here, capsys):
    model = onnx.load("m.onnx")
    del model.opset_import[:]
    Path("n.onnx").write_bytes(model.SerializeToString())
    assert "opset_import" in refused(capsys, "compile", "n.onnx", "-o", "out")


def test_an_unknown_op_of_a_custom_domain(here, capsys):
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), "odd.onnx")
    assert "com.example.Frobnicate" in refused(capsys, "compile", "odd.onnx", "-o", "out")


X = np.zeros((4, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": X}, ("'y'", "x")),
        ({"x": X[:, :2]}, ("x", "[1, 2, 8, 8]")),
        ({"x": X.astype(np.float64)}, ("float64", "float32")),
        ({"x": np.where(np.arange(8) == 5, np.nan, X).astype(np.float32)}, ("expected a finite number", "x")),
        ({"x": X[:0]}, ("empty data set",)),
    ],
    ids=["name", "shape", "dtype", "nan", "empty"],
)
@pytest.mark.parametrize("option", ["--data", "--calibration"])
def test_data_that_does_not_fit(here, capsys, arrays, words, option):
    np.savez("bad.npz", **arrays)
    said = refused(capsys, "compile", "m.onnx", option, "bad.npz", "-o", "out")
    assert all(word in said for word in ("bad.npz", *words)), said


def test_nan_in_the_last_row_is_found_before_any_work(here, capsys):
    x = np.random.default_rng(0).standard_normal((200, 3, 8, 8)).astype(np.float32)
    x[-1, 0, 0, 0] = np.inf
    np.savez("late.npz", x=x)
    assert "late.npz[199]" in refused(capsys, "compile", "m.onnx", "--data", "late.npz", "-o", "out")


def test_a_full_disk(here, capsys, monkeypatch):
    """Every write past 4 KiB fails, as on a full disk: nothing is left, and the old build survives."""
    assert main(["compile", "m.onnx", "-o", "out"]) == 0
    capsys.readouterr()
    before = Path("out/cpu-fp32/manifest.json").read_bytes()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from polycast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for out in ("out", "other"):
        command = [sys.executable, "-B", "-c", code, "compile", "m.onnx", "-o", out, "--force"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert f"cannot write {out}/cpu-fp32" in done.stderr
        assert ".partial" not in done.stderr
        assert "Traceback" not in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert Path("out/cpu-fp32/manifest.json").read_bytes() == before
    assert main(["verify", "out/cpu-fp32"]) == 0
    assert not Path("other").exists()
    assert sorted(p.name for p in Path("out").iterdir()) == [".polycast", "cpu-fp32"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compile(here, capsys, stop):
    """The signal comes while the build is being written: the old build survives, nothing half-written is left."""
    assert main(["compile", "m.onnx", "-o", "out"]) == 0
    before = Path("out/cpu-fp32/manifest.json").read_bytes()
    code = (
        "import sys, time, pathlib; from polycast.targets.cpu import Cpu; from polycast.cli import main;"
        "Cpu.open = lambda self, folder: (pathlib.Path('reached').touch(), time.sleep(60));"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compile", "m.onnx", "-o", "out", "--force"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not Path("reached").exists():
        assert running.poll() is None, running.stderr.read() if running.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(running.pid, stop)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said.strip() == "polycast: interrupted"
    assert Path("out/cpu-fp32/manifest.json").read_bytes() == before
    assert sorted(p.name for p in Path("out").iterdir()) == [".polycast", "cpu-fp32"]


def test_debug_shows_the_traceback(here):
    from polycast.errors import InputError

    with pytest.raises(InputError):
        main(["--debug", "compile", "absent.onnx", "-o", "out"])


def test_shell_completion_is_there(here):
    environment = {**os.environ, "_POLYCAST_COMPLETE": "bash_source"}
    code = "from polycast.cli import main; main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "_polycast_completion" in done.stdout
