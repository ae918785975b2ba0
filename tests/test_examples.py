"""The examples run, and say what is so."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from scipy.stats import binomtest

import polycast
from polycast import passes, targets
from polycast.model import Model
from polycast.pipeline import Pipeline

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DIGITS = EXAMPLES / "digits"


def python(*arguments: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python on ``arguments``; path: what PYTHONPATH is instead of what it was."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(DIGITS / name) as file:
        return dict(file)


def top1(model: Path) -> tuple[int, int]:
    """Count, with onnxruntime alone, the test images that ``model`` reads right, and all of them."""
    test = arrays("digits-test.npz")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {"image": test["image"]})
    return int((logits.argmax(1) == test["label"]).sum()), len(logits)


def test_every_example_is_in_the_table() -> None:
    named = set(re.findall(r"\]\((\S+)\)", (EXAMPLES / "README.md").read_text("utf-8")))
    assert named == {p.name for p in EXAMPLES.iterdir() if p.name not in ("README.md", "__pycache__")}


class TestDigits:
    def test_readme_states_the_measured_accuracy(self) -> None:
        right, n = top1(DIGITS / "digits.onnx")
        interval = binomtest(right, n).proportion_ci(method="wilson")
        text = " ".join((DIGITS / "README.md").read_text("utf-8").split())
        assert f"Top-1 on the {n} test images" in text
        assert f"**{right / n:.1%}**".replace("%", " %") in text
        low, high = (f"{100 * bound:.1f} %" for bound in (interval.low, interval.high))
        assert f"({right} right; 95 % interval {low} to {high}, Wilson)" in text

    def test_model_is_small_and_as_it_was_trained(self) -> None:
        model = onnx.load(DIGITS / "digits.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert [n.op_type for n in model.graph.node].count("BatchNormalization") == 3
        trained = [t for t in model.graph.initializer if "running" not in t.name]
        count = sum(int(np.prod(t.dims)) for t in trained)
        assert f"{count:,} parameters" in (DIGITS / "README.md").read_text("utf-8")
        assert (DIGITS / "digits.onnx").stat().st_size < 200_000
        assert sum(f.stat().st_size for f in DIGITS.iterdir() if f.is_file()) < 500_000

    def test_calibration_and_test_rows_are_disjoint(self) -> None:
        test, calibration = arrays("digits-test.npz"), arrays("digits-calibration.npz")
        assert (set(test), set(calibration)) == ({"image", "label"}, {"image"})
        assert not {row.tobytes() for row in test["image"]} & {row.tobytes() for row in calibration["image"]}

    @pytest.mark.slow
    def test_script_makes_what_is_here(self, tmp_path: Path) -> None:
        """The data bit for bit; the model to within what another machine's rounding does to a training run."""
        done = python(DIGITS / "train.py", "--out", tmp_path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for name in ("digits-test.npz", "digits-calibration.npz"):
            assert (tmp_path / name).read_bytes() == (DIGITS / name).read_bytes()
        (here, n), (there, _) = top1(DIGITS / "digits.onnx"), top1(tmp_path / "digits.onnx")
        assert f"top-1 on {n} images: {there / n:.4f}" in done.stdout
        share = here / n
        assert abs(there - here) / n < 3 * np.sqrt(2 * share * (1 - share) / n)
        ops = [[node.op_type for node in onnx.load(f / "digits.onnx").graph.node] for f in (DIGITS, tmp_path)]
        assert ops[0] == ops[1]


def test_quickstart(tmp_path: Path) -> None:
    done = python(EXAMPLES / "quickstart.py", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    right, n = top1(DIGITS / "digits.onnx")
    assert f"{n} samples" in done.stdout
    assert f"{100 * right / n:.2f}" in done.stdout
    assert re.search(r"fuse_conv_bn +3 sites", done.stdout)
    assert (tmp_path / "cpu-fp32" / "manifest.json").is_file()


def test_recipe(tmp_path: Path) -> None:
    [build] = polycast.compile(DIGITS / "digits.onnx", recipe=EXAMPLES / "recipe.toml", out=tmp_path)
    assert build.path == tmp_path / "cpu-folded"
    sites = {step["pass"]: step["sites"] for step in build.steps}
    assert sites["fuse_conv_bn"] == 3
    assert build.promise["asked"] == {"weights": {"fp32": 1.0}, "macs": {"fp32": 1.0}}
    assert build.promise["reached"] == build.promise["asked"]
    assert build.verify() == []
    assert top1(build.path / "model.onnx") == top1(DIGITS / "digits.onnx")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Install an example by what its pyproject.toml says, as pip would: metadata and the file on sys.path."""

    def install_into_path(name: str) -> None:
        folder = EXAMPLES / name
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
        site = tmp_path / "site"
        metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
        groups = project["entry-points"].items()
        (metadata / "entry_points.txt").write_text(
            "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups)
        )
        monkeypatch.syspath_prepend(folder)
        monkeypatch.syspath_prepend(site)
        forget()

    def forget() -> None:
        passes.catalogue.cache_clear()
        targets.catalogue.cache_clear()

    yield install_into_path
    monkeypatch.undo()
    forget()
    for name in ("polycast_hard_swish", "polycast_reference"):
        sys.modules.pop(name, None)


class TestOwnPass:
    @staticmethod
    def graph(body: str, outputs: str = "float[n, 8] y") -> onnx.ModelProto:
        text = f'<ir_version: 9, opset_import: ["": 13]> m (float[n, 8] x) => ({outputs}) {{ {body} }}'
        return onnx.parser.parse_model(text)

    @staticmethod
    def fused(model: onnx.ModelProto, folder: Path) -> Model:
        onnx.save(model, folder / "m.onnx")
        return Pipeline.parse("fuse_hard_swish").run(polycast.load(folder / "m.onnx"))

    @pytest.mark.parametrize("product", ["Mul(x, g)", "Mul(g, x)"])
    def test_acts_and_keeps_the_outputs(self, tmp_path: Path, install: Callable[[str], None], product: str) -> None:
        install("own_pass")
        before = self.graph(f"g = HardSigmoid<alpha = 0.1666667, beta = 0.5>(x) y = {product}")
        after = self.fused(before, tmp_path)
        assert [node.op_type for node in after.graph.graph] == ["HardSwish"]
        assert after.history[-1].sites == 1
        assert Pipeline.parse("fuse_hard_swish").run(after).history[-1].sites == 0
        after.write(tmp_path / "after.onnx")
        x = np.linspace(-5, 5, 800, dtype=np.float32).reshape(100, 8)
        [want] = ReferenceEvaluator(before).run(None, {"x": x})
        [found] = ReferenceEvaluator(str(tmp_path / "after.onnx")).run(None, {"x": x})
        # Three roundings of values up to 5, and a slope that is off by one part in 5e6.
        np.testing.assert_allclose(found, want, rtol=0, atol=5 * 4 * np.finfo(np.float32).eps)

    @pytest.mark.parametrize(
        ("body", "outputs", "reason"),
        [
            ("g = HardSigmoid(x) y = Mul(x, g)", "float[n, 8] y", "alpha is 0.2, not 0.166667"),
            (
                "g = HardSigmoid<alpha = 0.1666667, beta = 0.4>(x) y = Mul(x, g)",
                "float[n, 8] y",
                "beta is 0.4, not 0.5",
            ),
            (
                "g = HardSigmoid<alpha = 0.1666667>(x) y = Mul(x, g)",
                "float[n, 8] y, float[n, 8] g",
                "the gate is read elsewhere too",
            ),
        ],
    )
    def test_skips_with_its_reason(
        self, tmp_path: Path, install: Callable[[str], None], body: str, outputs: str, reason: str
    ) -> None:
        install("own_pass")
        step = self.fused(self.graph(body, outputs), tmp_path).history[-1]
        assert step.sites == 0
        assert [skip.reason for skip in step.skips] == [reason]

    def test_gate_of_another_value_is_left_alone(self, tmp_path: Path, install: Callable[[str], None]) -> None:
        install("own_pass")
        body = "r = Relu(x) g = HardSigmoid<alpha = 0.1666667>(x) y = Mul(r, g)"
        step = self.fused(self.graph(body), tmp_path).history[-1]
        assert (step.sites, step.skips) == (0, ())

    def test_compiles_into_a_build(self, tmp_path: Path, install: Callable[[str], None]) -> None:
        install("own_pass")
        onnx.save(self.graph("g = HardSigmoid<alpha = 0.1666667>(x) y = Mul(x, g)"), tmp_path / "m.onnx")
        [build] = polycast.compile(tmp_path / "m.onnx", passes="clean | fuse_hard_swish", out=tmp_path / "out")
        assert [s["sites"] for s in build.steps] == [0, 1]
        assert build.agreement["within_tolerance"]


class TestOwnTarget:
    def test_build_runs_in_polycast(self, tmp_path: Path, install: Callable[[str], None]) -> None:
        install("own_target")
        test = arrays("digits-test.npz")
        [build] = polycast.compile(
            DIGITS / "digits.onnx", targets="reference", data=DIGITS / "digits-test.npz", out=tmp_path / "out"
        )
        assert build.path.name == "reference-fp32"
        assert build.manifest["evidence"] == "emulated"
        assert build.agreement["within_tolerance"]
        assert build.verify() == []
        [logits] = build.run({"image": test["image"][:50]})
        [want] = ReferenceEvaluator(str(DIGITS / "digits.onnx")).run(None, {"image": test["image"][:50]})
        np.testing.assert_array_equal(logits.argmax(1), want.argmax(1))
        with pytest.raises(polycast.InputError, match="'images'"):
            build.run({"images": test["image"][:1]})

    def test_build_runs_without_polycast(self, tmp_path: Path, install: Callable[[str], None]) -> None:
        install("own_target")
        [build] = polycast.compile(DIGITS / "digits.onnx", targets="reference", out=tmp_path / "out")
        image = arrays("digits-test.npz")["image"][:4]
        np.savez(tmp_path / "x.npz", image=image)
        without = tmp_path / "without"
        without.mkdir()
        (without / "polycast.py").write_text("raise ImportError('a build imports polycast')")
        run = partial(python, "run.py", cwd=build.path, path=without)
        done = run("--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "y.npz") as y:
            np.testing.assert_array_equal(y["logits"], build.run({"image": image})[0])
        assert run("--verify").returncode == 0
        with (build.path / "model.onnx").open("ab") as file:
            file.write(b"\0")
        tampered = run("--verify")
        assert tampered.returncode == 1
        assert "model.onnx: changed" in tampered.stdout

    def test_names_every_op_that_it_lacks(self, tmp_path: Path, install: Callable[[str], None]) -> None:
        install("own_target")
        model = onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]> m (float[2, 8] x) => (float[2, 8] y)'
            "{ a = com.microsoft.QuickGelu(x) b = Relu(a) y = com.microsoft.BiasGelu(b, x) }"
        )
        onnx.save(model, tmp_path / "m.onnx")
        found = targets.find("reference").problems(polycast.load(tmp_path / "m.onnx"))
        assert found == ("com.microsoft.BiasGelu", "com.microsoft.QuickGelu")

    def test_is_listed_beside_those_that_are_built_in(self, install: Callable[[str], None]) -> None:
        install("own_target")
        assert {"cpu", "reference"} <= set(targets.catalogue())
        probe = targets.find("reference").probe()
        assert probe.build.yes
        assert probe.evidence == "emulated"
        with pytest.raises(polycast.RecipeError, match="Did you mean 'reference'"):
            targets.find("referense")


@pytest.mark.parametrize("name", ["own_pass", "own_target"])
def test_own_package_is_one_file_under_its_entry_point(name: str) -> None:
    files = {p.name for p in (EXAMPLES / name).iterdir() if p.name != "__pycache__"}
    settings = tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text("utf-8"))
    [module] = settings["tool"]["setuptools"]["py-modules"]
    assert files == {"pyproject.toml", f"{module}.py"}
    [(point, value)] = [item for group in settings["project"]["entry-points"].values() for item in group.items()]
    spec = importlib.util.spec_from_file_location(module, EXAMPLES / name / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    del sys.modules[module]
    kind = getattr(loaded, value.partition(":")[2])
    assert point == (kind.name() if callable(kind.name) else kind.name)
