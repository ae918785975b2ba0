"""What gpu.py compiles and times: torch modules with random weights, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Subject:
    """A model. make: batch -> (torch module in eval mode, its example inputs by name). precision: of the build."""

    name: str
    make: Callable[[int], tuple[Any, dict[str, Any]]]
    precision: str = "fp16"
    batches: tuple[int, ...] = (1, 8, 64)


def _minilm(batch: int) -> tuple[Any, dict[str, Any]]:
    """MiniLM's config: 6 layers of 384, 128 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    tokens = torch.randint(1000, 20000, (batch, 128))
    return _seeded(BertModel, config), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _resnet50(batch: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    return _logits(ResNetForImageClassification, ResNetConfig()), {"pixel_values": torch.randn(batch, 3, 224, 224)}


def _vit(batch: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    return _logits(ViTForImageClassification, ViTConfig()), {"pixel_values": torch.randn(batch, 3, 224, 224)}


#: A decoder of 1.1 billion weights: layers, width, heads, heads of keys, inner width, vocabulary, past tokens.
LAYERS, WIDTH, HEADS, KEYS, INNER, WORDS, PAST = 22, 2048, 32, 4, 5632, 32000, 512


def _decoder(batch: int) -> tuple[Any, dict[str, Any]]:
    """One step of decoding after PAST tokens: keys and values of the past come in, those of the step go out."""
    import torch

    torch.manual_seed(0)
    past = {
        f"{kind}_{layer}": torch.randn(batch, KEYS, PAST, WIDTH // HEADS) for layer in range(LAYERS) for kind in "kv"
    }
    return _step_module(), {"token": torch.randint(0, WORDS, (batch, 1)), **past}


def _step_module() -> Any:
    import torch
    from torch import nn
    from torch.nn import functional as f

    size = WIDTH // HEADS

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
            self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.k, self.v = (nn.Linear(WIDTH, KEYS * size, bias=False) for _ in "kv")
            self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in "gu")
            self.down = nn.Linear(INNER, WIDTH, bias=False)

        def forward(self, x: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
            rows = x.shape[0]
            y = self.before(x)
            q = self.q(y).view(rows, 1, KEYS, HEADS // KEYS, size).permute(0, 2, 1, 3, 4).flatten(2, 3)
            new_k, new_v = (made(y).view(rows, 1, KEYS, size).transpose(1, 2) for made in (self.k, self.v))
            weights = torch.softmax(q @ torch.cat([k, new_k], 2).transpose(2, 3) * size**-0.5, -1)
            x = x + self.o((weights @ torch.cat([v, new_v], 2)).flatten(1).unsqueeze(1))
            y = self.after(x)
            return x + self.down(f.silu(self.gate(y)) * self.up(y)), new_k, new_v

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WIDTH)
            self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
            self.norm, self.head = nn.RMSNorm(WIDTH, 1e-5), nn.Linear(WIDTH, WORDS, bias=False)

        def forward(self, token: Any, **past: Any) -> Any:
            x, new = self.words(token), []
            for number, layer in enumerate(self.layers):
                x, k, v = layer(x, past[f"k_{number}"], past[f"v_{number}"])
                new += [k, v]
            return (self.head(self.norm(x)), *new)

    return Step().eval()


def _logits(kind: Any, config: Any) -> Any:
    """Make a classifier that gives its logits alone: torch exports plain tensors."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = kind(config)

        def forward(self, pixel_values: Any) -> Any:
            return self.inner(pixel_values=pixel_values).logits

    return Logits().eval()


def _seeded(kind: Any, config: Any) -> Any:
    import torch

    torch.manual_seed(0)
    config.return_dict = False  # torch exports plain tuples
    return kind(config).eval()


SUBJECTS = (
    Subject("minilm", _minilm),
    Subject("resnet50", _resnet50),
    Subject("vit", _vit),
    Subject("decoder-1b", _decoder, "int4", (1,)),
)
