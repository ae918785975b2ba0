"""The doctor: what it says of each target and runtime, as data and as text."""

from __future__ import annotations

import pytest

from polycast.cli import main
from polycast.doctor import examine, render
from polycast.targets import _aarch64, catalogue, find

LINES = {
    "target": "cuda:sm_90@onnxruntime",
    "runtime": "onnxruntime",
    "arches": ["sm_80", "sm_90"],
    "precisions": ["fp32", "fp16"],
    "declined": {},
    "features": [],
    "hardware": "",
    "evidence": "device",
    "build": {"yes": True, "reason": "nothing is needed", "mend": ""},
    "run": {"yes": False, "reason": "no NVIDIA driver is here", "mend": "apt install nvidia-driver"},
}


def test_every_target_is_examined_with_every_runtime():
    rows = examine()
    assert [row["target"] for row in rows if not find(row["target"]).arch] == [
        str(kind(runtime=runtime)) for kind in catalogue().values() for runtime in kind.runtimes
    ]
    for row in rows:
        assert find(row["target"]).executor == row["runtime"]
        assert row["precisions"]
        assert set(row["build"]) == set(row["run"]) == {"yes", "reason", "mend"}


@pytest.mark.skipif(_aarch64.is_here(), reason="this machine is a 64-bit ARM itself")
def test_a_chip_that_is_another_case_here_has_a_row_of_its_own(monkeypatch):
    monkeypatch.setenv("POLYCAST_CACHE", "/nowhere")
    monkeypatch.setattr("polycast.environments.sysroot.shutil.which", lambda *_, **__: "/usr/bin/true")
    rows = {row["target"]: row for row in examine()}
    for runtime in ("", "@tvm", "@litert"):
        arm, here = rows[f"cpu:aarch64{runtime}"], rows[f"cpu{runtime}"]
        assert (here["evidence"], arm["evidence"]) == ("device", "emulated")
        assert arm["run"]["mend"] == "polycast setup cpu:aarch64"
    assert "cuda:sm_90" not in rows, "a chip that is no other case is listed with the others"
    assert rows["android:armv7@tvm"]["build"]["yes"] is False


def test_what_cannot_be_done_has_its_reason_and_what_mends_it():
    text = render([LINES])
    assert text.splitlines()[:2] == [
        "target                  runtime      build  run  on",
        "cuda:sm_90@onnxruntime  onnxruntime  yes    no   –",
    ]
    assert "  run         no: no NVIDIA driver is here\n              to mend it: apt install nvidia-driver\n" in text
    assert "  chips       sm_80, sm_90\n" in text


def test_what_stands_in_for_hardware_is_told():
    row = LINES | {"run": {"yes": True, "reason": "a stand-in", "mend": "get one"}, "hardware": "pocl"}
    assert "yes  pocl (emulated)" in render([row | {"evidence": "emulated"}])
    assert "yes  pocl\n" in render([row | {"evidence": "device"}])
    assert "better: get one" in render([row])


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_narrow_terminal_folds_and_loses_nothing(width):
    reason = "a reason that is much longer than the narrowest of these terminals is wide, and then some"
    row = LINES | {"build": {"yes": False, "reason": reason, "mend": ""}}
    text = render([row], width)
    assert all(len(line) <= width for line in text.splitlines())
    assert set(reason.split()) <= set(text.split())


def test_a_terminal_has_colors_and_a_pipe_has_none():
    assert "\x1b[" in render([LINES], 80, color=True)
    assert "\x1b[" not in render([LINES], 80)


def test_the_command_never_fails(capsys):
    assert main(["targets"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{row['target']}\n" in out for row in examine())
