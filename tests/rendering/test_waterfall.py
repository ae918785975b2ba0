"""Where the bytes go, as a page and as Markdown."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from evaluations import sized as manifest

from polycast.rendering.tables import markdown
from polycast.rendering.waterfall import Step, byte_sheet, download, memory, waterfalls
from polycast.sizes import library


def changes(steps: list[Step]) -> dict[str, int]:
    return {step.name: step.change for step in steps}


def test_the_steps_of_the_download_lead_from_the_original_to_the_build() -> None:
    steps = download(manifest())
    assert changes(steps) == {
        "original": 42_000,
        "weights in fp32": -39_000,
        "weights in int8": 10_000,
        "kernels, plan and page": 500,
        "build": 13_500,
    }
    for one, other in pairwise(steps):
        assert other.is_sum or other.start == one.end
    assert steps[-2].end == steps[-1].end, "the last change ends where the sum does"


@pytest.mark.parametrize("give", [download, memory])
def test_a_runtime_that_is_not_in_the_build_comes_on_top(give: Any) -> None:
    weight, said = library("onnxruntime")
    *_, model, runtime, whole = give(manifest("onnxruntime"))
    assert (runtime.name, runtime.change, runtime.said) == ("runtime", weight, said)
    assert whole.end == model.end + weight


def test_what_is_too_small_to_be_seen_is_one_step() -> None:
    sizes = {"original": {"bytes": 10**6, "weights": {"fp32": 10**6}}, "weights": {"fp32": 10**6 + 3, "int64": 40}}
    files = {"model.onnx": {"bytes": 10**6 + 60, "deployed": True}}
    assert changes(download(manifest(size=sizes, files=files))) == {
        "original": 10**6,
        "smaller changes": 60,
        "build": 10**6 + 60,
    }


def test_memory_is_weights_and_activations_at_their_peak() -> None:
    assert changes(memory(manifest())) == {"weights": 11_000, "activations": 5_000, "model": 16_000}
    unknown = manifest(activations={"not_planned": "the shapes are not known"})
    assert changes(memory(unknown)) == {"weights": 11_000, "model": 11_000}


def test_the_page_says_it_and_escapes_names() -> None:
    html = waterfalls({"cpu-int8": manifest("onnxruntime")})
    for said in (
        "<b>cpu-int8</b> <span>41.0 KiB → 13.2 KiB; activations 4.88 KiB</span>",
        "−38.1 KiB",
        "at conv&lt;1&gt; (Conv)",
        "5,000 bytes",
        '<th scope="row">5 more</th>',
        "9.1%",
    ):
        assert said in html
    assert "conv<1>" not in html
    assert "Activations are not planned: no &lt;b&gt;" in waterfalls(
        {"b": manifest(activations={"not_planned": "no <b>"})}
    )


def test_builds_of_before_have_no_sizes() -> None:
    old = {"runtime": {"name": "onnxruntime"}, "steps": []}
    assert waterfalls({"cpu-fp32": old}) == ""
    assert byte_sheet({"cpu-fp32": old}) is None


def test_markdown_has_a_row_a_build() -> None:
    sheet = byte_sheet({"a": manifest(), "b": manifest(activations={"not_planned": "no inputs"})})
    assert sheet is not None
    text = markdown(sheet)
    assert "| a     | 41.0 KiB | int8 9.77 KiB, fp32 1,000 B" in text
    assert "(kernels, plan and page)" in text
    assert "not planned (no inputs)" in text
