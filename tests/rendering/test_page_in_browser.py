"""The HTML report in a real browser: it asks for nothing, fits a phone and a desk, sorts, points and copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Tab, chromium
from evaluations import crowd, report, sensitivity, sized

from polycast.rendering.page import page as page_of


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    [group] = report(sensitivity={"cpu-int8": sensitivity(40)})._groups()
    manifests = {name: sized(runtime) | {"steps": []} for name, runtime in (("a", "onnxruntime"), ("b", "runner"))}
    cell = {"build": "cpu-int8", "against": "original", "n": 16, "worst": 0.25, "noise": 2.0, "evidence": "device"}
    near = [cell | {"within_tolerance": held} for held in (True, False)]
    path.write_text(page_of([replace(group, manifests=manifests, agreement=near)], {"evaluations": []}), "utf-8")
    return path


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium() as tab:
        yield tab


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_fits_and_is_silent(tab: Tab, page: Path, width: int, dark: bool) -> None:
    tab.open(page, width, dark)
    tab.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.run("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    wide = (
        "[...document.querySelectorAll('main *')].filter(one => !one.closest('.box, svg')"
        " && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"
    )
    assert tab.run(wide) == []
    assert tab.told("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    asked = {event["request"]["url"] for event in tab.told("Network.requestWillBeSent")}
    assert asked == {page.resolve().as_uri()}, "the page asks for something"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(tab: Tab, page: Path, dark: bool) -> None:
    """Source: WCAG 2.2, success criterion 1.4.3: 4.5 to 1 for text."""
    tab.open(page, 1280, dark)
    tab.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.run(CONTRAST) == []


#: Every text with its ratio below 4.5; what lies behind it is the nearest opaque background with the others over it.
CONTRAST = """(() => {
  const parse = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const behind = one => {
    const layers = [];
    for (let e = one; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const low = [];
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || one.closest('title, option') || !one.getClientRects().length) continue;
    const style = getComputedStyle(one);
    const ink = parse(one.closest('svg') ? style.fill : style.color), paper = behind(one);
    const [a, b] = [light(over(ink, paper)), light(paper)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${one.tagName} ${walker.currentNode.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
})()"""

ORDER = (
    "[...document.querySelectorAll('table.figures tbody tr')]"
    ".map(row => row.querySelector('th a, th').firstChild.textContent.trim())"
)


def press(tab: Tab, head: str) -> list[str]:
    """Press the heading of a column; give the order of the rows."""
    tab.run(
        "[...document.querySelectorAll('table.figures th button')]"
        f".find(one => one.firstChild.textContent.trim() === '{head}').click()"
    )
    order = tab.run(ORDER)
    assert order[0] == "original", "the original stays first"
    assert order[-1] == "cpu-int3", "what was refused stays last"
    return order[1:-1]


def test_a_heading_sorts_its_column(tab: Tab, page: Path) -> None:
    tab.open(page, 1280)
    size = {e.build.name: e.measurements["size"].value for e in crowd()}
    latency = {e.build.name: e.measurements["latency"].value for e in crowd()}
    assert press(tab, "size") == sorted(size, key=lambda name: size[name])
    assert press(tab, "size") == sorted(size, key=lambda name: -size[name])
    assert press(tab, "latency") == sorted(latency, key=lambda name: latency[name])
    assert press(tab, "build") == sorted(size)
    assert tab.run("document.querySelectorAll('table.figures th[aria-sort]').length") == 1


def test_on_a_phone_a_list_sorts(tab: Tab, page: Path) -> None:
    tab.open(page, 390)
    tab.run("document.querySelector('.sorter select').value = 1")
    tab.run("document.querySelector('.sorter select').dispatchEvent(new Event('change'))")
    assert tab.run(ORDER)[1] == "cpu-int2"
    assert tab.run("getComputedStyle(document.querySelector('.figures thead')).display") == "none"


def test_every_build_is_on_both_plots(tab: Tab, page: Path) -> None:
    tab.open(page, 1280)
    builds = sorted([*(e.build.name for e in crowd()), "original"])
    for number in (0, 1):
        names = (
            f"[...document.querySelectorAll('.plot')[{number}].querySelectorAll('.point')].map(p => p.dataset.build)"
        )
        assert sorted(tab.run(names)) == builds


def test_a_point_says_what_it_is_to_mouse_and_keyboard(tab: Tab, page: Path) -> None:
    tab.open(page, 1280)
    tab.run("document.querySelector('.point[data-build=cpu-int8]').focus()")
    said = tab.run("document.getElementById('tip').textContent")
    assert said.startswith("int8: top1 98.08, 7.91 KiB")
    assert tab.run("document.querySelector('tr[data-build=cpu-int8]').classList.contains('lit')")
    box = "document.getElementById('tip').getBoundingClientRect()"
    assert tab.run(f"(box => box.left >= 0 && box.top >= 0 && box.right <= innerWidth)({box})")
    tab.run("document.activeElement.blur()")
    assert tab.run("document.getElementById('tip').hidden")


def test_a_command_is_copied(tab: Tab, page: Path) -> None:
    tab.open(page, 1280)
    assert tab.run("document.querySelectorAll('button.copy:not([hidden])').length") == len(crowd())
    tab.run("document.getElementById('build-cpu-int8').open = true")
    tab.run("navigator.clipboard.writeText = text => { globalThis.copied = text; return Promise.resolve(); }")
    assert tab.run("document.querySelector('#build-cpu-int8 .copy').click(), globalThis.copied").startswith(
        "polycast compile"
    )


def test_a_link_unfolds_its_build(tab: Tab, page: Path) -> None:
    tab.open(page, 1280)
    tab.run("document.querySelector('tr[data-build=cpu-int8] a').click()")
    tab.run("new Promise(done => setTimeout(done, 50))")
    assert tab.run("document.getElementById('build-cpu-int8').open")


def test_without_scripts_the_tables_are_all_there(tab: Tab, page: Path) -> None:
    tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page, 390)
        text = tab.ask("Runtime.evaluate", expression="document.body.innerText", returnByValue=True)["result"]["value"]
        assert "Ship cpu-int8." in text
        assert all(e.build.name in text for e in crowd())
        assert "Copy" not in text
    finally:
        tab.ask("Emulation.setScriptExecutionDisabled", value=False)
