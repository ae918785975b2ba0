"""Metrics, held against scikit-learn, scipy and the zoo's own scorer."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
from sklearn.metrics import top_k_accuracy_score

from polycast.errors import InputError, RecipeError
from polycast.metrics import KNOWN, Metric, choose, find
from polycast.samples import Sample

Outputs = list[np.ndarray]


def sample(label: Any = None, **feeds: np.ndarray) -> Sample:
    return Sample(feeds, None if label is None else np.asarray(label), "data.npz[7]")


def value(
    metric: str | Metric, outputs: Outputs, label: Any = None, like: Outputs | None = None, **feeds: Any
) -> float:
    metric = find(metric) if isinstance(metric, str) else metric
    return metric.value(metric.per_sample(outputs, sample(label, **feeds), like or outputs))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


# By label


@pytest.mark.parametrize(("metric", "k"), [("top1", 1), ("top5", 5)])
def test_top_k_is_scikit_learns(metric: str, k: int, rng: np.random.Generator) -> None:
    scores = rng.normal(size=(400, 12)).astype(np.float32)
    label = rng.integers(0, 12, 400)
    expected = top_k_accuracy_score(label, scores, k=k, labels=range(12))
    assert value(metric, [scores], label) == pytest.approx(expected, abs=1e-12)
    # A convolutional classifier leaves axes of size 1.
    assert value(metric, [scores[:, None, :, None]], label) == pytest.approx(expected, abs=1e-12)


def test_among_equal_scores_the_first_is_taken_as_argmax_does() -> None:
    assert value("top1", [np.zeros((2, 3), np.float32)], [0, 1]) == 0.5


def test_top1_of_a_model_that_gives_the_class_itself() -> None:
    assert value("top1", [np.array([3, 1, 2])], [3, 1, 1]) == pytest.approx(2 / 3)


def test_a_row_with_nan_is_a_miss() -> None:
    scores = np.array([[0, np.nan, 1], [0, 0, 1]], np.float32)
    assert value("top1", [scores], [1, 2]) == 0.5
    assert value("agreement", [scores], like=[np.array([[0, 1, 0], [0, 0, 1]], np.float32)]) == 0.5


def test_labels_that_count_from_one_are_said() -> None:
    with pytest.raises(InputError, match=r"data.npz\[7\]: label 10 where the model has 10 classes, 0 to 9") as error:
        value("top1", [np.zeros((2, 10), np.float32)], [3, 10])
    assert "count from 1" in error.value.hint


def test_a_metric_without_its_label_is_refused() -> None:
    with pytest.raises(InputError, match="top1 needs labels, and the data has none"):
        value("top1", [np.zeros((1, 10), np.float32)])
    with pytest.raises(InputError, match=r"top1 needs an integer per row; the label is float64\[1\]"):
        value("top1", [np.zeros((1, 10), np.float32)], [0.5])
    with pytest.raises(InputError, match="2 labels for 1 rows"):
        value("top1", [np.zeros((1, 10), np.float32)], [1, 2])


def test_spearman_of_values_and_of_pairs(rng: np.random.Generator) -> None:
    metric, label = KNOWN["spearman"], np.round(rng.uniform(0, 5, 60), 1)
    scores = (label + rng.normal(size=60)).astype(np.float32)
    expected = scipy.stats.spearmanr(scores, label).statistic
    assert value(metric, [scores[:, None]], label) == pytest.approx(expected, abs=1e-12)

    tokens = rng.normal(size=(4, 9, 8)).astype(np.float32)  # an output that is no embedding comes first
    rows, cosines = [], []
    for each in label:
        pair = rng.normal(size=(2, 8)).astype(np.float32)
        rows.append(metric.per_sample([tokens[:2], pair], sample([each]), []))
        a, b = pair.astype(np.float64)
        cosines.append(a @ b / np.sqrt(a @ a * (b @ b)))
    found = metric.value(np.concatenate(rows))
    assert found == pytest.approx(scipy.stats.spearmanr(cosines, label).statistic, abs=1e-12)


def test_spearman_says_what_it_needs() -> None:
    with pytest.raises(InputError, match=r"two embeddings \[2, width\] for 1 labels; found float32\[1, 8\]"):
        value("spearman", [np.zeros((1, 8), np.float32)], [3.5])


def test_perplexity_weighs_every_token_alike(rng: np.random.Generator) -> None:
    metric, lost, n, rows = KNOWN["perplexity"], 0.0, 0, []
    for length in (5, 17, 1):
        ids = rng.integers(0, 40, (2, length))
        logits = rng.normal(size=(2, length, 40)).astype(np.float32)
        rows.append(metric.per_sample([logits], sample(input_ids=ids), []))
        logs = scipy.special.log_softmax(logits.astype(np.float64), -1)
        for row in range(2):
            lost -= sum(logs[row, i, ids[row, i + 1]] for i in range(length - 1))
            n += length - 1
    assert metric.value(np.concatenate(rows)) == pytest.approx(np.exp(lost / n), rel=1e-12)


def test_perplexity_leaves_padding_out(rng: np.random.Generator) -> None:
    ids, logits = rng.integers(0, 40, (1, 9)), rng.normal(size=(1, 9, 40)).astype(np.float32)
    padded = np.concatenate([ids, np.zeros((1, 4), np.int64)], 1)
    longer = np.concatenate([logits, rng.normal(size=(1, 4, 40)).astype(np.float32)], 1)
    mask = (np.arange(13) < 9)[None].astype(np.int64)
    assert value("perplexity", [longer], input_ids=padded, attention_mask=mask) == value(
        "perplexity", [logits], input_ids=ids
    )


def test_perplexity_refuses_what_is_no_language_model() -> None:
    ids = np.array([[1, 2, 3]])
    with pytest.raises(InputError, match=r"needs logits \[1, 3, vocabulary\]; found float32\[1, 10\]"):
        value("perplexity", [np.zeros((1, 10), np.float32)], input_ids=ids)
    with pytest.raises(InputError, match="token 3 where the vocabulary has 3"):
        value("perplexity", [np.zeros((1, 3, 3), np.float32)], input_ids=ids)


# Beside the original


def test_sqnr_of_one_part_in_a_thousand_is_60_db(rng: np.random.Generator) -> None:
    like = rng.normal(size=(8, 3, 5))
    assert value("sqnr", [like * 1.001], like=[like]) == pytest.approx(60, abs=1e-9)
    worse = [like * 1.001, like * 1.1]
    assert value("sqnr", worse, like=[like, like]) == pytest.approx(20, abs=1e-9), "the worst output counts"
    assert value("sqnr", [like], like=[like]) == np.inf


def test_equal_infinities_and_nans_are_no_noise() -> None:
    like = np.array([[1.0, -np.inf, np.nan]])
    assert value("sqnr", [like.copy()], like=[like]) == np.inf
    assert value("max_abs", [like + np.array([0.25, 0, 0])], like=[like]) == 0.25
    assert np.isnan(value("max_abs", [np.array([[1.0, 0.0, np.nan]]) * np.nan], like=[like]))


def test_cosine_max_abs_and_kl_by_scipy(rng: np.random.Generator) -> None:
    like = rng.normal(size=(30, 7)).astype(np.float32)
    ours = (like + 0.1 * rng.normal(size=like.shape)).astype(np.float32)
    a, b = ours.astype(np.float64), like.astype(np.float64)
    cosine = np.mean([1 - scipy.spatial.distance.cosine(x, y) for x, y in zip(a, b, strict=True)])
    assert value("cosine", [ours], like=[like]) == pytest.approx(cosine, abs=1e-12)
    assert value("max_abs", [ours], like=[like]) == np.abs(a - b).max()
    p, q = scipy.special.softmax(b, -1), scipy.special.softmax(a, -1)
    kl = np.mean(scipy.stats.entropy(p, q, axis=-1))
    assert value("kl", [ours], like=[like]) == pytest.approx(kl, abs=1e-12)
    # The same as probabilities, which is seen. Rounding p and q to float32 moves log p and log q by eps / 2 each.
    given = [x.astype(np.float32) for x in (q, p)]
    assert value("kl", given[:1], like=given[1:]) == pytest.approx(kl, abs=2 * float(np.finfo(np.float32).eps))


def test_cosine_of_zero_rows() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert value("cosine", [zero], like=[zero]) == 1
    assert value("cosine", [zero], like=[one]) == 0


def test_agreement_of_tokens_and_of_discrete_outputs() -> None:
    like = np.eye(4, dtype=np.float32)[None]  # one row of four positions
    ours = like.copy()
    ours[0, 2] = [1, 0, 0, 0]
    assert value("agreement", [ours], like=[like]) == 0.75
    assert value("agreement", [np.array([1, 2, 4])], like=[np.array([1, 2, 3])]) == pytest.approx(2 / 3)
    words = np.array(["cat", "dog"], dtype=object)
    assert value("agreement", [words[::-1].copy()], like=[words]) == 0
    assert value("agreement", [np.array([[True, False]])], like=[np.array([[True, True]])]) == 0.5
    with pytest.raises(InputError, match=r"needs class scores or a discrete output; found float32\[1, 3, 8, 8\]"):
        value("agreement", [np.zeros((1, 3, 8, 8), np.float32)])


def test_the_resampled_value_is_the_value_of_the_resample(rng: np.random.Generator) -> None:
    label, like = rng.integers(0, 12, 20), rng.normal(size=(20, 12)).astype(np.float32)
    ours = (like + rng.normal(size=like.shape)).astype(np.float32)
    counts = rng.multinomial(20, np.full(20, 1 / 20))
    again = np.repeat(np.arange(20), counts)
    for name in ("top1", "top5", "agreement", "sqnr", "cosine", "max_abs", "kl"):
        metric = KNOWN[name]
        rows = metric.per_sample([ours], sample(label), [like])
        resampled = metric.reduce(rows, counts[None].astype(float))[0]
        assert resampled == pytest.approx(value(name, [ours[again]], label[again], [like[again]]), rel=1e-12), name


# Choosing and finding


@pytest.mark.parametrize(
    ("outputs", "label", "kind", "expected"),
    [
        ([np.zeros((1, 10), np.float32)], [3], "arrays", ["top1", "top5", "agreement", "sqnr"]),
        ([np.zeros((1, 3), np.float32)], [2], "images", ["top1", "agreement", "sqnr"]),
        ([np.zeros((1, 3), np.float32)], None, "arrays", ["agreement", "sqnr"]),
        ([np.array([2]), np.zeros((1, 3), np.float32)], [2], "arrays", ["top1", "agreement", "sqnr"]),
        ([np.array([2])], [2], "arrays", ["top1", "agreement"]),
        ([np.zeros((1, 9, 512), np.float32)], None, "text", ["perplexity", "agreement", "sqnr"]),
        ([np.zeros((2, 9, 8), np.float32), np.zeros((2, 8), np.float32)], [4.5], "batches", ["spearman", "sqnr"]),
        ([np.zeros((1, 1), np.float32)], [4.5], "arrays", ["spearman", "sqnr"]),
        ([np.zeros((1, 1, 64, 64), np.float32)], None, "images", ["sqnr"]),
    ],
)
def test_the_default_metrics(outputs: Outputs, label: Any, kind: str, expected: list[str]) -> None:
    metrics, reasons = choose(outputs, sample(label), kind)
    assert [m.name for m in metrics] == expected
    assert ("agreement" in reasons) == ("agreement" not in expected)


def test_what_fits_no_metric_has_its_reason() -> None:
    _, reasons = choose([np.zeros((1, 85, 22, 22), np.float32)], sample([[1, 2]]))
    assert reasons["accuracy"].startswith("no metric fits labels int64[1, 2] and float32[1, 85, 22, 22]")
    _, reasons = choose([np.zeros((1, 3), np.float32)], sample())
    assert reasons["accuracy"] == "the data has no labels"


def test_an_unknown_metric_has_its_nearest_spelling() -> None:
    with pytest.raises(RecipeError, match=r"unknown metric 'top-1'\nDid you mean 'top1'\?"):
        find("top-1")


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(
        "def miss(outputs, label, feeds):\n    return abs(outputs[0].sum() - label[0]) + len(feeds)\n"
        "miss.better = 'lower'\nmiss.unit = 'm'\n"
    )
    monkeypatch.chdir(tmp_path)
    metric = find("own_metric:miss")
    assert (metric.better, metric.unit) == ("lower", "m")
    rows = [metric.per_sample([np.ones(3)], sample([label], x=np.zeros(1)), []) for label in (3, 7)]
    assert metric.value(np.concatenate(rows)) == 3.0
    with pytest.raises(InputError, match=r"own_metric:miss fails on data.npz\[7\]: TypeError"):
        metric.per_sample([np.ones(3)], sample(), [])
    with pytest.raises(RecipeError, match="own_metric:hit' cannot be imported: AttributeError"):
        find("own_metric:hit")


# On the zoo


def recorded(scorer: ModuleType, subject: str, model: Path, see: Callable[[dict[str, Any], Outputs], None]) -> dict:
    """Let the zoo's scorer run ``subject``, and ``see`` what goes in and comes out."""
    run = scorer.ort_run(str(model))

    def watched(feeds: dict[str, Any]) -> Outputs:
        outputs = run(feeds)
        see(feeds, outputs)
        return outputs

    return dict(scorer.SUB[subject][1](watched))


def test_top1_of_a_zoo_model(scorer: ModuleType, zoo: Callable[[str], Path]) -> None:
    seen: list[np.ndarray] = []
    score = recorded(scorer, "kws", zoo("mlperftiny/kws.onnx"), lambda feeds, outputs: seen.append(outputs[0]))
    label = np.load(zoo("mlperftiny/kws.npz"))["y"]
    rows = [KNOWN["top1"].per_sample([o], sample([y]), []) for o, y in zip(seen, label, strict=True)]
    assert KNOWN["top1"].value(np.concatenate(rows)) == pytest.approx(score["top1"], abs=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the scorer's
def test_perplexity_of_a_zoo_model(scorer: ModuleType, zoo: Callable[[str], Path]) -> None:
    rows: list[np.ndarray] = []
    score = recorded(
        scorer,
        "stories260K",
        zoo("lm/stories260K.onnx"),
        lambda feeds, outputs: rows.append(KNOWN["perplexity"].per_sample(outputs, sample(**feeds), [])),
    )
    assert KNOWN["perplexity"].value(np.concatenate(rows)) == pytest.approx(score["ppl"], rel=1e-9)


@pytest.mark.slow
def test_spearman_of_a_zoo_model(scorer: ModuleType, zoo: Callable[[str], Path], minilm: Path) -> None:
    from tokenizers import Tokenizer

    seen: list[np.ndarray] = []
    run = scorer.ort_run(str(minilm))
    tokenizer = Tokenizer.from_file(str(minilm.parent / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    with next(zoo("sts").glob("*.csv")).open(encoding="utf8") as file:
        pairs = [(a, b, float(c)) for a, b, c in csv.reader(file)]
    for pair in pairs:
        for text in pair[:2]:
            ids = np.array([tokenizer.encode(text).ids])
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            seen.append(run(feeds)[-1].reshape(1, -1))
    rows = [
        KNOWN["spearman"].per_sample([np.concatenate(seen[2 * i : 2 * i + 2])], sample([pair[2]]), [])
        for i, pair in enumerate(pairs)
    ]
    # The zoo's README states .8672 for this model and data, as the dot product of normalised embeddings.
    assert KNOWN["spearman"].value(np.concatenate(rows)) == pytest.approx(0.8672, abs=5e-5)
