"""The gate: what its cells hold, judged by plain numpy, and what does not pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_net, labelled

import polycast
from polycast import gate
from polycast.build import Build
from polycast.cli import main
from polycast.errors import PassError, PromiseError
from polycast.golden import Golden
from polycast.targets.cpu import Cpu

RNG = np.random.default_rng(0)
SCORES = [RNG.standard_normal((2, 5)).astype(np.float32) for _ in range(4)]
GOLDEN = Golden("seeded", tuple({"x": scores} for scores in SCORES), tuple([scores] for scores in SCORES))


class Giving:
    """A session that gives its inputs, moved by so much."""

    evidence = "device"

    def __init__(self, by: float) -> None:
        self.by = by

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [feeds["x"] + np.float32(self.by)]


def build(name: str, **facts: Any) -> Build:
    manifest = {
        "model": {"digest": name},
        "recipe": {"pipeline": "clean"},
        "agreement": {"n": 4, "tolerance": 1e-3},
        "golden": {"n": 3, "tolerance": 1e-3},
        "evidence": "device",
    }
    return Build(Path(name), manifest | facts)


def runs(**moved: float) -> gate.Runs:
    kept = gate.Runs()
    for name, by in moved.items():
        session = kept.record(name, Giving(by))
        for feeds in GOLDEN.feeds:
            session.run(feeds)
    return kept


def test_every_build_stands_beside_the_original_and_every_other():
    table = gate.compare([build("a"), build("b"), build("c")], GOLDEN, runs(a=0, b=1e-4, c=-1e-4))
    assert [(c.build, c.against) for c in table.cells] == [
        *((name, "original") for name in "abc"),
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_figures_are_those_of_numpy():
    [_, moved, _] = gate.compare([build("a"), build("b")], GOLDEN, runs(a=0, b=0.5)).cells
    want = np.concatenate([s.ravel() for s in SCORES]).astype(np.float64)
    found = np.concatenate([(s + np.float32(0.5)).ravel() for s in SCORES]).astype(np.float64)
    assert moved.worst == pytest.approx(max(0.5 / np.abs(s).max() for s in SCORES), rel=1e-6)
    assert moved.noise == pytest.approx(np.sqrt(np.sum((found - want) ** 2) / np.sum(want**2)))
    assert moved.cosine == pytest.approx(want @ found / np.sqrt(np.sum(want**2) * np.sum(found**2)))
    assert (moved.same_top1, moved.n) == (1.0, 4)


def test_outside_its_tolerance_is_refused_by_name_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(Build, "stamp", "of none")
    with pytest.raises(PromiseError, match=r"b against original: off by 0\.\d+ .*tolerance 0\.001") as caught:
        gate.hold([build("a"), build("b")], GOLDEN, runs(a=0, b=0.5), tmp_path)
    assert "b against a" not in str(caught.value)
    assert "a against b" in str(caught.value)
    assert json.loads((tmp_path / "agreement.json").read_text())["cells"][1]["within_tolerance"] is False
    assert "NO, tolerance 0.001" in (tmp_path / "agreement.md").read_text()


def test_two_builds_may_differ_by_what_both_may():
    builds = [build("a"), build("b")]
    largest = max(np.abs(s).max() for s in SCORES)
    [_, _, pair] = gate.compare(builds, GOLDEN, runs(a=0, b=1e-4)).cells
    assert pair.tolerance == pytest.approx(2e-3)
    assert pair.within and pair.worst >= 1e-4 / largest * 0.99


def test_a_lossy_build_stays_nearer_than_zeros_are():
    lossy = {"recipe": {"pipeline": "fp16"}}
    near, far = build("near", **lossy), build("far", **lossy)
    table = gate.compare([near, far], GOLDEN, runs(near=0.1, far=3.0))
    assert [cell.within for cell in table.cells[:2]] == [True, False]
    with pytest.raises(PromiseError, match="noise"):
        table.hold()


def test_lossy_builds_of_one_graph_are_held_to_what_either_says_of_it():
    """The same graph on two targets: what one of them loses is all that the other may."""
    lossy = {"recipe": {"pipeline": "fp16"}, "model": {"digest": "same"}}
    table = gate.compare([build("a", **lossy), build("b", **lossy)], GOLDEN, runs(a=1e-4, b=0.5))
    assert [cell.tolerance for cell in table.cells[:2]] == [1e-3, 1e-3]
    assert [cell.within for cell in table.cells[:2]] == [True, False]


def test_not_a_number_never_passes():
    lossy = build("b", recipe={"pipeline": "fp16"})
    table = gate.compare([build("a"), lossy], GOLDEN, runs(a=0, b=np.nan))
    assert [cell.within for cell in table.cells] == [True, False, False]


def test_what_did_not_run_says_why_and_fails_nothing():
    silent = build("b", agreement={"n": 0, "not_run": "no GPU is here"}, evidence="not run")
    table = gate.compare([build("a"), silent], GOLDEN, runs(a=0))
    table.hold()
    assert [cell.n for cell in table.cells] == [4, 0, 0]
    assert table.to_json()["cells"][1] == {
        "build": "b",
        "against": "original",
        "evidence": "not run",
        "not_run": "no GPU is here",
    }
    assert table.cells[2].reason == "b: no GPU is here"


def test_a_pair_has_the_evidence_of_the_weaker():
    table = gate.compare([build("a"), build("b", evidence="emulated")], GOLDEN, runs(a=0, b=0))
    assert [cell.evidence for cell in table.cells] == ["device", "emulated", "emulated"]


def test_compile_writes_the_table_prints_it_and_reads_it_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conv_net(Path("m.onnx"))
    labelled(Path("d.npz"))
    order = ["compile", "m.onnx", "-p", "fp32,fp16", "--data", "d.npz", "-o", "out"]
    assert main(order) == 0
    out = capsys.readouterr().out
    assert "cpu-fp32  cpu-fp16" in out
    assert gate.read(Path("out")).text() in out
    assert main([*order, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["agreement"]["cells"]
    assert [(c["build"], c["against"], c["n"]) for c in cells] == [
        ("cpu-fp32", "original", 16),
        ("cpu-fp16", "original", 16),
        ("cpu-fp32", "cpu-fp16", 16),
    ]
    assert main(["report", "out"]) == 0
    capsys.readouterr()
    for form, said in (
        ("md", "How near they are to each other**"),
        ("html", "<h2>How near they are to each other</h2>"),
    ):
        assert main(["report", "out", "--format", form]) == 0
        page = capsys.readouterr().out
        assert said in page
        assert "yes, tolerance" in page


def test_one_build_needs_no_table(tmp_path):
    polycast.compile(conv_net(tmp_path / "m.onnx"), out=tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".polycast", "cpu-fp32"]


def test_a_lossy_build_is_held_to_its_own_graph(tmp_path, monkeypatch):
    """Passes may lose what they say; a runtime that computes otherwise is found all the same, and alone."""
    opened = Cpu.open

    def wrong(self: Cpu, folder: Path, *, own_process: bool = False) -> Any:
        session = opened(self, folder, own_process=own_process)
        call = session.call
        session.call = lambda feeds: [output * np.float32(0.7) for output in call(feeds)]
        return session

    source = conv_net(tmp_path / "m.onnx")
    builds = polycast.compile(source, "cpu", "fp16,int8", out=tmp_path / "right")
    assert all(build.agreement["graph"]["sqnr_db"] > 20 for build in builds)
    monkeypatch.setattr(Cpu, "open", wrong)
    for precision in ("fp16", "int8"):
        with pytest.raises(PassError, match="no pass, but the runtime"):
            polycast.compile(source, "cpu", precision, out=tmp_path / "wrong")
    assert not list((tmp_path / "wrong").glob("cpu-*"))
