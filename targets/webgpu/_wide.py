"""Kernels of float16 for adapters without it: they compute in float32, and read float16 weights as they are stored."""

from __future__ import annotations

import re

_DECLARED = re.compile(r"(?m)^(@group\(0\) @binding\(\d+\) var<storage, read> )(\w+) : array<f16>;$")


def widened(code: str, constants: set[int]) -> str:
    """Rewrite a WGSL module over float16 to one over float32.

    constants: the bindings that hold weights, two float16 a word; every other one holds float32.
    """
    if "enable f16;" not in code:
        return code
    lines = re.findall(r"(?m)^@group\(0\) @binding\(\d+\) .*$", code)
    packed = [found[2] for number in sorted(constants) if (found := _DECLARED.match(lines[number]))]
    for name in packed:
        code = _read_through(code, name)
    code = code.replace("enable f16;\n", "")
    code = re.sub(r"\bf16\b", "f32", code)
    return re.sub(r"(?<=\d)h\b", "f", code)


def _read_through(code: str, name: str) -> str:
    """Let every ``name[i]`` be a call of ``name_at(i)``, which takes the number out of its word."""
    declared = re.compile(rf"(?m)^(.*var<storage, read> {name} : array<)f16>;$")
    function = f"fn {name}_at(i : i32) -> f32 {{ return unpack2x16float({name}[i >> 1u])[i & 1i]; }}"
    head, line, tail = code.partition(declared.search(code)[0])  # type: ignore[index]  # it was found before
    start = f"{name}["
    out = []
    at = 0
    while (found := _next(tail, start, at)) >= 0:
        end = _closing(tail, found + len(start))
        inside = tail[found + len(start) : end]
        out += [tail[at:found], f"{name}_at({inside})"]
        at = end + 1
    return head + declared.sub(rf"\1u32>;\n{function}", line) + "".join(out) + tail[at:]


def _next(text: str, start: str, at: int) -> int:
    """Find ``start`` where it begins a word."""
    found = re.compile(rf"\b{re.escape(start)}").search(text, at)
    return found.start() if found else -1


def _closing(text: str, at: int) -> int:
    """Find the bracket that closes the one before ``at``."""
    depth = 1
    for position in range(at, len(text)):
        depth += {"[": 1, "]": -1}.get(text[position], 0)
        if not depth:
            return position
    raise ValueError("a bracket is not closed")
