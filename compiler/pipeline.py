"""Pipeline: an ordered list of passes that parses, prints, runs, and holds every pass to its contract."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from polycast.passes import catalogue
from polycast.reading.normal import check

from .errors import PassError, RecipeError
from .model import Model, Signature, Step
from .passbase import Numerics, Pass, PassContext

#: Called before each pass: which one (its spelling), how many are done, how many there are.
Progress = Callable[[str, int, int], None]

_CALL = re.compile(r"^\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*$", re.DOTALL)


@dataclass(frozen=True)
class Pipeline:
    """An ordered list of passes. Its text form, ``clean | fold(max_bytes=4096) | fuse_gelu``, round-trips."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline from its text form; the empty text is the empty pipeline.

        Raises: RecipeError naming the unknown pass or parameter with its nearest spelling, or the bad value.
        """
        return cls(tuple(parse_pass(part) for part in _split(text)))

    def __str__(self) -> str:
        return " | ".join(p.spelling for p in self.passes)

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.passes + other.passes)

    @property
    def kept(self) -> tuple[str, ...]:
        """What its passes were told to leave as it is: the names, op types and globs of their ``keep``."""
        keeps = (getattr(each, "keep", ()) for each in self.passes)
        return tuple(dict.fromkeys(name for keep in keeps if isinstance(keep, tuple) for name in keep))

    @property
    def numerics(self) -> Numerics:
        """The loosest numerics of any pass."""
        order = list(Numerics)
        return max((p.numerics for p in self.passes), key=order.index, default=Numerics.EXACT)

    def hastily(self) -> Pipeline:
        """Give the same passes with what ``Pass.hasty`` says of each."""
        return Pipeline(tuple(replace(each, **each.hasty) for each in self.passes))

    def run(
        self,
        model: Model,
        ctx: PassContext | None = None,
        *,
        keep: Path | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Send ``model`` through every pass.

        keep: a folder that gets the model after each pass, as ``00-load.onnx``, ``01-clean.onnx`` …
        Raises: PassError when a pass breaks its contract; its message names the pass, and the kept files.
        """
        ctx = replace(ctx or PassContext(), progress=progress)
        _keep(model, keep, 0, "load")
        for number, each in enumerate(self.passes, 1):
            if progress:
                progress(each.spelling, number - 1, len(self.passes))
            if each.numerics is Numerics.LOSSY and ctx.original is None:
                ctx = replace(ctx, original=model.graph)
            model = apply(each, model, ctx)
            _keep(model, keep, number, each.name())
        if progress:
            progress("", len(self.passes), len(self.passes))
        return model


def apply(each: Pass, model: Model, ctx: PassContext) -> Model:
    """Run one pass on a draft of ``model`` and hold it to the contract.

    Raises: PassError when the pass raises, changes the signature, miscounts its sites or leaves an invalid graph.
    """
    own = ctx.afresh()
    draft = model.draft()
    started = time.perf_counter()
    try:
        sites = each.rewrite(draft, own)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise PassError(f"{each.spelling} failed on {model.name}: {type(error).__name__}: {error}", _REPORT) from error
    step = Step(each.spelling, sites, tuple(own.skips), time.perf_counter() - started)
    after = model.then(draft, step)
    if not sites:
        # A pass that found nothing leaves the model as it was, inferred shapes and all.
        if after.digest != model.digest:
            raise PassError(f"{each.spelling} changed {model.name} and reports 0 sites", _REPORT)
        return model.then(model.graph, step)
    if after.digest == model.digest:
        raise PassError(f"{each.spelling} reports {sites} sites and left {model.name} as it was", _REPORT)
    if not keeps_signature(model.signature, after.signature):
        raise PassError(f"{each.spelling} changed the signature of {model.name}", _REPORT)
    try:
        check(draft)
    except Exception as error:  # the checker raises its own C++ error types
        lines = str(error.__cause__ or error).strip().splitlines() or ["?"]
        raise PassError(f"{each.spelling} left an invalid graph of {model.name}: {lines[0]}", _REPORT) from error
    return after


def keeps_signature(before: Signature, after: Signature) -> bool:
    """Whether names, dtypes and ranks are the same; an unknown or symbolic dimension may have become known."""

    def fits(old: tuple[int | str, ...] | None, new: tuple[int | str, ...] | None) -> bool:
        if old is None or new is None:
            return True
        return len(old) == len(new) and all(
            o == n or not (isinstance(o, int) and isinstance(n, int)) for o, n in zip(old, new, strict=True)
        )

    return all(
        len(olds) == len(news)
        and all(
            o.name == n.name and o.dtype == n.dtype and fits(o.shape, n.shape) for o, n in zip(olds, news, strict=True)
        )
        for olds, news in ((before.inputs, after.inputs), (before.outputs, after.outputs))
    )


def parse_pass(text: str) -> Pass:
    """Read one pass: ``name`` or ``name(parameter=value, …)``, values being Python literals.

    Raises: RecipeError.
    """
    match = _CALL.match(text)
    if match is None:
        raise RecipeError(f"cannot read {text.strip()!r} as a pass", 'Write it as "clean" or "fold(max_bytes=4096)"')
    name, arguments = match.groups()
    known = catalogue()
    if name not in known:
        raise RecipeError.unknown("pass", name, known)
    return make_pass(known[name], _arguments(name, arguments or ""))


def make_pass(kind: type[Pass], parameters: Mapping[str, object]) -> Pass:
    """Build a pass from its parameters.

    Raises: RecipeError for an unknown parameter, or a value of the wrong type.
    """
    declared = {f.name: f for f in fields(kind)}
    for name, value in parameters.items():
        if name not in declared:
            raise RecipeError.unknown(f"parameter of {kind.name()}", name, declared)
        default = declared[name].default
        wanted: tuple[type, ...] = (int, float) if type(default) is float else (type(default),)
        if default is not None and type(value) not in wanted:
            raise RecipeError(
                f"{kind.name()}: {name} takes {type(default).__name__}, not {value!r}",
                f"Its default is {default!r}",
            )
    try:
        return kind(**parameters)
    except ValueError as error:
        raise RecipeError(f"{kind.name()}: {error}") from error


def _arguments(name: str, text: str) -> dict[str, object]:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("parameters are given by name")
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"cannot read the parameters of {name}({text}): {error}", f'Write them as {name}(key=1, other="text")'
        ) from error


def _split(text: str) -> list[str]:
    """Split at each "|" that is not inside brackets or quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "|" and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [] if not text.strip() else parts


def _keep(model: Model, folder: Path | None, number: int, name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        model.write(folder / f"{number:02d}-{name}.onnx")


_REPORT = "This is a bug of the pass. Run again with --keep DIR to have the model after each pass, and report it."
