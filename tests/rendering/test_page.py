"""The HTML report as text: it stands alone, says what to ship, and runs nothing that a name smuggles in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from evaluations import REFUSED, crowd, evaluation, report, sensitivity

from polycast.evaluating.budget import Verdict
from polycast.evaluating.evaluation import Evaluation
from polycast.evaluating.scoring import Difference
from polycast.rendering.advice import advise, telling
from polycast.rendering.heatmap import heatmap, joined
from polycast.rendering.page import page
from polycast.rendering.panels import panels
from polycast.rendering.prose import prose
from polycast.report import Report
from polycast.statistics import Interval

VOID = {"meta", "br", "img", "link", "input", "path", "circle"}


class Reader(HTMLParser):
    """Collects every element with its attributes and text, and holds tags to their pairs."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    """The report of a crowd of builds."""
    return report().render("html")


def test_the_page_stands_alone(html: str) -> None:
    read = Reader(html)
    assert not [tag for tag, _ in read.elements if tag in ("link", "img", "iframe", "object", "base", "form")]
    assert not [
        a for _, attributes in read.elements for a in attributes if a in ("src", "srcset") or a.startswith("on")
    ]
    assert all((a.get("href") or "").startswith("#") for a in read.all("a"))
    assert not re.search(r"url\(|@import|https?:", html), "nothing to fetch, not even in a comment"


def test_only_its_own_script_may_run(html: str) -> None:
    read = Reader(html)
    data, script = read.all("script")
    assert (data["type"], data["id"]) == ("application/json", "data")
    assert script == {}
    text = read.texts["script"][1]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    [policy] = [m["content"] or "" for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_report_is_in_the_page_as_json(html: str) -> None:
    assert json.loads(Reader(html).texts["script"][0]) == report().to_json()


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;\u2028"


def test_a_hostile_name_is_text_and_nothing_else() -> None:
    bad = evaluation("int8", 8100, 0.02, 0.001)
    bad = replace(
        bad,
        build=replace(bad.build, name=HOSTILE, precision=HOSTILE, target=HOSTILE),
        against=f"{HOSTILE} (abc)",
        data=HOSTILE,
        notes=(HOSTILE,),
        budgets=(Verdict("max_drop", "1pp", HOSTILE, False),),
        not_run={"memory": HOSTILE},
        costs=HOSTILE,
    )
    table = sensitivity(2)
    table["layers"][0] |= {"name": HOSTILE, "op": HOSTILE, "nodes": [HOSTILE]}
    table["ways"][0]["name"] = HOSTILE
    manifest: dict[str, Any] = {
        "runtime": {
            "versions": {HOSTILE: HOSTILE},
            "kernels": {
                "integer": 1,
                "of": 2,
                "ops": {HOSTILE: 1},
                "float": [HOSTILE],
                "xnnpack": {"takes": 1, "of": 2, "left": {HOSTILE: 1}},
            },
        },
        "auto": {
            "chosen": HOSTILE,
            "passed_over": {HOSTILE: HOSTILE},
            "layers": [{"layer": HOSTILE, "way": HOSTILE, "why": HOSTILE}],
        },
        "guard": {"kept": {HOSTILE: HOSTILE}},
        "calibration": {"samples": 3, "kind": HOSTILE, "lint": [HOSTILE]},
        "steps": [{"pass": HOSTILE, "sites": 1, "skips": [{"node": HOSTILE, "op": HOSTILE, "reason": HOSTILE}]}],
    }
    refused = replace(REFUSED, name=HOSTILE + "2", reason=HOSTILE, hint=HOSTILE, against=bad.against)
    given = Report((bad,), (refused,), {HOSTILE: (HOSTILE,)}, {HOSTILE: table})
    [group] = given._groups()
    html = page([replace(group, manifests={HOSTILE: manifest})], given.to_json())
    read = Reader(html)
    assert len(read.all("script")) == 2
    assert not read.all("img")
    assert not [a for _, attributes in read.elements for a in attributes if a.startswith("on")]
    assert json.loads(read.texts["script"][0])["evaluations"][0]["build"]["name"] == HOSTILE
    assert html.count("&lt;img src=x onerror") > 20, "it is shown, as text"


def test_headings_have_a_scope_and_plots_a_name(html: str) -> None:
    read = Reader(html)
    assert all(head.get("scope") in ("col", "row") for head in read.all("th"))
    assert all(svg.get("aria-label") for svg in read.all("svg"))
    assert read.all("html") == [{"lang": "en"}]
    assert len(read.texts["h1"]) + len(read.texts["em"]) == 3


def test_every_build_is_a_row_and_a_refused_one_says_why(html: str) -> None:
    rows = re.findall(r'<tr class="(\w+)"', html)
    assert rows == ["original", *["build"] * 5, "missed", "build", "missed", "refused"]
    assert "asked 90% of weights in int3, reached 12.1%<small>Because: conv1 (Conv): 5 channels" in html
    assert "misses max drop: top1 is 1.42 pp worse, allowed 1pp" in html


def test_the_command_of_each_row_is_there(html: str) -> None:
    words = re.sub(r"</?span>", "", html)
    assert "<code>polycast compile m.onnx -p int8-dynamic -o out</code>" in words


def test_passes_skips_kernels_and_lint_come_from_the_manifest() -> None:
    manifest: dict[str, Any] = {
        "runtime": {
            "versions": {"onnxruntime": "1.32.0"},
            "kernels": {
                "integer": 8,
                "of": 10,
                "ops": {"QLinearConv": 8, "Conv": 2},
                "float": ["a", "b"],
                "xnnpack": {"takes": 31, "of": 34, "left": {"SIGN": 1, "TOPK_V2": 2}},
            },
        },
        "guard": {"kept": {"conv_4": "23 % of the noise"}},
        "auto": {
            "chosen": "mixed",
            "passed_over": {"fp16": "slower"},
            "layers": [
                {"layer": "l1", "way": "int8", "why": ""},
                {"layer": "l2", "way": "float", "why": "int8 is slower"},
            ],
        },
        "calibration": {"samples": 100, "kind": "arrays", "lint": ["2 of 100 are there twice"]},
        "steps": [
            {"pass": "fold", "sites": 0, "skips": []},
            {"pass": "int8", "sites": 9, "skips": [{"node": n, "op": "Conv", "reason": "1 channel"} for n in "xy"]},
        ],
    }
    [group] = report()._groups()
    html = page([replace(group, manifests={"cpu-int8": manifest})], {})
    for said in (
        "8 of 10 kernels with weights run on integers (8 QLinearConv, 2 Conv)",
        "in float: a, b",
        "XNNPACK takes 31 of 34 operators; left to LiteRT&#x27;s own kernels: 1 SIGN, 2 TOPK_V2",
        "<b>conv_4</b> 23 % of the noise",
        "took <b>mixed</b>",
        "<b>fp16</b> slower",
        "<b>l1</b> int8<",
        "<b>l2</b> float: int8 is slower",
        "100 samples (arrays)",
        "2 of 100 are there twice",
        "<b>2 Conv</b> 1 channel<small>x, y</small>",
        "9 sites, 2 skips",
        "Nothing to do for <code>fold</code>.",
    ):
        assert said in html
    assert "The build is not where it was" in html, "of the builds without one"


@pytest.mark.parametrize(
    ("evaluations", "build", "says"),
    [
        (crowd(), "cpu-int8", "runs 2.13 times as fast as the original, takes 31 % of its bytes (7.91 KiB)"),
        ((evaluation("int8", 8100, 0.02, 0.03),), "", "No build is. Ship the original. The nearest is cpu-int8"),
        ((evaluation("fp32", 26400, 0.0491, 0.0),), "", "None gains anything"),
        ((evaluation("int4", 5000, 0.0491, 0.001),), "cpu-int4", "is as fast as the original, takes 19 %"),
        ((evaluation("int8", 8100, 0.02, 0.03, budget=None),), "", "No build is."),
        ((evaluation("int8", 8100, 0.02, 0.001, budget=None),), "cpu-int8", "top1 changes by -0.10 pp [-0.30, +0.10]"),
        (
            (evaluation("fp32", 26000, 0.0485, 0.0), evaluation("int8-weights", 8000, 0.0505, 0.001)),
            "cpu-int8-weights",
            "It is as fast as the original, takes 30 % of its bytes",
        ),
        ((evaluation("fp16", 13000, 0.098, 0.0),), "cpu-fp16", "takes 2.00 times as long as the original"),
        ((replace(evaluation("int8", 8100, 0.02, 0.0), n=0),), "", "Nobody has evaluated these builds yet"),
    ],
    ids=[
        "crowd",
        "all-miss",
        "no-gain",
        "smaller-alone",
        "plain-loss",
        "no-budget",
        "a-tie",
        "slower",
        "not-evaluated",
    ],
)
def test_what_to_ship(evaluations: tuple[Evaluation, ...], build: str, says: str) -> None:
    advice = advise(evaluations)
    assert advice.build == build
    assert says in advice.says


def test_the_three_bests_keep_the_budget() -> None:
    picks = {pick.word: pick.build for pick in advise(crowd()).picks}
    assert picks == {"Fastest": "cpu-auto", "Smallest": "cpu-int8", "Most accurate": "cpu-fp32"}


def unlabelled(agreement: float) -> Evaluation:
    """Make an evaluation that has agreement with the original and no labels."""
    made = evaluation("int8", 8100, 0.02, 1 - agreement, budget=None)
    keep = {name: m for name, m in made.measurements.items() if name != "top1"}
    baseline = {name: m for name, m in made.baseline.items() if name != "top1"}
    return replace(made, differences={}, measurements=keep, baseline=baseline)


def test_without_labels_agreement_decides() -> None:
    assert telling([unlabelled(0.995)]) == "agreement"
    assert advise([unlabelled(0.995)]).build == "cpu-int8"
    assert advise([unlabelled(0.985)]).build == ""
    assert "agreement % against size" in panels([unlabelled(0.995)])


def test_perplexity_is_better_when_it_falls() -> None:
    made = evaluation("int4", 5000, 0.02, 0.0, budget=None)
    change = Difference("perplexity", 0.5, "ppl", 100, "lower", Interval(0.3, 0.7, "95 %"))
    assert advise([replace(made, differences={"perplexity": change})]).build == ""
    change = Difference("perplexity", 0.05, "ppl", 100, "lower", Interval(-0.1, 0.2, "95 %"))
    advice = advise([replace(made, differences={"perplexity": change})])
    assert (advice.build, advice.says[-42:]) == ("cpu-int4", "perplexity changes by +0.0500 [-0.100, +0.200]."[-42:])


def test_what_was_not_timed_has_no_point_and_says_so() -> None:
    made = crowd()[2]
    still = {name: m for name, m in made.measurements.items() if name not in ("latency", "speedup")}
    untimed = replace(made, measurements=still, not_run={"latency": "emulated: numerics only, never speed"})
    drawn = panels([untimed])
    assert drawn.count("<svg") == 1
    assert "No build is here: emulated: numerics only, never speed." in drawn
    assert "1 not measured here" in panels([untimed, crowd()[0]])


def test_the_heat_map_is_darker_where_more_is_lost() -> None:
    table = sensitivity(1)
    table["layers"][0]["noise"] = [1e-6, 1e-3, 1e-1]
    drawn = heatmap([table])
    depths = [float(d) for d in re.findall(r"--depth:([\d.]+)", drawn.partition("<tfoot>")[0])]
    assert depths == sorted(depths)
    assert depths[0] == 0 < depths[1] < depths[2] == 1
    assert [f">{decibels}<" in drawn for decibels in ("60.0", "30.0", "10.0")] == [True] * 3


def test_a_layer_that_a_precision_does_not_reach_is_a_dash_and_its_cost_is_in_bytes() -> None:
    drawn = heatmap([sensitivity(1)])
    assert '<td class="cell">–</td>' in drawn
    assert '<td data-value="1750">+1.71 KiB</td>' in drawn


def test_sensitivities_of_several_builds_are_one_table() -> None:
    one, two = sensitivity(2), sensitivity(3)
    one["ways"], two["ways"] = one["ways"][:1], [two["ways"][0], two["ways"][2]]
    for row in one["layers"]:
        row |= {"noise": row["noise"][:1], "bytes": row["bytes"][:1]}
    for row in two["layers"]:
        row |= {"noise": [row["noise"][0], row["noise"][2]], "bytes": [row["bytes"][0], row["bytes"][2]]}
    both = joined([one, two])
    assert [way["name"] for way in both["ways"]] == ["int8", "int4"]
    assert [row["name"] for row in both["layers"]] == ["conv0", "conv1", "conv2"]
    assert both["layers"][0]["noise"] == [one["layers"][0]["noise"][0], two["layers"][0]["noise"][1]]
    assert both["layers"][2]["noise"] == [None, two["layers"][2]["noise"][1]]
    assert len(both["whole"]) == 2


def test_what_a_layer_takes_more_in_float_is_shown_where_it_is_known() -> None:
    table = sensitivity(2)
    assert "in float: ms" not in heatmap([table])
    table["layers"][0]["seconds"] = -0.000012
    drawn = heatmap([table])
    assert "in float: ms" in drawn
    assert '<td data-value="-1.2e-05">−0.012</td>' in drawn
    assert drawn.count("<td>–</td></tr>") == 1, "the other layer has none"


def test_without_a_sensitivity_it_is_said_how_to_get_one() -> None:
    assert "polycast sweep … -p int8 --calibration C" in report(sensitivity={}).render("html")


def test_minus_signs_are_set_and_names_are_left_alone() -> None:
    assert prose("-0.70 pp [-1.53, +0.13] of cpu-int8 -1 <b>") == "−0.70 pp [−1.53, +0.13] of cpu-int8 −1 &lt;b&gt;"


def test_two_models_are_two_answers() -> None:
    other = replace(crowd()[2], against="kws (abc)")
    html = report(crowd()[0], other).render("html")
    assert html.count("<h1>") == 2
    assert "<title>mnist and kws · polycast report</title>" in html
