from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import conv_net, labelled

import polycast
from polycast.build import SCHEMA, whole_or_nothing
from polycast.errors import InputError
from polycast.verify import sealed


@pytest.fixture
def build(tmp_path) -> polycast.Build:
    [made] = polycast.compile(
        conv_net(tmp_path / "m.onnx"), calibration=labelled(tmp_path / "c.npz"), out=tmp_path / "out"
    )
    return made


def test_a_build_reloads_and_gives_what_the_original_gives(build, tmp_path):
    import onnxruntime as ort

    feeds = {"x": np.random.default_rng(3).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    [found] = polycast.open_build(build.path).run(feeds)
    [wanted] = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"]).run(None, feeds)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=build.manifest["golden"]["tolerance"] * np.abs(wanted).max())


def test_the_manifest_says_what_was_done(build):
    table = build.to_json()
    assert {"target", "precision", "path", "bytes", "promise", "agreement", "evidence", "steps"} <= set(table)
    assert (table["target"], table["precision"], table["evidence"]) == ("cpu", "fp32", "device")
    assert table["bytes"] == (build.path / "model.onnx").stat().st_size
    assert table["agreement"]["within_tolerance"] is True
    assert table["agreement"]["samples"] == "calibration"
    assert {step["pass"]: step["sites"] for step in table["steps"]}["fuse_conv_bn"] == 1


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"y": np.zeros((1, 3, 8, 8), np.float32)}, "the model has no input 'y'"),
        ({}, "no array for the input x: float32"),
        ({"x": np.zeros((1, 3, 8, 8))}, "x is float64, the model takes float32"),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, r"x has shape \[1, 3, 8, 9\]"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, r"x has shape \[3, 8, 8\]"),
    ],
)
def test_wrong_feeds_are_named(build, feeds, message):
    with pytest.raises(InputError, match=message):
        build.run(feeds)


def test_verify_notices_every_change(build):
    assert build.verify() == []
    (build.path / "extra.txt").write_text("x")
    assert build.verify() == ["extra.txt: not in the manifest"]
    (build.path / "extra.txt").unlink()
    for name in ("model.onnx", "run.py", "golden.npz", "README.md", "verify.py"):
        kept = (build.path / name).read_bytes()
        (build.path / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert build.verify() == [f"{name}: changed: its sha256 is not the manifest's"]
        (build.path / name).write_bytes(kept)
    (build.path / "model.onnx").unlink()
    assert build.verify() == ["model.onnx: missing"]


def test_verify_notices_wrong_outputs(build):
    """A model that was swapped together with its hash is still caught by the golden outputs."""
    conv_net(build.path / "model.onnx", seed=9)
    manifest = json.loads((build.path / "manifest.json").read_text())
    from hashlib import sha256

    manifest["files"]["model.onnx"]["sha256"] = sha256((build.path / "model.onnx").read_bytes()).hexdigest()
    del manifest["seal"]
    (build.path / "manifest.json").write_text(sealed(manifest))
    problems = polycast.open_build(build.path).verify()
    assert problems
    assert all("output logits: off by" in line for line in problems)


def test_verify_notices_another_manifest(build):
    """A looser tolerance is all it would take to let a worse model pass."""
    manifest = build.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tolerance": ', '"tolerance": 9', 1))
    assert polycast.open_build(build.path).verify() == [
        "manifest.json: changed: its seal is not the sha256 of what it says"
    ]


def test_a_manifest_from_before_there_were_seals_still_verifies(build):
    manifest = json.loads((build.path / "manifest.json").read_text()) | {"schema": 1}
    del manifest["seal"]
    (build.path / "manifest.json").write_text(json.dumps(manifest, indent=2))
    assert polycast.open_build(build.path).verify() == []


def test_a_build_runs_without_polycast(build, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        hide = "import sys; sys.modules['polycast'] = None; sys.argv = sys.argv[1:]; "
        hide += "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
        command = [sys.executable, "-c", hide, str(build.path / "run.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    x = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    done = run("--input", "x.npz", "--output", "y.npz")
    assert done.returncode == 0, done.stderr
    assert "logits: float32 [2, 5]" in done.stdout
    with np.load(tmp_path / "y.npz") as outputs:
        np.testing.assert_array_equal(outputs["logits"], build.run({"x": x})[0])
    assert run("--verify").stdout == "verified: every file's hash and every golden output\n"
    np.savez(tmp_path / "x.npz", z=x)
    wrong = run("--input", "x.npz")
    assert wrong.returncode == 1
    assert "The model takes: x: float32 " in wrong.stderr
    (build.path / "README.md").write_text("")
    (build.path / "session.py").write_text("raise SystemExit('what is changed is run')")
    tampered = run("--verify")
    said = [f"{name}: changed: its sha256 is not the manifest's" for name in ("README.md", "session.py")]
    assert (tampered.returncode, sorted(tampered.stdout.splitlines())) == (1, said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no build: cannot read manifest.json"),
        ("{", "is damaged"),
        ("[]", "is no manifest of a build"),
        (json.dumps({"schema": SCHEMA + 1}), f"has schema {SCHEMA + 1}, this polycast reads up to {SCHEMA}"),
        (json.dumps({"schema": SCHEMA}), "is damaged: it lacks target"),
    ],
)
def test_a_folder_that_is_no_build_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        polycast.open_build(tmp_path)


class Stop(BaseException):
    """Like KeyboardInterrupt: no Exception."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, ValueError])
def test_the_old_build_survives_whatever_stops_the_new_one(tmp_path, error):
    final = tmp_path / "deep" / "cpu-fp32"
    with whole_or_nothing(final) as folder:
        (folder / "manifest.json").write_text("old")
    with pytest.raises(error), whole_or_nothing(final) as folder:
        (folder / "manifest.json").write_text("new")
        raise error
    assert (final / "manifest.json").read_text() == "old"
    assert [p.name for p in final.parent.iterdir()] == ["cpu-fp32"]


def test_a_failed_first_build_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError), whole_or_nothing(tmp_path / "a" / "b" / "cpu-fp32"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_build_is_never_replaced(tmp_path):
    (tmp_path / "cpu-fp32").mkdir()
    (tmp_path / "cpu-fp32" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no build"), whole_or_nothing(tmp_path / "cpu-fp32"):
        pass
    assert (tmp_path / "cpu-fp32" / "thesis.tex").exists()


def test_a_full_disk_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="No space left on device"), whole_or_nothing(tmp_path / "cpu-fp32"):
        Path("/dev/full").write_text("x")
    assert list(tmp_path.iterdir()) == []
