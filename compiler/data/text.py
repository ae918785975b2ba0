"""Samples that are windows of a text, for language models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from polycast.errors import InputError
from polycast.model import Port, Signature

from .feeds import Sample, files_digest, listing, refusal

if TYPE_CHECKING:
    from tokenizers import Tokenizer  # type: ignore[import-untyped]

#: Tokens in a window where the model leaves the length open.
WINDOW = 256

#: Characters that are tokenised at a time.
PIECE = 1 << 16

#: As far as the last line end, else the last space: tokenizers split there too.
_CUT = re.compile(r".*\n(?=\S)|.*(?= \S)", re.DOTALL)

_PAST = "past_key_values"


class TextSamples:
    """A text, tokenised piece by piece and cut into windows that do not overlap.

    Every window begins and ends with the special tokens that the tokenizer puts around a text. It is as long as the
    model's sequence or, where that is open, WINDOW, or less if the model's ``config.json`` says so. A remainder that
    fills no window of a fixed length is left out.
    Feeds: ``input_ids`` [B, S], and where the model has them ``attention_mask`` (ones), ``position_ids``,
    ``token_type_ids`` (zeros), ``past_key_values.*`` (length 0) and ``use_cache_branch`` (false).
    Source: the windows of llama.cpp's perplexity tool.
    """

    kind = "text"

    def __init__(self, path: Path, signature: Signature, beside: Path) -> None:
        self.source = str(path)
        self._path = path
        self._vocabulary = beside / "tokenizer.json"
        self._tokenizer = _load_tokenizer(self._vocabulary)
        self._prefix, self._suffix = _specials(self._tokenizer)
        self._signature = signature
        self._ids = _ids_port(signature, self.source)
        batch, length = self._ids.shape or ("?", "?")
        self._batch = batch if isinstance(batch, int) and batch else 1
        self._fixed = isinstance(length, int)
        self._length = length if isinstance(length, int) else min(WINDOW, _positions(beside / "config.json"))
        if self._body < 1:
            expected = f"more than {len(self._prefix) + len(self._suffix)} tokens, the special ones"
            raise refusal(self.source, f"sequence length of {self._ids.name!r}", expected, self._length)
        self._check_signature()
        if next(self._batches(), None) is None:
            needed = self._body * self._batch if self._fixed or self._batch > 1 else 2
            raise refusal(self.source, "empty data set", f"at least {needed} tokens", "fewer")

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the text, of the tokenizer, and of how its windows are cut."""
        facts = (self.kind, self._signature, self._batch, self._length)
        return files_digest([self._path, self._vocabulary], *facts)

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self._batches())

    def __len__(self) -> int:
        """Count the windows: the first call reads the text once, and the count is kept."""
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        for i, ids in enumerate(self._batches()):
            feeds = {p.name: self._feed(p, ids) for p in self._signature.inputs}
            yield Sample(feeds, None, f"{self.source}[{i}]")

    @property
    def _body(self) -> int:
        """Tokens of the text in one window."""
        return self._length - len(self._prefix) - len(self._suffix)

    def _batches(self) -> Iterator[np.ndarray]:
        windows = self._windows()
        while rows := list(islice(windows, self._batch)):
            if len(rows) == self._batch:
                yield np.array(rows, np.int64)

    def _windows(self) -> Iterator[list[int]]:
        tokens: list[int] = []
        for piece in _pieces(self._path):
            tokens += self._tokenizer.encode(piece, add_special_tokens=False).ids
            while len(tokens) >= self._body:
                yield [*self._prefix, *tokens[: self._body], *self._suffix]
                del tokens[: self._body]
        # One token alone predicts nothing, and rows of one batch are equally long.
        if len(tokens) > 1 and not self._fixed and self._batch == 1:
            yield [*self._prefix, *tokens, *self._suffix]

    def _feed(self, port: Port, ids: np.ndarray) -> np.ndarray:
        if port.name == self._ids.name:
            return ids.astype(port.dtype)
        if port.name == "attention_mask":
            return np.ones(ids.shape, port.dtype)
        if port.name == "position_ids":
            return np.broadcast_to(np.arange(ids.shape[1], dtype=port.dtype), ids.shape).copy()
        if port.name == "token_type_ids":
            return np.zeros(ids.shape, port.dtype)
        if port.name == "use_cache_branch":
            return np.zeros(1, port.dtype)
        return np.zeros(_past_shape(port, ids.shape[0]), port.dtype)

    def _check_signature(self) -> None:
        """Refuse a model that asks for more than a text can give."""
        known = {self._ids.name, "attention_mask", "position_ids", "token_type_ids", "use_cache_branch"}
        others = [p for p in self._signature.inputs if p.name not in known]
        strange = [p for p in others if not p.name.startswith(_PAST)]
        if strange:
            expected = f"inputs among {listing(sorted(known))}, {_PAST}.*"
            hint = "Prepare the arrays yourself, and give them as an .npz"
            raise refusal(self.source, "text for this model", expected, listing(map(str, strange)), hint)
        for port in others:
            if 0 not in _past_shape(port, 1):
                raise refusal(self.source, f"length of {port.name!r}", "an open one, to begin at 0", port)


def _past_shape(port: Port, batch: int) -> tuple[int, ...]:
    """Shape of a cache that holds nothing: an open first axis is the batch, every other open axis is the length."""
    first, *rest = port.shape or (0,)
    return (first if isinstance(first, int) else batch, *(d if isinstance(d, int) else 0 for d in rest))


def _ids_port(signature: Signature, where: str) -> Port:
    """Find the input that takes tokens: ``input_ids``, or the only integer input of rank 2."""
    integers = [p for p in signature.inputs if p.dtype in ("int32", "int64") and len(p.shape or ()) == 2]
    named = [p for p in integers if p.name == "input_ids"]
    if len(named or integers) != 1:
        expected = "an integer input 'input_ids' of rank 2"
        raise refusal(where, "text for this model", expected, listing(map(str, signature.inputs)))
    return (named or integers)[0]


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError("reading text needs tokenizers", 'pip install "polycast[text]"') from error
    if not path.is_file():
        hint = "Put the model's tokenizer.json there, or give tokenised data as an .npz"
        raise InputError(f"no tokenizer at {path}", hint)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise refusal(str(path), "cannot be read", "a tokenizer of the tokenizers library", error) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _positions(config: Path) -> int:
    """Give the longest sequence that a Hugging Face ``config.json`` allows, or WINDOW where none says."""
    try:
        facts = json.loads(config.read_text("utf-8"))
        lengths = [facts[key] for key in ("max_position_embeddings", "n_positions") if key in facts]
    except (OSError, ValueError, TypeError):
        return WINDOW
    return next((n for n in lengths if isinstance(n, int) and n > 0), WINDOW)


def _specials(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Give the special tokens that stand before and after a text."""
    encoding = tokenizer.encode("a")
    mask = encoding.special_tokens_mask
    body = [i for i, special in enumerate(mask) if not special]
    if not body:
        return list(encoding.ids), []
    return list(encoding.ids[: body[0]]), list(encoding.ids[body[-1] + 1 :])


def _pieces(path: Path) -> Iterator[str]:
    """Read about PIECE characters at a time, cut at a line or a word; a script that has neither is cut anywhere."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from _cut(file)
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(str(path), "cannot be read", "text in UTF-8", error) from error


def _cut(file: TextIO) -> Iterator[str]:
    rest = ""
    while chunk := file.read(PIECE):
        rest += chunk
        cut = _CUT.match(rest)
        end = cut.end() if cut else len(rest) * (len(rest) > 4 * PIECE)
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest
