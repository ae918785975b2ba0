"""The native runner as the tests use it: compiled once for each compiler and its flags, and run on a build."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polycast.targets._native import source

WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
SANITIZERS = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Said:
    """What the runner said: its exit status, its JSON, and the lines beside it."""

    status: int
    found: dict[str, Any]
    errors: str


def compiled(config: pytest.Config, compiler: str, *flags: str) -> Path:
    """Give the runner made by ``compiler``, from the cache of earlier runs where nothing has changed since."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} is here")
    words = [compiler, *WARNINGS, *flags]
    told = " ".join(words).encode() + source().read_bytes()
    runner = config.cache.mkdir("native-runner") / hashlib.sha256(told).hexdigest()[:16]
    if not runner.exists():
        half_made = runner.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*words, source(), "-o", half_made, "-ldl", "-lpthread"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        half_made.rename(runner)
    return runner


def run(runner: Path, build: Path, *options: str | Path) -> Said:
    """Run it on ``build`` with one thread."""
    return said_by([runner, build, "--threads", "1", *options])


def said_by(command: list[str | Path]) -> Said:
    """Run ``command``, which is to print one JSON object, if it is not used wrongly."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert done.returncode in (0, 1, 2), f"status {done.returncode}: {done.stderr}"
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
    return Said(done.returncode, json.loads(done.stdout) if done.returncode < 2 else {}, done.stderr)


def libraries() -> list[str | Path]:
    """Give the --lib options for the runtimes that are installed here."""
    options: list[str | Path] = []
    for module, folder in (("onnxruntime", "capi"), ("ai_edge_litert", ""), ("tvm", "lib"), ("tvm_ffi", "lib")):
        if (found := importlib.util.find_spec(module)) and found.origin:
            options += ["--lib", Path(found.origin).parent / folder]
    return options
