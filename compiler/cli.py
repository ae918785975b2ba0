"""The command line: parses, calls the API, prints. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .errors import BudgetError, PolycastError
from .manual import Group
from .options import PATH as _PATH
from .options import Shape, of_a_device

if TYPE_CHECKING:
    from .progress import Progress


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_POLYCAST_COMPLETE=bash_source polycast)" (or zsh_source, fish_source).',
)
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def app(context: click.Context, debug: bool) -> None:
    """Cast one trained model into a build for each kind of hardware, and prove what each build costs.

    \b
    polycast compile model.onnx -t cpu -p fp32 --data test.npz -o out
    polycast evaluate out/cpu-fp32 --against model.onnx --data test.npz --max-drop 1pp
    polycast show model.onnx
    """
    context.obj = debug


@app.command()
@click.argument("model")
@click.option("-t", "--target", default="cpu", show_default=True, metavar="T,…", help="Targets; see polycast targets.")
@click.option("-p", "--precision", default="fp32", show_default=True, metavar="P,…", help="fp32, fp16 … or auto.")
@click.option("--runtime", default="", metavar="R", help="What executes the builds; in short: -t cuda:sm_90@R.")
@click.option("--tune", type=click.FloatRange(0), default=0, metavar="MIN", help="Try schedules on this machine first.")
@click.option("--recipe", type=_PATH, metavar="F.toml", help="A recipe of your own in place of -p.")
@click.option("--passes", metavar="TEXT", help='A pipeline in place of -p: "clean | fuse_gelu".')
@click.option("--calibration", type=_PATH, metavar="C", help="Unlabelled samples that passes may look at.")
@click.option("--data", type=_PATH, metavar="V", help="Samples that builds are compared on; no pass sees them.")
@click.option("--shape", "shapes", type=Shape(), multiple=True, help="Fix the shape of an input; ..8: 8 at most.")
@click.option("-o", "--out", type=_PATH, required=True, metavar="DIR", help="Builds land in DIR/<target>-<precision>.")
@click.option("--keep", type=_PATH, metavar="DIR", help="Keep the model after each pass.")
@click.option("--max-drop", metavar="X", help="Accuracy that -p auto may lose: 1pp, 0.5% or 0.01.")
@click.option("--max-size", metavar="B", help="Largest size on disk for -p auto: 500KB, 2MiB.")
@click.option("--max-latency", type=float, metavar="MS", help="Largest median latency in ms for -p auto.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="What tells the drop; as for evaluate.")
@click.option("--max-memory", metavar="B", help="What looking at the calibration samples may hold: 2GiB.")
@click.option("--max-cpu-share", type=float, metavar="P", help="Percent of MACs that may fall back to the CPU.")
@click.option("--force", is_flag=True, help="Build, though what lies in DIR is up to date.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def compile(
    model: str,
    target: str,
    precision: str,
    runtime: str,
    tune: float,
    recipe: Path | None,
    passes: str | None,
    calibration: Path | None,
    data: Path | None,
    shapes: tuple[tuple[str, tuple[int | str, ...]], ...],
    out: Path,
    keep: Path | None,
    max_drop: str | None,
    max_size: str | None,
    max_latency: float | None,
    metrics: tuple[str, ...],
    max_memory: str | None,
    max_cpu_share: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compile MODEL (an ONNX file, a Hugging Face folder or id) for one or more targets."""
    from . import gate
    from .compile import compile as run
    from .show import print_compiled

    with _progress("tuned", *(["calibrate"] if max_memory else [])) as progress:
        builds = run(
            model,
            target,
            precision,
            out=out,
            recipe=recipe,
            passes=passes,
            calibration=calibration,
            data=data,
            shapes=dict(shapes),
            runtime=runtime,
            tune=tune,
            keep=keep,
            max_drop=max_drop,
            max_size=max_size,
            max_latency=max_latency,
            metrics=metrics,
            max_memory=max_memory,
            max_cpu_share=max_cpu_share,
            force=force,
            progress=progress,
        )
    table = gate.read(out) if len(builds) > 1 else None
    if as_json:
        _print_json({"builds": [b.to_json() for b in builds]} | ({"agreement": table.to_json()} if table else {}))
    else:
        print_compiled(builds, table)


@app.command()
@click.argument("builds", nargs=-1, required=True, type=_PATH, metavar="BUILD…")
@click.option("--against", required=True, metavar="MODEL", help="The original.")
@click.option("--data", required=True, type=_PATH, metavar="V", help="Labelled samples.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="top1, sqnr … or module:function; repeatable.")
@click.option("--max-drop", metavar="X", help="Accuracy that may be lost: 1pp, 0.5% or 0.01.")
@click.option("--max-size", metavar="B", help="Largest size on disk: 500KB, 2MiB.")
@click.option("--max-latency", type=float, metavar="MS", help="Largest median latency in ms.")
@click.option("--json", "into", type=_PATH, metavar="F", help="Write the evaluations to a file.")
def evaluate(
    builds: tuple[Path, ...],
    against: str,
    data: Path,
    metrics: tuple[str, ...],
    max_drop: str | None,
    max_size: str | None,
    max_latency: float | None,
    into: Path | None,
) -> None:
    """Measure builds against the original: accuracy, speed, memory, size. Exit status 3 when a budget is missed."""
    from .evaluate import evaluate as run
    from .report import Report

    with _progress() as progress:
        found = run(
            list(builds),
            against=against,
            data=data,
            metrics=metrics,
            max_drop=max_drop,
            max_size=max_size,
            max_latency=max_latency,
            progress=progress,
        )
    report = Report(tuple(found))
    if into is not None:
        _write(into, report.render("json"))
    click.echo(report.render("table", color=True), nl=False)
    missed = [f"{each.build}: {line}" for each in found for line in each.missed]
    if missed:
        raise BudgetError("budget missed: " + "; ".join(missed))


@app.command()
@click.argument("model")
@click.option("-t", "--target", default="cpu", show_default=True, metavar="T,…", help="Targets; see polycast targets.")
@click.option("-p", "--precision", required=True, metavar="P,…", help="fp32, fp16, int8 …, auto.")
@click.option("--calibration", type=_PATH, metavar="C", help="Unlabelled samples that passes may look at.")
@click.option("--data", required=True, type=_PATH, metavar="V", help="Labelled samples; no pass sees them.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="top1, sqnr … or module:function; repeatable.")
@click.option("--max-drop", metavar="X", help="Accuracy that may be lost: 1pp, 0.5% or 0.01.")
@click.option("--max-size", metavar="B", help="Largest size on disk: 500KB, 2MiB.")
@click.option("--max-latency", type=float, metavar="MS", help="Largest median latency in ms.")
@click.option("--shape", "shapes", type=Shape(), multiple=True, help="Fix the shape of an input; ..8: 8 at most.")
@click.option("--max-memory", metavar="B", help="What looking at the calibration samples may hold: 2GiB.")
@click.option("--max-cpu-share", type=float, metavar="P", help="Percent of MACs that may fall back to the CPU.")
@click.option("-o", "--out", type=_PATH, required=True, metavar="DIR", help="Builds and report land in DIR.")
def sweep(
    model: str,
    target: str,
    precision: str,
    calibration: Path | None,
    data: Path,
    metrics: tuple[str, ...],
    max_drop: str | None,
    max_size: str | None,
    max_latency: float | None,
    shapes: tuple[tuple[str, tuple[int | str, ...]], ...],
    max_memory: str | None,
    max_cpu_share: float | None,
    out: Path,
) -> None:
    """Build and evaluate MODEL for every target at every precision, and write one report: DIR/report.html.

    What is done is kept: a second run does nothing, an interrupted one goes on. Exit status 3 when a budget is missed.
    """
    from .sweep import FILES
    from .sweep import sweep as run

    with _progress(*(["calibrate"] if max_memory else [])) as progress:
        report = run(
            model,
            target,
            precision,
            data=data,
            out=out,
            calibration=calibration,
            metrics=metrics,
            max_drop=max_drop,
            max_size=max_size,
            max_latency=max_latency,
            shapes=dict(shapes),
            max_memory=max_memory,
            max_cpu_share=max_cpu_share,
            progress=progress,
            say=progress.say,
        )
        progress.say(f"report: {out / FILES['html']}")
    click.echo(report.render("table", color=True), nl=False)
    missed = [f"{each.build}: {line}" for each in report.evaluations for line in each.missed]
    missed += [f"{each.name}: {each.reason}" for each in report.refused if each.kind == BudgetError.__name__]
    if missed:
        raise BudgetError("budget missed: " + "; ".join(missed))


@app.command()
@click.argument("sources", nargs=-1, required=True, type=_PATH, metavar="DIR_OR_JSON…")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "md", "json", "csv", "html"]),
    default="table",
    show_default=True,
)
@click.option("-o", "--out", type=_PATH, metavar="F", help="Write to a file instead of stdout.")
def report(sources: tuple[Path, ...], form: str, out: Path | None) -> None:
    """Print evaluations (files of evaluate --json) and builds (folders) side by side."""
    from .report import Report

    text = Report.read(list(sources)).render(form, color=out is None)
    if out is None:
        click.echo(text, nl=False)
    else:
        _write(out, text)


@app.command()
@click.argument("build", type=_PATH)
@of_a_device
def verify(build: Path, **there: Any) -> None:
    """Check BUILD: the hash of every file, and the golden outputs where the target runs here, or on a device."""
    from .devices.verify import print_verified

    sys.exit(print_verified(build, **there))


@app.command()
@click.argument("build", type=_PATH)
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def serve(build: Path, no_browser: bool) -> None:
    """Show BUILD in the browser, on this machine alone, until Ctrl-C. For builds of -t webgpu."""
    from .serve import show

    show(build, browser=not no_browser, say=click.echo)


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def targets(as_json: bool) -> None:
    """List the targets and their runtimes: what can be built and what can be run here, on what, and what mends it."""
    from .doctor import examine, render

    rows, width = examine(), shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    _print_json(rows) if as_json else click.echo(render(rows, width, color=width is not None), nl=False)


@app.command()
@click.argument("target")
def setup(target: str) -> None:
    """Make the environment that a runtime of TARGET needs for itself. It is made at the first use otherwise."""
    from . import targets

    click.echo(targets.find(target).set_up())


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def passes(as_json: bool) -> None:
    """List the passes: parameters, numerics, needs."""
    from .show import pass_table, print_passes

    _print_json(pass_table()) if as_json else print_passes(pass_table())


@app.command()
@click.argument("model_or_build", metavar="MODEL_OR_BUILD")
@click.option("-t", "--target", default="cpu", show_default=True, help="Whose passes to try on a model.")
@click.option("-p", "--precision", default="fp32", show_default=True, help="Whose passes to try on a model.")
@click.option("--passes", metavar="TEXT", help='A pipeline to try in place of -p: "clean | fuse_gelu".')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def show(model_or_build: str, target: str, precision: str, passes: str | None, as_json: bool) -> None:
    """Show a model or a build: its signature, weights and ops; what each pass did, and why it did not more."""
    from .show import print_shown
    from .show import show as describe

    with _progress() as progress:
        table = describe(model_or_build, target, precision, passes, progress)
    _print_json(table) if as_json else print_shown(table)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns: the exit status: 0 fine, 1 PolycastError, 2 usage, 3 budget missed."""
    # A termination signal unwinds like Ctrl-C, so that nothing half-written is left behind.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app.main(arguments, prog_name="polycast", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("polycast: interrupted", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo("polycast: interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except PolycastError as error:
        if "--debug" in arguments:
            raise
        click.echo(f"polycast: {error.message}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        return error.exit_status
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        return 0
    except Exception as error:
        if "--debug" in arguments:
            raise
        click.echo(f"polycast: a bug of ours: {type(error).__name__}: {error}", err=True)
        click.echo("  Run polycast --debug … for the traceback, and report it.", err=True)
        return 1
    return 0


def _progress(*aloud: str) -> Progress:
    from .progress import Progress

    return Progress(*aloud)


def _print_json(table: Any) -> None:
    click.echo(json.dumps(table, indent=2, ensure_ascii=False))


def _write(path: Path, text: str) -> None:
    from .errors import InputError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
