"""Samples from a text: windows of tokens, and the feeds that go with them."""

from __future__ import annotations

import sys
import tracemalloc
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from polycast.data import text
from polycast.errors import InputError
from polycast.model import Port, Signature
from polycast.samples import Samples, open_samples

WORDS = [f"w{i}" for i in range(50)]
IDS = Port("input_ids", "int64", ("batch", "seq"))
MASK = Port("attention_mask", "int64", ("batch", "total"))


def tokenizer(folder: Path, special: bool = False) -> Tokenizer:
    """Write a word-level tokenizer: [S] is 0, [E] is 1, wN is N + 2; white space is a split and no token."""
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[S]", "[E]", *WORDS])}, unk_token="[E]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(5)
    made.enable_padding(length=9)
    if special:
        made.post_processor = processors.TemplateProcessing("[S] $A [E]", None, [("[S]", 0), ("[E]", 1)])
    made.save(str(folder / "tokenizer.json"))
    return made


def opened(folder: Path, words: list[int], *ports: Port) -> Samples:
    (folder / "t.txt").write_text(" ".join(f"w{w}" for w in words))
    return open_samples(folder / "t.txt", Signature(ports or (IDS,), ()), beside=folder)


def windows(samples: Samples) -> list[list[int]]:
    return [row for s in samples for row in s.feeds["input_ids"].tolist()]


def refused(folder: Path, words: list[int], *ports: Port) -> InputError:
    with pytest.raises(InputError) as caught:
        list(opened(folder, words, *ports))
    return caught.value


def test_open_length_is_256_and_the_rest(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    words = [i % 50 for i in range(600)]
    samples = opened(tmp_path, words)
    assert (samples.kind, len(samples)) == ("text", 3)
    got = windows(samples)
    assert [len(w) for w in got] == [256, 256, 88]
    assert list(chain.from_iterable(got)) == [w + 2 for w in words]
    assert [s.name for s in samples] == [f"{tmp_path / 't.txt'}[{i}]" for i in range(3)]
    assert all(s.label is None for s in samples)


def test_length_of_the_model(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 40}')
    assert [len(w) for w in windows(opened(tmp_path, [1] * 100))] == [40, 40, 20]


def test_fixed_length_and_batch_leave_the_rest_out(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    samples = opened(tmp_path, list(range(25)), Port("input_ids", "int32", (2, 4)))
    got = list(samples)
    assert len(samples) == len(got) == 3
    assert got[1].feeds["input_ids"].dtype == np.int32
    assert got[1].feeds["input_ids"].tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]


def test_every_window_has_the_special_tokens(tmp_path: Path) -> None:
    tokenizer(tmp_path, special=True)
    got = windows(opened(tmp_path, list(range(10)), Port("input_ids", "int64", ("b", 6))))
    assert got == [[0, 2, 3, 4, 5, 1], [0, 6, 7, 8, 9, 1]]


def test_everything_that_a_decoder_asks_for(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    past = Port("past_key_values.0.key", "float32", ("batch", 4, "past", 16))
    position, kind = Port("position_ids", "int64", ("b", "s")), Port("token_type_ids", "int32", ("b", "s"))
    branch = Port("use_cache_branch", "bool", (1,))
    feeds = next(iter(opened(tmp_path, [1, 2, 3], IDS, MASK, past, position, kind, branch))).feeds
    assert feeds["attention_mask"].tolist() == [[1, 1, 1]]
    assert feeds["position_ids"].tolist() == [[0, 1, 2]]
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0]]
    assert feeds["past_key_values.0.key"].shape == (1, 4, 0, 16)
    assert feeds["use_cache_branch"].tolist() == [False]
    assert {n: a.dtype.name for n, a in feeds.items()}["token_type_ids"] == "int32"


def test_pieces_change_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at lines or words, a text gives the tokens that it gives in one piece."""
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "Ġ": 2, "Ċ": 3, "ab": 4, "Ġab": 5}, [("a", "b"), ("Ġ", "ab")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(tmp_path / "tokenizer.json"))
    content = "".join(np.random.default_rng(0).choice(["ab", "a", "b", " ", " ", "\n"], 4000))
    (tmp_path / "t.txt").write_text(content)
    monkeypatch.setattr(text, "PIECE", 64)
    got = windows(open_samples(tmp_path / "t.txt", Signature((IDS,), ())))
    assert list(chain.from_iterable(got)) == made.encode(content).ids


def test_text_without_any_space_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 16)
    (tmp_path / "t.txt").write_text("字" * 1000)
    pieces = list(text._pieces(tmp_path / "t.txt"))
    assert "".join(pieces) == "字" * 1000
    assert max(map(len, pieces)) <= 5 * 16


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    peaks = []
    for times in (5, 50):
        samples = opened(tmp_path, list(range(50)) * 200 * times)
        tracemalloc.start()
        assert sum(1 for _ in samples) == -(-50 * 200 * times // 256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_real_tokenizer(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("A man is playing a guitar.\n" * 100)
    ports = [Port(n, "int64", ("batch", "seq")) for n in ("input_ids", "attention_mask", "token_type_ids")]
    got = windows(open_samples(tmp_path / "t.txt", Signature(tuple(ports), ()), beside=minilm.parent))
    assert [len(w) for w in got] == [256, 256, 700 - 2 * 254 + 2]
    assert {(w[0], w[-1]) for w in got} == {(101, 102)}


class TestRefusals:
    """Each says where, what, expected, found, and mostly what mends it."""

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        error = refused(tmp_path, [1, 2])
        assert f"no tokenizer at {tmp_path / 'tokenizer.json'}" in error.message
        (tmp_path / "tokenizer.json").write_text("{}")
        assert "tokenizer.json: cannot be read" in refused(tmp_path, [1, 2]).message

    def test_library_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        assert refused(tmp_path, [1, 2]).hint == 'pip install "polycast[text]"'

    def test_too_short(self, tmp_path: Path) -> None:
        tokenizer(tmp_path)
        assert "empty data set: expected at least 2 tokens" in refused(tmp_path, [1]).message
        fixed = Port("input_ids", "int64", (2, 8))
        assert "empty data set: expected at least 16 tokens" in refused(tmp_path, [1] * 15, fixed).message

    def test_no_room_beside_the_special_tokens(self, tmp_path: Path) -> None:
        tokenizer(tmp_path, special=True)
        assert "more than 2 tokens" in refused(tmp_path, [1] * 9, Port("input_ids", "int64", (1, 2))).message

    def test_model_of_another_kind(self, tmp_path: Path) -> None:
        tokenizer(tmp_path)
        image = Port("pixels", "float32", ("n", 3, 8, 8))
        assert "an integer input 'input_ids' of rank 2, found pixels" in refused(tmp_path, [1, 2], image).message
        assert "found pixels: float32" in refused(tmp_path, [1, 2], IDS, image).message

    def test_cache_that_cannot_be_empty(self, tmp_path: Path) -> None:
        tokenizer(tmp_path)
        past = Port("past_key_values.0.key", "float32", (1, 4, 128, 16))
        assert "an open one, to begin at 0" in refused(tmp_path, [1, 2], IDS, past).message

    def test_not_utf8(self, tmp_path: Path) -> None:
        tokenizer(tmp_path)
        (tmp_path / "t.txt").write_bytes(b"w1 w2 \xff")
        with pytest.raises(InputError, match="expected text in UTF-8"):
            open_samples(tmp_path / "t.txt", Signature((IDS,), ()))
