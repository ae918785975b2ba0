"""Real exported graphs for the tests: tiny transformers with seeded random weights, as the two exporters write them.

``bert_optimum()`` and its like give the path of an ONNX file; nothing is downloaded. Each file is made once per
machine and set of versions (0.3 s by optimum, 2 to 5 s by dynamo) and kept in the system's folder for temporary files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

#: What the models are made of. Heads of 8; Llama shares each of its 2 key heads between 2 query heads.
HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY, POSITIONS = 32, 2, 4, 2, 100, 64

_SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * HIDDEN,
}
_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
_CONFIGS: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # model class, config class, task of optimum, config
    "bert": ("BertModel", "BertConfig", "feature-extraction", {**_SIZES, **_TEXT}),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        "image-classification",
        {**_SIZES, "image_size": 32, "patch_size": 8, "num_labels": 5},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        "text-generation",
        {
            "vocab_size": VOCABULARY,
            "n_positions": POSITIONS,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        "text-generation",
        {**_SIZES, **_TEXT, "num_key_value_heads": KV_HEADS},
    ),
}


def bert_optimum(attention: str = "sdpa") -> Path:
    """BERT without its pooler's head, by optimum; ``attention`` is transformers' sdpa or eager."""
    return optimum("bert", attention)


def bert_dynamo(attention: str = "sdpa") -> Path:
    """BERT by ``torch.onnx.export(dynamo=True)``."""
    return dynamo("bert", attention)


def vit_optimum(attention: str = "sdpa") -> Path:
    """Vision transformer (no mask), by optimum."""
    return optimum("vit", attention)


def vit_dynamo(attention: str = "sdpa") -> Path:
    """Vision transformer by ``torch.onnx.export(dynamo=True)``."""
    return dynamo("vit", attention)


def gpt2_optimum(attention: str = "sdpa", past: bool = False) -> Path:
    """GPT-2 by optimum; with ``past``, key and value caches are inputs and outputs."""
    return optimum("gpt2", attention, past)


def gpt2_dynamo(attention: str = "sdpa") -> Path:
    """GPT-2 without caches, by ``torch.onnx.export(dynamo=True)``."""
    return dynamo("gpt2", attention)


def llama_optimum(attention: str = "sdpa", past: bool = False) -> Path:
    """Llama (grouped queries, rotary positions) by optimum; with ``past``, caches are inputs and outputs."""
    return optimum("llama", attention, past)


def llama_dynamo(attention: str = "sdpa") -> Path:
    """Llama without caches, by ``torch.onnx.export(dynamo=True)``."""
    return dynamo("llama", attention)


@cache
def optimum(architecture: str, attention: str = "sdpa", past: bool = False) -> Path:
    """Export ``architecture`` as ``optimum-cli export onnx`` does."""
    _require("optimum-onnx")
    target = _cached(f"{architecture}-{attention}{'-past' if past else ''}-optimum")
    if not target.exists():
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            from optimum.exporters.onnx import onnx_export_from_model

            task = _CONFIGS[architecture][2] + ("-with-past" if past else "")
            onnx_export_from_model(_model(architecture, attention), Path(folder), task=task, do_validation=False)
            _keep(Path(folder) / "model.onnx", target)
    return target


@cache
def dynamo(architecture: str, attention: str = "sdpa", opset: int | None = None) -> Path:
    """Export ``architecture`` with ``torch.onnx.export(dynamo=True)``, batch and sequence dynamic."""
    _require("torch")
    target = _cached(f"{architecture}-{attention}-{opset or 'default'}-dynamo")
    if not target.exists():
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            import torch

            model = _model(architecture, attention)
            model.config.use_cache = False
            batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
            if architecture == "vit":
                feeds = {"pixel_values": torch.zeros(2, 3, 32, 32)}
                dynamic: dict[str, dict[int, Any]] = {"pixel_values": {0: batch}}
            else:
                feeds = {"input_ids": torch.zeros(2, 7, dtype=torch.long)}
                feeds["attention_mask"] = torch.ones(2, 7, dtype=torch.long)
                dynamic = {name: {0: batch, 1: sequence} for name in feeds}
            program = torch.onnx.export(
                model, (), kwargs=feeds, dynamic_shapes=dynamic, opset_version=opset, dynamo=True, verbose=False
            )
            assert program is not None
            program.save(Path(folder) / "model.onnx")
            _keep(Path(folder) / "model.onnx", target)
    return target


def feeds_for(path: Path, batch: int = 2, sequence: int = 7, past: int = 3) -> dict[str, np.ndarray]:
    """Seeded inputs for the exported model at ``path``; in a batch, all rows but the first are padded on the left."""
    graph = onnx.load(path, load_external_data=False).graph
    caches = any(i.name.startswith("past_key_values") for i in graph.input)
    total = sequence + (past if caches else 0)
    mask = np.ones((batch, total), np.int64)
    for row in range(1, batch):
        mask[row, : 1 + row % (total - 1)] = 0
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for i in graph.input:
        if i.name == "pixel_values":
            feeds[i.name] = rng.standard_normal((batch, 3, 32, 32), np.float32)
        elif i.name.startswith("past_key_values"):
            heads = i.type.tensor_type.shape.dim[1].dim_value
            feeds[i.name] = rng.standard_normal((batch, heads, past, HIDDEN // HEADS), np.float32)
        elif i.name == "attention_mask":
            feeds[i.name] = mask
        elif i.name == "position_ids":
            feeds[i.name] = np.maximum(mask.cumsum(1) - 1, 0)[:, -sequence:]
        elif i.name == "token_type_ids":
            feeds[i.name] = rng.integers(0, 2, (batch, sequence))
        else:
            feeds[i.name] = rng.integers(0, VOCABULARY, (batch, sequence))
    return feeds


def _model(architecture: str, attention: str) -> Any:
    import torch
    import transformers

    model_class, config_class, _, sizes = _CONFIGS[architecture]
    config = getattr(transformers, config_class)(**sizes, attn_implementation=attention)
    torch.manual_seed(0)
    return getattr(transformers, model_class)(config).eval()


def _require(distribution: str) -> None:
    for name in (distribution, "transformers"):
        try:
            version(name)
        except ModuleNotFoundError:
            pytest.skip(f"{name} is not installed")


def _cached(name: str) -> Path:
    exporter = ("optimum-onnx",) if name.endswith("optimum") else ("onnxscript",)
    versions = [(part, version(part)) for part in ("torch", "transformers", "onnx", *exporter)]
    key = hashlib.sha256(Path(__file__).read_bytes() + repr(versions).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"polycast-exports-{key}"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.onnx"


def _keep(made: Path, target: Path) -> None:
    """Move ``made`` (weights inside) to ``target``, whole or not at all: another test process may be at it too."""
    partial = target.with_suffix(f".{os.getpid()}")
    onnx.save(onnx.load(made), partial)
    shutil.move(partial, target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own chatter out of the tests' output; their warnings are not ours to mend."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
