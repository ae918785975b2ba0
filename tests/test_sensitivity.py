"""Sensitivity: what each layer loses, held against the same arithmetic written out in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coarse import Coarse, rounded
from given import Given, parsed

from polycast.errors import InputError
from polycast.load import load
from polycast.model import Model
from polycast.passbase import PassContext
from polycast.pipeline import Pipeline
from polycast.sensitivity import RUINED, Layer, Sensitivity, Sweep, grouped, layers, sensitivity

CHAIN = "g (float[n, 8] x) => (float[n, 6] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


A, B = normal(8, 16, seed=1), normal(16, 6, seed=2)


@pytest.fixture
def chain() -> Model:
    return parsed(CHAIN, {"a": A, "b": B})


@pytest.fixture
def samples() -> Given:
    return Given([{"x": normal(2, 8, seed=seed)} for seed in range(5)])


def way(**parameters: object) -> Pipeline:
    return Pipeline((Coarse(**parameters),))


def run(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(x.astype(np.float64) @ a, 0) @ b


def noise(samples: Given, a: np.ndarray, b: np.ndarray) -> float:
    x = np.concatenate([feeds["x"] for feeds in samples.feeds])
    exact = run(x, A, B)
    return float(((run(x, a, b) - exact) ** 2).sum() / (exact**2).sum())


def test_every_layer_is_changed_alone(chain: Model, samples: Given) -> None:
    found = sensitivity(chain, {"rough": way(step=0.25), "fine": way(step=0.125)}, PassContext(), samples)
    assert [layer.name for layer in found.layers] == ["MatMul_0", "MatMul_2"]
    assert found.ways == {"rough": "coarse", "fine": "coarse(step=0.125)"}
    for name, step in (("rough", 0.25), ("fine", 0.125)):
        wanted = [noise(samples, rounded(A, step), B), noise(samples, A, rounded(B, step))]
        np.testing.assert_allclose(found.column(name), wanted, rtol=1e-3)  # float32 sums of 16 beside float64
    whole = [noise(samples, rounded(A, step), rounded(B, step)) for step in (0.25, 0.125)]
    np.testing.assert_allclose(found.whole, whole, rtol=1e-3)
    assert found.samples == 5


def test_divergence_is_told_of_class_scores(chain: Model, samples: Given) -> None:
    found = sensitivity(chain, {"rough": way()}, PassContext(), samples)
    x = np.concatenate([feeds["x"] for feeds in samples.feeds])

    def log_p(scores: np.ndarray) -> np.ndarray:
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))

    exact, moved = log_p(run(x, A, B)), log_p(run(x, A, rounded(B, 0.25)))
    assert found.kl[1][0] == pytest.approx((np.exp(exact) * (exact - moved)).sum() / len(x), rel=1e-3)


def test_a_layer_that_the_pass_leaves_alone_has_no_noise(chain: Model, samples: Given) -> None:
    found = sensitivity(chain, {"rough": way(keep=("MatMul_0",))}, PassContext(), samples)
    assert found.noise[0] == (None,)
    assert np.isnan(found.column("rough")[0])
    assert found.noise[1][0] == pytest.approx(noise(samples, A, rounded(B, 0.25)), rel=1e-3)


def test_what_is_ruined_counts_as_that_and_not_as_nan(chain: Model, samples: Given) -> None:
    chain = parsed(CHAIN, {"a": A, "b": np.where(B > 2, np.float32(3e38), B)})
    found = sensitivity(chain, {"huge": way(step=1e38, only=("MatMul_0",))}, PassContext(), samples)
    assert all(np.isfinite(value) and value <= RUINED for row in found.noise for value in row if value is not None)


def test_nodes_that_share_a_weight_are_one_layer() -> None:
    twice = parsed("g (float[n, 8] x) => (float[n, 8] y) { h = MatMul(x, a) y = MatMul(h, a) }", {"a": normal(8, 8)})
    [layer] = layers(twice, {"x": (3, 8)})
    assert layer == Layer("MatMul_0", "MatMul", ("MatMul_0", "MatMul_1"), 64, 2 * 3 * 64)


def test_many_layers_are_joined_kind_by_kind() -> None:
    given = [Layer(f"{i}", "Conv" if i % 3 else "Gemm", (f"{i}",), 10 if i % 3 else 4, 7) for i in range(30)]
    found = grouped(given, 12)
    assert len(found) <= 12
    assert sorted(int(node) for layer in found for node in layer.nodes) == list(range(30))
    assert all(len({int(node) % 3 == 0 for node in layer.nodes}) == 1 for layer in found)
    assert sum(layer.weights for layer in found) == sum(layer.weights for layer in given)
    assert sum(layer.macs for layer in found) == sum(layer.macs for layer in given)
    assert grouped(given, 30) == given


def test_of_many_kinds_the_smallest_are_one_group() -> None:
    given = [Layer(f"{i}", "Conv", (f"{i}",), i + 1, i) for i in range(20)]
    found = grouped(given, 5)
    assert len(found) == 5
    assert {layer.name for layer in found if len(layer.nodes) == 1} == {"16", "17", "18", "19"}


def test_it_round_trips_through_json(chain: Model, samples: Given) -> None:
    found = sensitivity(chain, {"rough": way(keep=("MatMul_0",)), "fine": way(step=0.1)}, PassContext(), samples)
    again = Sensitivity.from_json(json.loads(json.dumps(found.to_json())))
    assert (again.layers, again.ways, again.bytes, again.size) == (found.layers, found.ways, found.bytes, found.size)
    np.testing.assert_allclose(again.column("fine"), found.column("fine"), rtol=1e-5)
    assert again.noise[0][0] is None


@pytest.mark.parametrize("table", [{"schema": 0}, {"schema": 1}, {"schema": 1, "layers": 3}])
def test_what_is_no_sensitivity_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Sensitivity.from_json(table)


def test_it_is_measured_once(chain: Model, samples: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = PassContext(calibration=samples, cache=tmp_path)
    first = sensitivity(chain, {"rough": way(), "fine": way(step=0.1)}, ctx, samples)
    monkeypatch.setattr(Sweep, "over", lambda *_: pytest.fail("measured again"))
    again = sensitivity(chain, {"coarse": way(), "fine": way(step=0.1)}, ctx, samples)
    assert list(again.ways) == ["coarse", "fine"]
    np.testing.assert_allclose(again.column("coarse"), first.column("rough"), rtol=1e-5)


@pytest.mark.parametrize("change", ["weights", "samples", "way", "damage"])
def test_what_is_kept_is_of_the_same_model_samples_and_way(
    chain: Model, samples: Given, tmp_path: Path, change: str
) -> None:
    ctx = PassContext(calibration=samples, cache=tmp_path)
    sensitivity(chain, {"rough": way()}, ctx, samples)
    step = 0.25
    match change:
        case "weights":
            chain = parsed(CHAIN, {"a": A * 2, "b": B})
        case "samples":
            samples = Given([{"x": feeds["x"] + 1} for feeds in samples.feeds])
            ctx = replace(ctx, calibration=samples)
        case "way":
            step = 0.5
        case "damage":
            for file in tmp_path.iterdir():
                file.write_text("{")
    fresh = sensitivity(chain, {"rough": way(step=step)}, replace(ctx, cache=None), samples)
    assert sensitivity(chain, {"rough": way(step=step)}, ctx, samples) == fresh


def test_its_progress_ends_where_it_said(chain: Model, samples: Given) -> None:
    told: list[tuple[str, int, int]] = []
    ctx = PassContext(progress=lambda *event: told.append(event))
    sensitivity(chain, {"rough": way()}, ctx, samples)
    assert told == [("sensitivity: rough", done, 3) for done in (0, 1, 2, 3)]


def test_int8_of_a_trained_model_adds_up(zoo: Callable[[str], Path]) -> None:
    """Noise of layers adds up: the sum of what each loses alone is near what all lose together."""
    model = load(zoo("mlperftiny/kws.onnx"))
    rows = np.load(zoo("mlperftiny/kws.npz"))
    images = (rows["calib"][:8].astype(np.float32) - np.float32(rows["zero_point"])) * np.float32(rows["scale"])
    samples = Given([{"input": image[None]} for image in images])
    ctx = PassContext(frozenset({"qdq", "u8s8-exact"}), samples)
    lowered = Pipeline.parse("clean | fold | clean | fuse_conv_bn | clean").run(model, ctx)
    found = sensitivity(lowered, {"int8": Pipeline.parse("int8")}, ctx, samples)
    assert len(found.layers) == 10
    assert (found.saved("int8") > 0).all()
    assert found.whole[0] is not None
    assert 1 / 8 < np.nansum(found.column("int8")) / found.whole[0] < 8
