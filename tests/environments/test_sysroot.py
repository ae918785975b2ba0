"""The sysroot for 64-bit ARM: whole or not at all, what is said where it cannot be made, and what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from wheels import wheel

from polycast.environments import sysroot as module
from polycast.environments.sysroot import Sysroot
from polycast.errors import ToolchainError

#: Stand-ins for Debian's tools: one package, which holds a Python.
TOOLS = {
    "qemu-aarch64-static": "exit 0",
    "apt-get": 'folder=$(dirname "$APT_CONFIG")\n[ "$2" = update ] || touch "$folder/archives/python3.deb"',
    "dpkg-deb": 'mkdir -p "$3/usr/bin" && touch "$3/usr/bin/python3.11" "$3/usr/bin/python3.11-config"',
}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with the stand-ins before everything else, an empty cache, and one wheel to install."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, script in TOOLS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_requirements", lambda: [str(wheel(tmp_path))])
    return folder


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "environments").iterdir() if path.suffix != ".lock")


def test_it_is_made_once_of_packages_wheels_and_a_system(tools, tmp_path):
    assert Sysroot.find() is None
    assert Sysroot.available().mend == "polycast setup cpu:aarch64"
    told: list[tuple[str, int, int]] = []
    made = Sysroot.make(lambda *stage: told.append(stage))
    assert Sysroot.find() == made
    assert Sysroot.available().yes
    assert left(tmp_path) == [made.folder.name]
    assert (made.folder / "usr/lib/python3/dist-packages/tiny_runtime.py").is_file()
    assert "asimddp" in (made.folder / "proc/cpuinfo").read_text()
    assert made.python[-1] == str(made.folder / "usr/bin/python3.11")
    assert {stage for stage, _, _ in told} == {
        "fetch Debian's lists",
        "fetch Debian's packages",
        "unpack Debian's packages",
        "fetch the runtimes' wheels",
    }
    told.clear()
    assert Sysroot.make(lambda *stage: told.append(stage)) == made
    assert told == []


@pytest.mark.parametrize(
    ("tool", "reason"),
    {
        "apt-get": "this machine's apt sources have no packages for 64-bit ARM: E: no such luck",
        "dpkg-deb": "an ARM package cannot be unpacked: E: no such luck",
    }.items(),
)
def test_what_fails_is_said_and_leaves_nothing(tools, tmp_path, tool, reason):
    (tools / tool).write_text("#!/bin/sh\necho E: no such luck >&2\nexit 100\n")
    with pytest.raises(ToolchainError) as caught:
        Sysroot.make()
    assert caught.value.message == reason
    assert left(tmp_path) == []
    assert Sysroot.find() is None


def test_wheels_that_are_not_there_leave_nothing(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_requirements", lambda: [str(tmp_path / "none-1.0-py3-none-any.whl")])
    with pytest.raises(ToolchainError, match=r"wheels for 64-bit ARM cannot be installed: .*none-1\.0"):
        Sysroot.make()
    assert left(tmp_path) == []


@pytest.mark.parametrize(("tool", "mend"), {"qemu-aarch64-static": "qemu-user-static", "apt-get": "Debian"}.items())
def test_a_tool_that_is_missing_is_named(tools, monkeypatch, tool, mend):
    (tools / tool).unlink()
    monkeypatch.setenv("PATH", str(tools))
    answer = Sysroot.available()
    assert not answer.yes and mend in answer.mend
    with pytest.raises(ToolchainError, match="no sysroot for 64-bit ARM can be made here"):
        Sysroot.make()


def test_a_cache_that_cannot_be_written_is_said(tools, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="cannot make") as caught:
        Sysroot.make()
    assert "POLYCAST_CACHE" in caught.value.hint


def test_other_versions_are_another_sysroot(tools, monkeypatch):
    before = Sysroot.make()
    monkeypatch.setattr(module, "_requirements", lambda: ["numpy==0"])
    assert Sysroot.find() is None
    assert before.folder.is_dir()


@pytest.mark.slow
def test_programs_in_it_see_an_arm_with_the_packages_of_this_machine(sysroot):
    import numpy as np

    code = "import numpy, os, platform; print(platform.machine(), numpy.__version__, os.environ['GREETING'])"
    done = sysroot.run_python("-c", code, env={"GREETING": "hello"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["aarch64", np.__version__, "hello"]
    assert len(sysroot.libraries) == 4
    assert "python" in sysroot.run(Path(sysroot.python[-1]), "--version").stdout.lower()
