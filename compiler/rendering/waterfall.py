"""Waterfall: where the bytes of a build go, from the original's to what a device downloads and holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from polycast.sizes import library

from .advice import size_text
from .prose import boxed, prose
from .tables import Cell, Column, Sheet

Manifest = Mapping[str, Any]

#: Changes of fewer bytes than this share of the largest figure are one step together.
SMALL = 0.002

#: A runtime that is so many times what the model takes has no bar, since the others would have none beside it.
DWARFS = 4

#: So many layers are shown.
LAYERS = 8

#: What a build holds beside its weights, by runtime.
_REST = {
    "onnxruntime": "graph",
    "litert": "graph",
    "tvm": "machine code",
    "runner": "kernels, plan and page",
    "onnxruntime-web": "graph and page",
}


@dataclass(frozen=True)
class Step:
    """A bar: ``start`` to ``end`` in bytes. A sum starts at 0; ``said`` is what there is to know of it."""

    name: str
    start: int
    end: int
    said: str = ""

    @property
    def is_sum(self) -> bool:
        """Whether it is a whole, and no change."""
        return self.start == 0

    @property
    def change(self) -> int:
        """The bytes that it adds."""
        return self.end - self.start


def download(manifest: Manifest) -> list[Step]:
    """Give the steps from the original's file to the build, and on to what has to be there to run it."""
    size, runtime = manifest["size"], str(manifest["runtime"]["name"])
    before, after = size["original"]["weights"], size["weights"]
    whole, deployed = size["original"]["bytes"], _deployed(manifest)
    steps = [Step("original", 0, whole)]
    changes = [(f"weights in {kind}", after.get(kind, 0) - before.get(kind, 0)) for kind in sorted({*before, *after})]
    rest = deployed - sum(after.values()) - (whole - sum(before.values()))
    # What goes comes before what takes its place.
    changes = [*sorted(changes, key=lambda change: change[1]), (_REST.get(runtime, "the rest"), rest)]
    least = SMALL * max(whole, deployed)
    small = sum(change for _, change in changes if abs(change) < least)
    for name, change in [each for each in changes if abs(each[1]) >= least] + [("smaller changes", small)] * bool(
        small
    ):
        steps.append(Step(name, steps[-1].end, steps[-1].end + change))
    steps.append(Step("build", 0, deployed))
    weight, said = library(runtime)
    if weight:
        steps += [Step("runtime", deployed, deployed + weight, said), Step("download", 0, deployed + weight)]
    return steps


def memory(manifest: Manifest) -> list[Step]:
    """Give what a device holds while it runs the build: weights, activations at their peak, the runtime's library."""
    planned = manifest.get("activations", {})
    stored = sum(manifest["size"]["weights"].values())
    steps = [Step("weights", 0, stored)]
    if "bytes" in planned:
        steps.append(Step("activations", stored, stored + planned["bytes"], f"at {planned['at']} ({planned['op']})"))
    steps.append(Step("model", 0, steps[-1].end))
    weight, said = library(str(manifest["runtime"]["name"]))
    if weight:
        steps += [Step("runtime", steps[-1].end, steps[-1].end + weight, said)]
        steps.append(Step("memory", 0, steps[-1].end))
    return steps


def waterfalls(manifests: Mapping[str, Manifest]) -> str:
    """Draw the steps of every build whose manifest says its sizes."""
    shown = {name: manifest for name, manifest in manifests.items() if "size" in manifest}
    if not shown:
        return ""
    parts = "".join(
        f'<details class="falls"><summary><b>{escape(name)}</b> <span>{_in_short(manifest)}</span></summary>'
        f'<div class="pair"><figure><h3>download</h3>{_bars(name, "download", download(manifest))}</figure>'
        f"<figure><h3>memory</h3>{_bars(name, 'memory', memory(manifest))}</figure></div>"
        f"{_planned(manifest)}{_layers(name, manifest)}</details>"
        for name, manifest in shown.items()
    )
    hint = (
        "From the original’s file to what a device downloads, and what it holds while it runs. The runtime is its "
        "library as it is installed here; one that dwarfs the model has no bar. Activations are planned from the "
        "graph (predicted), with inputs and outputs; a runtime may fuse more."
    )
    return f'<section class="bytes"><h2>Where the bytes go</h2><p class="hint">{hint}</p>{parts}</section>'


def byte_sheet(manifests: Mapping[str, Manifest]) -> Sheet | None:
    """Lay out the same in one row a build; None where no manifest says its sizes."""
    shown = {name: manifest for name, manifest in manifests.items() if "size" in manifest}
    if not shown:
        return None

    def column(name: str, give: Any) -> Column:
        return Column(name, "", tuple(Cell(*give(manifest)) for manifest in shown.values()), words=True)

    return Sheet(
        "Where the bytes go",
        (Column("build", "", tuple(map(Cell, shown)), words=True),),
        (
            column("original", lambda m: (size_text(m["size"]["original"]["bytes"]),)),
            column("weights", lambda m: (_by_kind(m["size"]["weights"]),)),
            column(
                "beside them", lambda m: (size_text(_deployed(m) - sum(m["size"]["weights"].values())), (_rest(m),))
            ),
            column("build", lambda m: (size_text(_deployed(m)),)),
            column("runtime", _runtime),
            column("activations", _activations),
        ),
        ("activations are planned from the graph (predicted), with inputs and outputs; a runtime may fuse more",),
    )


def _deployed(manifest: Manifest) -> int:
    return sum(int(file["bytes"]) for file in manifest["files"].values() if file.get("deployed"))


def _rest(manifest: Manifest) -> str:
    return _REST.get(str(manifest["runtime"]["name"]), "the rest")


def _by_kind(stored: Mapping[str, int]) -> str:
    heavy = sorted(stored.items(), key=lambda item: -item[1])
    least = SMALL * sum(stored.values())
    return ", ".join(f"{kind} {size_text(count)}" for kind, count in heavy if count >= least) or "none"


def _runtime(manifest: Manifest) -> tuple[str, tuple[str, ...]]:
    weight, said = library(str(manifest["runtime"]["name"]))
    return (size_text(weight), (said,)) if weight else (said, ())


def _activations(manifest: Manifest) -> tuple[str, tuple[str, ...]]:
    planned = manifest.get("activations", {})
    if "bytes" not in planned:
        return "not planned", (str(planned.get("not_planned", "")),)
    return size_text(planned["bytes"]), (f"at {planned['at']}",)


def _in_short(manifest: Manifest) -> str:
    before, after = manifest["size"]["original"]["bytes"], _deployed(manifest)
    planned = manifest.get("activations", {})
    peak = f"; activations {size_text(planned['bytes'])}" if "bytes" in planned else ""
    return escape(f"{size_text(before)} → {size_text(after)}{peak}")


def _bars(build: str, what: str, steps: Sequence[Step]) -> str:
    """Write steps as a table: a name, a figure, and a bar from where the one before ended."""
    most = max(max(step.start, step.end) for step in steps) or 1
    own = max(max(step.start, step.end) for step in steps if step.name not in ("runtime", what)) or 1
    most = most if most <= DWARFS * own else own
    rows = "".join(_bar(step, most) for step in steps)
    return boxed(f"{what} of {build}", f'<table class="falling"><tbody>{rows}</tbody></table>')


def _bar(step: Step, most: int) -> str:
    low, high = sorted((step.start, step.end))
    cut = high > most
    left, width = (0.0, 0.0) if cut else (100 * low / most, 100 * (high - low) / most)
    kind = "sum" if step.is_sum else "more" if step.change > 0 else "less"
    amount = size_text(step.end) if step.is_sum else ("+" if step.change > 0 else "-") + size_text(abs(step.change))
    said = f"<small>{escape(step.said)}</small>" if step.said else ""
    return (
        f'<tr class="{kind}{" cut" if cut else ""}"><th scope="row">{escape(step.name)}{said}</th>'
        f'<td>{prose(amount)}</td><td class="track"><i style="--left:{left:.2f}%;--width:{width:.2f}%"></i></td></tr>'
    )


def _planned(manifest: Manifest) -> str:
    planned = manifest.get("activations", {})
    if "bytes" not in planned:
        return f'<p class="among">Activations are not planned: {escape(str(planned.get("not_planned", "")))}.</p>'
    alive = ", ".join(f"<code>{escape(name)}</code> {size_text(size)}" for name, size in planned["alive"].items())
    given = ", ".join(f"{name} {'×'.join(map(str, dims)) or 'scalar'}" for name, dims in planned["shapes"].items())
    return (
        f'<p class="among">Activations take {size_text(planned["bytes"])} ({planned["bytes"]:,} bytes) in one block, '
        f"for {escape(given)}. The peak is at <code>{escape(planned['at'])}</code> ({escape(planned['op'])}), "
        f"where these are alive: {alive}.</p>"
    )


def _layers(name: str, manifest: Manifest) -> str:
    """Write the heaviest layers with what they store."""
    size = manifest["size"]
    whole = sum(size["weights"].values()) or 1
    shown, more = size["layers"][:LAYERS], size["layers"][LAYERS:]
    rows = [(each["layer"], each["op"], each["bytes"]) for each in shown]
    count = len(more) + size.get("others", {}).get("layers", 0)
    rest: dict[str, int] = {}
    for each in (*more, *([size["others"]] if "others" in size else [])):
        for kind, stored in each["bytes"].items():
            rest[kind] = rest.get(kind, 0) + stored
    if count:
        rows.append((f"{count} more", "", rest))
    body = "".join(
        f'<tr><th scope="row">{escape(layer)}</th><td>{escape(op)}</td><td>{escape(_by_kind(stored))}</td>'
        f"<td>{sum(stored.values()) / whole:.1%}</td></tr>"
        for layer, op, stored in rows
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("layer", "op", "stored", "of all"))
    return boxed(
        f"Layers of {name}", f'<table class="owners"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )
