"""Details: what was done to each build, how it is made again, and how every figure was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from polycast import kernels
from polycast.evaluating.evaluation import Evaluation
from polycast.evaluating.refused import Refused

from .prose import boxed, prose
from .sheets import costs_text, promise_text

Manifest = Mapping[str, Any]

#: So many names of nodes are listed in full; the rest are counted.
NAMED = 12


def details(
    evaluations: Sequence[Evaluation],
    refused: Sequence[Refused],
    manifests: Mapping[str, Manifest],
    commands: Mapping[str, Sequence[str]],
) -> str:
    """Write one folded section a build: its command, its promise, its passes with sites and skips, its kernels."""
    parts = [_build(e, manifests.get(e.build.name), commands.get(e.build.name, ())) for e in evaluations]
    parts += [_refused(each, commands.get(each.name, ())) for each in refused]
    return f'<section class="details"><h2>How each was made</h2>{"".join(parts)}</section>'


def _build(evaluation: Evaluation, manifest: Manifest | None, lines: Sequence[str]) -> str:
    name = evaluation.build.name
    rows = [("promise", escape(promise_text(evaluation.build.promise)))]
    if manifest is not None:
        rows += _facts(manifest)
    if costs := costs_text(evaluation.costs):
        rows.append(("time", escape(f"slower than the original: {costs}")))
    rows += [("note", escape(note)) for note in evaluation.notes]
    steps = _steps(manifest["steps"]) if manifest is not None else f'<p class="among">{_GONE}</p>'
    count = _counted(manifest["steps"]) if manifest is not None else ""
    return (
        f'<details id="build-{escape(name)}"><summary><b>{escape(name)}</b> <span>{count}</span></summary>'
        f"{_commands(lines)}{_listed(rows)}{steps}</details>"
    )


_GONE = "The build is not where it was, so that its passes cannot be shown."


def _refused(refused: Refused, lines: Sequence[str]) -> str:
    rows = [("refused", escape(refused.reason)), *([("hint", escape(refused.hint))] if refused.hint else [])]
    return (
        f'<details id="build-{escape(refused.name)}"><summary><b>{escape(refused.name)}</b> '
        f"<span>refused</span></summary>{_commands(lines)}{_listed(rows)}</details>"
    )


def _commands(lines: Sequence[str]) -> str:
    """Write the commands that make a build again, with a button that copies them where scripts run."""
    if not lines:
        return ""
    # A word is broken only where it fills the line by itself, and no option at its hyphens.
    text = "\n".join(" ".join(f"<span>{escape(word)}</span>" for word in line.split(" ")) for line in lines)
    button = '<button type="button" class="copy" hidden>Copy</button>'
    return f'<div class="command"><pre tabindex="0"><code>{text}</code></pre>{button}</div>'


def _listed(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<div><dt>{key}</dt><dd>{text}</dd></div>" for key, text in rows) + "</dl>"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Give what the manifest says beside the steps: the choice of auto, kernels, samples."""
    rows = []
    if auto := manifest.get("auto"):
        over = _reasons(auto.get("passed_over", {}))
        on = f", measured on {escape(auto['on'])}" if "on" in auto else ""
        rows.append(("auto", f"took <b>{escape(str(auto['chosen']))}</b>{on}{over}"))
        if layers := auto.get("layers"):
            own = {str(row["layer"]): f"{row['way']}{row['why'] and ': '}{row['why']}" for row in layers}
            rows.append(("layer by layer", _reasons(own)))
    if (guard := manifest.get("guard")) and guard.get("kept"):
        rows.append(("kept in float", _reasons(guard["kept"])))
    if counted := manifest["runtime"].get("kernels"):
        said = f"{counted['integer']} of {counted['of']} kernels with weights run on integers"
        ops = ", ".join(f"{count} {escape(op)}" for op, count in counted.get("ops", {}).items())
        floats = f"<p>in float: {_names(counted['float'])}</p>" if counted.get("float") and counted["integer"] else ""
        rows.append(("kernels", f"{said}{ops and f' ({ops})'}{floats}"))
    if taken := kernels.delegated(manifest["runtime"]):
        rows.append(("delegate", escape(taken)))
    if calibration := manifest.get("calibration"):
        lint = "".join(f"<li>{escape(line)}</li>" for line in calibration.get("lint", ()))
        said = f"{calibration['samples']:,} samples ({escape(str(calibration.get('kind', '')))})"
        rows.append(("calibration", said + (f"<ul>{lint}</ul>" if lint else "")))
    versions = manifest["runtime"].get("versions", {})
    if versions:
        rows.append(("runtime", escape(", ".join(f"{name} {version}" for name, version in versions.items()))))
    return rows


def _reasons(reasons: Mapping[str, Any]) -> str:
    """List what each of several is there for."""
    items = "".join(f"<li><b>{escape(name)}</b> {prose(str(reason))}</li>" for name, reason in reasons.items())
    return f"<ul>{items}</ul>" if items else ""


def _counted(steps: Sequence[Mapping[str, Any]]) -> str:
    sites, skips = sum(s["sites"] for s in steps), sum(len(s["skips"]) for s in steps)
    return f"{sites:,} site{'s' * (sites != 1)}, {skips:,} skip{'s' * (skips != 1)}"


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    """Write the passes that acted or skipped as a table; skips of one op for one reason are one line."""
    rows, idle = [], []
    for step in steps:
        if not step["sites"] and not step["skips"]:
            idle.append(f"<code>{escape(step['pass'])}</code>")
            continue
        alike: dict[tuple[str, str], list[str]] = {}
        for skip in step["skips"]:
            alike.setdefault((skip["op"], skip["reason"]), []).append(skip["node"])
        skips = "".join(
            f"<li><b>{len(nodes)} {escape(op)}</b> {escape(reason)}<small>{_names(nodes)}</small></li>"
            for (op, reason), nodes in alike.items()
        )
        rows.append(
            f'<tr><th scope="row"><code>{escape(step["pass"])}</code></th><td>{step["sites"]:,}</td>'
            f"<td>{f'<ul>{skips}</ul>' if skips else '–'}</td></tr>"
        )
    table = (
        '<table class="steps"><thead><tr><th scope="col">pass</th><th scope="col">sites</th>'
        f'<th scope="col">skipped, and why</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    nothing = f'<p class="among">Nothing to do for {", ".join(dict.fromkeys(idle))}.</p>' if idle else ""
    return (boxed("Passes", table) if rows else "") + nothing


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return escape(", ".join(names[:NAMED])) + more


def measured_how(evaluations: Sequence[Evaluation]) -> str:
    """Say how each figure was measured: over how much, with which interval, by which evidence."""
    rows: dict[str, tuple[str, ...]] = {}
    for evaluation in evaluations:
        for name, found in evaluation.measurements.items():
            change = evaluation.differences.get(name)
            rows.setdefault(
                name,
                (
                    _WHAT.get(name, "of the outputs on the samples"),
                    f"{found.n:,}",
                    found.spread.what if found.spread else "none",
                    change.interval.what if change else "none",
                    found.evidence,
                ),
            )
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, cells in rows.items()
    )
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("figure", "what it is", "n", "interval", "of the change", "evidence")
    )
    evidence = {e.evidence for evaluation in evaluations for e in evaluation.measurements.values()}
    said = "".join(f"<li><b>{kind}</b> {_EVIDENCE[kind]}</li>" for kind in _EVIDENCE if kind in evidence)
    title = "How each figure was measured"
    table = boxed(title, f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")
    return f'<section class="measured"><h2>{title}</h2>{table}<ul class="notes">{said}</ul></section>'


_WHAT = {
    "top1": "share of samples whose label has the highest score",
    "top5": "share of samples whose label is among the five highest scores",
    "perplexity": "exp of the mean negative log-likelihood of a token",
    "spearman": "rank correlation with the labels",
    "kl": "Kullback-Leibler divergence from the original’s class scores, mean of a row",
    "size": "bytes that are deployed: the model and its weights",
    "latency": "median time of one run, in turns with the original, in processes of their own",
    "latency_p90": "time that nine runs of ten stay under",
    "latency_p99": "time that 99 runs of 100 stay under",
    "throughput": "samples a second at that median",
    "speedup": "the original’s median time over the build’s, round by round",
    "memory": "resident memory that opening and running it adds to a process of its own",
    "load_time": "time to open it in a fresh process",
    "agreement": "share of samples with the same class as the original",
    "sqnr": "signal to quantization noise of the outputs, against the original’s",
}

_EVIDENCE = {
    "device": "was measured on that hardware.",
    "emulated": "comes from a software stand-in: numerics only, never speed.",
    "predicted": "comes from a model of the hardware.",
}
