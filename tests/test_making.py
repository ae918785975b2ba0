"""A second compile does nothing where it would do the same, and something where it would not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import conv_net, labelled

import polycast
from polycast import gate
from polycast.cli import main
from polycast.errors import PromiseError
from polycast.metrics import find
from polycast.targetbase import Answer, Probe
from polycast.targets.cpu import Cpu


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a model and its data; no build runs in a process of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[polycast.compile.__module__], "_let_verify_itself", lambda *_: None)
    conv_net(Path("m.onnx"))
    labelled(Path("d.npz"))


def made(precision: str = "fp32", **options: object) -> list[str]:
    """Compile. Returns: the builds that were made, and not found up to date."""
    builds = polycast.compile("m.onnx", precision=precision, out="out", **{"data": "d.npz"} | options)
    return [build.name for build in builds if build.seconds is not None]


def files() -> dict[str, tuple[int, bytes]]:
    """Give time and contents of every file."""
    found = (path for path in Path("out").rglob("*") if path.is_file())
    return {path.as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_a_second_compile_does_nothing_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    order = ["compile", "m.onnx", "-p", "fp32,fp16", "--data", "d.npz", "-o", "out"]
    assert main(order) == 0
    first, before = capsys.readouterr().out, files()
    assert main(order) == 0
    second = capsys.readouterr().out
    assert files() == before, "not even written again"
    assert second.count("up to date") == 2
    assert "up to date" not in first
    assert second.partition("\n\n")[2] == first.partition("\n\n")[2], "the same table"
    assert main([*order, "--force"]) == 0
    assert "up to date" not in capsys.readouterr().out
    assert {name: each for name, (_, each) in files().items()} == {name: each for name, (_, each) in before.items()}


def test_what_takes_long_to_import_is_not(tmp_path: Path) -> None:
    assert made() == ["cpu-fp32"]
    script = "import sys; from polycast.cli import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    command = [sys.executable, "-c", script, "compile", "m.onnx", "--data", "d.npz", "-o", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "up to date" in done.stdout
    assert not {"tvm", "torch", "onnxruntime", "scipy"} & set(done.stdout.split())


def other_model() -> None:
    conv_net(Path("m.onnx"), seed=3)


def other_data() -> None:
    with np.load("d.npz") as arrays:
        np.savez("d.npz", **{name: array[::-1] for name, array in arrays.items()})


def a_file_that_was_tampered_with() -> None:
    """One byte is another, and the size is the same."""
    path = Path("out/cpu-fp32/model.onnx")
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def a_manifest_that_was_tampered_with() -> None:
    path = Path("out/cpu-fp32/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["golden"]["tolerance"] = 1.0
    path.write_text(json.dumps(manifest))


def a_file_that_was_added() -> None:
    Path("out/cpu-fp32/extra").write_text("")


def a_build_that_is_gone() -> None:
    shutil.rmtree("out/cpu-fp32")


def another_library() -> None:
    path = Path("out/.polycast/cpu-fp32.json")
    record = json.loads(path.read_text())
    record["made_from"]["libraries"]["onnxruntime"] = "1.0"
    path.write_text(json.dumps(record))


def a_record_that_was_cut_short() -> None:
    Path("out/.polycast/cpu-fp32.json").write_text('{"schema": 1, "made')


@pytest.mark.parametrize(
    "change",
    [
        other_model,
        other_data,
        a_file_that_was_tampered_with,
        a_manifest_that_was_tampered_with,
        a_file_that_was_added,
        a_build_that_is_gone,
        another_library,
        a_record_that_was_cut_short,
    ],
)
def test_whatever_is_changed_is_made_again(change: Callable[[], None]) -> None:
    assert made() == ["cpu-fp32"]
    change()
    assert made() == ["cpu-fp32"]
    assert made() == []


@pytest.mark.parametrize(
    "option",
    [
        {"shapes": {"x": (1, 3, 8, 8)}},
        {"calibration": "d.npz"},
        {"max_memory": "1GiB", "calibration": "d.npz"},
        {"max_cpu_share": 50.0},
        {"passes": "clean"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_that_is_another_makes_another_build(option: dict[str, object]) -> None:
    assert made() == ["cpu-fp32"]
    name = "cpu-custom" if "passes" in option else "cpu-fp32"
    assert made(**option) == [name]
    assert made(**option) == []


def test_it_says_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    made()
    other_model()
    other_data()
    assert main(["compile", "m.onnx", "--data", "d.npz", "-o", "out"]) == 0
    assert "again since data and model changed" in capsys.readouterr().out


def test_one_of_several_is_made_again_and_the_table_is_of_all() -> None:
    assert made("fp32,fp16") == ["cpu-fp32", "cpu-fp16"]
    before = gate.read(Path("out"))
    a_file_that_was_tampered_with()
    assert made("fp32,fp16") == ["cpu-fp32"]
    assert gate.read(Path("out")) == before, "what was kept is run again for it"
    Path("out/agreement.md").write_text("")
    assert made("fp32,fp16") == []
    assert before.markdown() == Path("out/agreement.md").read_text()


def test_builds_that_do_not_agree_do_not_agree_the_second_time_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_tolerance", lambda *_: 0.0)
    with pytest.raises(PromiseError, match="do not agree") as first:
        made("fp32,fp16")
    before = files()
    with pytest.raises(PromiseError, match="do not agree") as second:
        made("fp32,fp16")
    assert str(second.value) == str(first.value)
    assert files() == before


def test_what_could_not_be_run_is_made_again_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    yes = Answer(True, "here")
    with monkeypatch.context() as patch:
        patch.setattr(Cpu, "probe", lambda self: Probe(yes, Answer(False, "not this CPU"), "device"))
        assert made() == ["cpu-fp32"]
        assert made() == []
    assert made() == ["cpu-fp32"]
    assert made() == []


def test_tools_and_tuned_schedules_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made() == ["cpu-fp32"]
    monkeypatch.setattr(Cpu, "made_with", lambda self: {"tuned": "anew"})
    assert made() == ["cpu-fp32"]
    assert made() == []


def test_a_choice_by_measuring_is_kept_by_what_it_depends_on() -> None:
    from polycast.evaluating.budget import Budget
    from polycast.making import choosing

    known = choosing(Cpu(), (), Budget.parse("1pp", None, None), [find("top1")])
    others = [
        choosing(Cpu(), (), Budget.parse("2pp", None, None), [find("top1")]),
        choosing(Cpu(), (), Budget.parse("1pp", None, None), [find("sqnr")]),
        choosing(Cpu(), (Cpu("avx2"),), Budget.parse("1pp", None, None), [find("top1")]),
    ]
    assert known == choosing(Cpu(), (), Budget.parse("1pp", None, None), [find("top1")])
    assert all(other != known for other in others)


def test_a_sweep_takes_what_compile_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the reverse: both write down the same of what a build was made from."""
    from polycast.errors import PolycastError

    def stopped(*_: object, **__: object) -> None:
        raise PolycastError("not evaluated")

    monkeypatch.setattr(sys.modules[polycast.sweep.__module__], "evaluate", stopped)
    assert made() == ["cpu-fp32"]
    before = files()
    with pytest.raises(PolycastError, match="nothing was built"):
        polycast.sweep("m.onnx", "cpu", "fp32,fp16", data="d.npz", out="out")
    assert {name: each for name, each in files().items() if name in before} == before
    assert made("fp16") == []
