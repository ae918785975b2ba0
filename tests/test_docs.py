"""What the documents tell a reader to type works as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polycast.data.preprocess import Preprocess
from polycast.model import Port

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, and its text."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text.replace("\\\n", "").splitlines() if line.strip()]


def blocks(document: str) -> Iterator[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(language, body)


def commands(document: str) -> list[str]:
    return [line for block in blocks(document) if block.language == "sh" for line in block.commands]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_of_a_kind_that_is_checked(document: str) -> None:
    assert {block.language for block in blocks(document)} <= {"sh", "python", "toml", ""}
    kinds = {shlex.split(line)[0] for line in commands(document)}
    assert kinds <= {"make", "mypy", "pip", "polycast", "pytest", "python", "ruff"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    phony = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())
    for line in commands(document):
        program, *arguments = shlex.split(line)
        if program == "make":
            assert set(arguments) <= phony
            assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in arguments)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_extras_and_test_folders_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert set(re.findall(r"polycast\[(\w+)\]", text)) <= EXTRAS.keys()
    for line in commands(document):
        program, *arguments = shlex.split(line)
        if program == "pytest":
            assert all((ROOT / name).exists() for name in arguments if name.startswith("tests"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_it_names_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:compiler|passes|targets|tests|examples|requirements)/[\w./-]+)`", text))
    named |= set(re.findall(r"\]\((?!http)([^)#]+)\)", text))
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("document", [pytest.param("README.md", marks=pytest.mark.slow), "CONTRIBUTING.md"])
def test_what_it_shows_runs(document: str, tmp_path: Path) -> None:
    """Run every polycast and python command and every python block, in order, where a clone has its examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "polycast").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m polycast "$@"\n')
    (programs / "polycast").chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks(document):
        if block.language == "sh":
            steps = [shlex.split(line) for line in block.commands]
            steps = [[str(programs / step[0]), *step[1:]] for step in steps if step[0] in ("polycast", "python")]
        else:
            steps = [[sys.executable, "-W", "error", "-c", block.text]] if block.language == "python" else []
        for step in steps:
            child = subprocess.run(step, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert child.returncode == 0, f"{shlex.join(step)}\n{child.stdout}{child.stderr}"


def test_the_image_settings_that_it_shows_are_read(tmp_path: Path) -> None:
    [shown] = [block.text for block in blocks("README.md") if block.language == "toml"]
    (tmp_path / "images.toml").write_text(shown, encoding="utf-8")
    settings = Preprocess.beside(tmp_path, Port("x", "float32", ("batch", 3, 224, 224)))
    assert (settings.resize, settings.layout, settings.offset) == (256, "NCHW", 0)
