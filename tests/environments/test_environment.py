"""Environments: made whole or not at all, once, and what is said where they cannot be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from wheels import wheel

from polycast.environments import environment
from polycast.environments.environment import Environment
from polycast.errors import RecipeError, ToolchainError
from polycast.targets import find


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_made_once_with_its_packages_and_without_those_of_this_one(cache, tmp_path, monkeypatch):
    made = Environment("tiny", (str(wheel(tmp_path)),))
    assert not made.is_made
    assert made.make() == made.folder
    code = "import importlib.util as u, tiny_runtime; print(tiny_runtime.NAME, u.find_spec('onnx'))"
    said = subprocess.run([made.python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "tiny_runtime None\n"
    monkeypatch.setattr(environment.venv, "create", None)  # what is there is not made again
    assert made.make() == made.folder


def test_other_requirements_are_another_folder(cache):
    assert Environment("a", ("x==1",)).folder != Environment("a", ("x==2",)).folder


def test_what_cannot_be_installed_leaves_nothing_and_says_what_pip_said(cache, tmp_path):
    lacking = Environment("lacking", (str(tmp_path / "there_is_none-1.0-py3-none-any.whl"),))
    with pytest.raises(ToolchainError, match=r"cannot be installed: .*there_is_none") as caught:
        lacking.make()
    assert "pip download" in caught.value.hint
    assert not lacking.is_made
    assert [path.suffix for path in lacking.folder.parent.iterdir()] == [".lock"]


def test_two_processes_make_one(cache, tmp_path):
    path = wheel(tmp_path)
    code = (
        "import sys\nfrom polycast.environments import environment as e\nmade = e.venv.create\n"
        "e.venv.create = lambda *a, **k: (print('made'), made(*a, **k))\n"
        "print(e.Environment('tiny', (sys.argv[1],)).make())"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [child.communicate()[0].split() for child in started]
    assert [child.returncode for child in started] == [0, 0]
    assert sorted(len(lines) for lines in said) == [1, 2], "one made it, and the other found it"
    assert len({lines[-1] for lines in said}) == 1


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="cannot write") as caught:
        Environment("a", ()).make()
    assert "POLYCAST_CACHE" in caught.value.hint


def test_a_target_that_needs_none_says_so():
    with pytest.raises(RecipeError, match="cpu needs no environment of its own"):
        find("cpu").set_up()
