"""Loading torch modules and exported programs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from polycast.errors import InputError
from polycast.load import load
from polycast.model import Model

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    """Two outputs by name, an optional input, and a dropout that must be off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        y = self.dropout(self.linear(x)) * scale
        return {"logits": y if bias is None else y + bias, "hidden": x.relu()}


class Restless(torch.nn.Module):
    """Gives something else each time, so no export can agree with it."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


X = torch.linspace(-1, 1, 8).reshape(2, 4)
SCALE = torch.tensor(2.0)


def run(model: Model, folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    model.write(folder / "m.onnx")
    return ort.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"]).run(None, feeds)


def test_a_module_is_exported_in_eval_mode(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net = Net()
    net.dropout.eval()
    model = load(net, example_inputs=(X, SCALE))
    assert capfd.readouterr() == ("", "")
    assert (net.training, net.linear.training, net.dropout.training) == (True, True, False)
    assert model.name == "Net"
    assert [port.name for port in model.signature.inputs] == ["x", "scale"]
    assert [port.name for port in model.signature.outputs] == ["logits", "hidden"]
    weight = net.linear.weight.detach().clone()
    with torch.no_grad():
        net.linear.weight.zero_()  # training goes on; the model that was loaded does not notice
    logits, _ = run(model, tmp_path, {"x": X.numpy(), "scale": SCALE.numpy()})
    expected = torch.nn.functional.linear(X, weight, net.linear.bias) * SCALE
    np.testing.assert_allclose(logits, expected.detach(), rtol=8 * np.finfo(np.float32).eps)


def test_inputs_by_name_in_any_order() -> None:
    model = load(Net(), example_inputs={"bias": torch.ones(3), "scale": SCALE, "x": X})
    assert [str(port) for port in model.signature.inputs] == [
        "x: float32[2, 4]",
        "scale: float32[]",
        "bias: float32[3]",
    ]


def test_an_exported_program_keeps_its_dynamic_axes(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(Net().eval(), (X, SCALE), dynamic_shapes={"x": {0: batch}, "scale": {}})
    model = load(program)
    x = np.ones((5, 4), np.float32)
    assert run(model, tmp_path, {"x": x, "scale": np.array(2, np.float32)})[0].shape == (5, 3)


def test_an_export_that_disagrees_is_refused() -> None:
    with pytest.raises(InputError, match=r"the export of Restless disagrees .* 'output' differs by .* is allowed"):
        load(Restless(), example_inputs=(X,))


@pytest.mark.parametrize(
    ("source", "inputs", "message"),
    [
        (Net(), None, "Net needs example inputs"),
        (Net(), (X,), "torch cannot export Net: missing a required argument: 'scale'"),
        (Net(), (X.T, SCALE), "torch cannot export Net: mat1 and mat2 shapes cannot be multiplied"),
        (3, None, "cannot load a int: expected a path"),
    ],
    ids=["no inputs", "an input missing", "wrong shape", "no module"],
)
def test_refused_with_the_reason(source: object, inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(source, example_inputs=inputs)  # type: ignore[arg-type]


def test_without_torch_the_hint_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError) as info:
        load(net, example_inputs=(X, SCALE))
    assert info.value.hint == 'pip install "polycast[torch]"'
