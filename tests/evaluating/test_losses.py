"""Losses: what counts as lost where there are labels, and where there are none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from coarse import Coarse, rounded
from given import Given, parsed
from models import conv_net, labelled

import polycast
from polycast.build import Build
from polycast.data.feeds import Sample
from polycast.errors import InputError
from polycast.evaluating.budget import Drop
from polycast.evaluating.losses import Loss, losses, telling
from polycast.metrics import KNOWN
from polycast.model import Model
from polycast.pipeline import Pipeline
from polycast.reference import open_model, open_original

ROWS = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, Build]:
    """A folder, a model and its fp16 build."""
    folder = tmp_path_factory.mktemp("losses")
    [build] = polycast.compile(conv_net(folder / "m.onnx"), precision="fp16", out=folder)
    return folder, polycast.load(folder / "m.onnx"), build


def test_with_labels_the_metric_of_the_labels_counts(made: tuple[Path, Model, Build]) -> None:
    folder, model, build = made
    data = polycast.open_samples(labelled(folder / "d.npz", ROWS), model.signature)
    loss = losses(model, {"fp16": build}, data)["fp16"]
    assert isinstance(loss, Loss)
    rows = np.load(folder / "d.npz")
    exact, half = (np.asarray(each.run({"x": rows["x"]})[0]) for each in (open_original(model), build))
    right = [(scores.argmax(1) == rows["label"]).mean() for scores in (exact, half)]
    assert (loss.metric, loss.unit, loss.before) == ("top1", "share", pytest.approx(right[0]))
    assert loss.drop == pytest.approx(right[0] - right[1])


def test_without_labels_the_largest_entries_count(made: tuple[Path, Model, Build]) -> None:
    folder, model, build = made
    np.savez(folder / "u.npz", x=np.random.default_rng(0).standard_normal((ROWS, 3, 8, 8)).astype(np.float32))
    data = polycast.open_samples(folder / "u.npz", model.signature)
    loss = losses(model, {"fp16": build}, data)["fp16"]
    assert isinstance(loss, Loss)
    assert (loss.metric, loss.before) == ("same largest entry", 1.0)
    assert loss.drop == 0.0
    assert loss.words == "it changes no largest entry"


def test_of_other_outputs_the_relative_error_counts(tmp_path: Path) -> None:
    body = "g (float[1, 2, 8, 8] x) => (float[1, 2, 8, 6] y) { y = MatMul(x, a) }"
    a = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    model = parsed(body, {"a": a})
    feeds = [{"x": np.random.default_rng(seed).standard_normal((1, 2, 8, 8)).astype(np.float32)} for seed in range(4)]
    rough = Pipeline((Coarse(),)).run(model)
    build = SimpleNamespace(open=lambda: open_model(rough, tmp_path))
    loss = losses(model, {"rough": build}, Given(feeds))["rough"]
    assert isinstance(loss, Loss)
    x = np.concatenate([each["x"] for each in feeds]).astype(np.float64)
    error = np.linalg.norm(x @ (rounded(a, 0.25) - a).astype(np.float64)) / np.linalg.norm(x @ a)
    assert loss.drop == pytest.approx(error, rel=1e-4)  # float32 outputs beside float64
    assert loss.words == f"its outputs are {error:.2%} off, root mean square"
    assert not loss.within(Drop.parse("1pp"))
    assert loss.within(Drop.parse(f"{100 * error + 0.01:.4f}pp"))


def test_of_embeddings_the_cosine_counts(tmp_path: Path) -> None:
    """Rows of length 1 that point anywhere have no largest entry that means something."""
    body = "g (float[4, 8] x) => (float[4, 6] y) { h = MatMul(x, a) y = LpNormalization <axis = 1> (h) }"
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 6)).astype(np.float32)
    model = parsed(body, {"a": a})
    feeds = [{"x": rng.standard_normal((4, 8)).astype(np.float32)} for _ in range(5)]
    rough = Pipeline((Coarse(),)).run(model)
    build = SimpleNamespace(open=lambda: open_model(rough, tmp_path))
    loss = losses(model, {"rough": build}, Given(feeds))["rough"]
    assert isinstance(loss, Loss)

    def embed(weight: np.ndarray) -> np.ndarray:
        h = np.concatenate([each["x"] for each in feeds]).astype(np.float64) @ weight
        return h / np.linalg.norm(h, axis=1, keepdims=True)

    near = (embed(a) * embed(rounded(a, 0.25))).sum(1).mean()
    assert (loss.metric, loss.unit) == ("cosine", "share")
    assert loss.drop == pytest.approx(1 - near, rel=1e-3)  # float32 outputs beside float64
    assert loss.words == f"the cosine of its outputs with the original's is {near:.4f}"


@pytest.mark.parametrize(
    ("shape", "kind", "metric"),
    [((1, 7, 40), "text", "perplexity"), ((1, 7, 40), "arrays", "perplexity"), ((1, 7, 12), "arrays", "sqnr")],
)
def test_tokens_that_are_predicted_have_a_perplexity(shape: tuple[int, ...], kind: str, metric: str) -> None:
    """Without labels, too; an embedding has no entry for each token."""
    sample = Sample({"input_ids": np.array([[1, 5, 33, 2, 9, 9, 3]])}, None, "sample")
    assert telling([np.zeros(shape, np.float32)], sample, kind) is KNOWN[metric]


def test_a_metric_of_the_users_own_that_does_not_fit_is_said(made: tuple[Path, Model, Build]) -> None:
    folder, model, build = made
    np.savez(folder / "u.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    data = polycast.open_samples(folder / "u.npz", model.signature)
    with pytest.raises(InputError, match="top1 needs labels"):
        losses(model, {"fp16": build}, data, [KNOWN["top1"]])


@pytest.mark.parametrize(("drop", "fits"), [(0.0, True), (-0.1, True), (1e-6, False)])
def test_without_a_budget_nothing_may_be_lost(drop: float, fits: bool) -> None:
    assert Loss("top1", drop, 0.9, "share", "").within(None) == fits
