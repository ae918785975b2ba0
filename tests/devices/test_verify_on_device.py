"""A build is verified on a device: over ssh to a real sshd on this machine, over adb to a stand-in for it."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import native
import pytest
from models import dense_net

import polycast
from polycast.cli import main
from polycast.devices.verify import verify_on
from polycast.errors import InputError, ToolchainError
from polycast.report import Report
from polycast.verify import sealed


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    [build] = polycast.compile(dense_net(folder / "m.onnx"), "cpu", out=folder)
    return build.path


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory):
    """Start an sshd on this machine, with its own keys; its python3 is the one that runs the tests."""
    daemon, client = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"), shutil.which("ssh")
    if not daemon or not client or not shutil.which("ssh-keygen"):
        pytest.skip("no sshd is here: apt install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "own"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "own.pub", folder / "authorized")
    beside = tmp_path_factory.mktemp("bin")
    (beside / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (beside / "python3").chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f'ForceCommand export PATH="{beside}:/usr/bin:/bin" TMPDIR="{folder}"; eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    (folder / "client").write_text(
        f"Host board\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {folder}/own\n"
        f" IdentitiesOnly yes\n StrictHostKeyChecking no\n UserKnownHostsFile {folder}/known\n LogLevel ERROR\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a root's sshd locks up what it does not trust
    with (folder / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen([daemon, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
        patch.setenv("POLYCAST_SSH", f"ssh -F {folder / 'client'}")
        try:
            _wait_for(port, folder / "log", process)
            yield folder
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.skip(f"sshd does not answer here: {log.read_text().strip()}")


def test_a_board_with_python_runs_the_build_and_its_figures_are_kept_beside_it(board, build, capsys):
    assert main(["verify", "--ssh", "board", "--runs", "5", str(build)]) == 0
    told = capsys.readouterr().out
    assert "on board (Linux" in told and "(n=5)" in told
    found = json.loads(build.with_name(f"{build.name}.device.json").read_text())
    assert (found["device"], found["evidence"], found["ok"]) == ("board", "device", True)
    golden = json.loads((build / "manifest.json").read_text())["golden"]
    assert found["golden"]["n"] == golden["n"] > 0
    assert 0 <= found["golden"]["outputs"][0]["worst"] <= golden["tolerance"]
    assert 0 < found["latency_ms"]["min"] <= found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    assert polycast.open_build(build).verify() == [], "nothing is written into the build"
    [told_of] = Report.read([build.parent]).evaluations
    assert (told_of.measurements["latency"].value, told_of.measurements["latency"].n) == (found["latency_ms"]["p50"], 5)
    assert any(note.startswith("on board (Linux") and "golden met on" in note for note in told_of.notes)
    found["manifest"] = "of a build that lay there before"
    build.with_name(f"{build.name}.device.json").write_text(json.dumps(found))
    assert "latency" not in Report.read([build.parent]).evaluations[0].measurements
    assert not list(board.glob("polycast.*")), "nothing is left on the board"


def test_a_golden_that_is_missed_is_status_1(board, build, tmp_path, capsys):
    copy = shutil.copytree(build, tmp_path / build.name)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["golden"]["tolerance"] = -1.0
    del manifest["seal"]
    (copy / "manifest.json").write_text(sealed(manifest))
    assert main(["verify", "--ssh", "board", "--runs", "0", "--json", str(copy)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert "output logits: off by" in found["golden"]["problems"][0]


@pytest.mark.slow
def test_a_board_without_the_runtime_runs_the_native_runner(board, build, request, tmp_path, monkeypatch):
    """The runner is compiled here for what the board says it is; the runtime's library travels with it."""
    runner = native.compiled(request.config, "g++", "-O1")
    found = verify_on(build, "board", runner=runner, runs=3)
    assert found["ok"]
    assert found["latency_ms"]["n"] == 3
    assert str(board) in found["runtime"]["library"], "it is the one that was sent"
    [other] = polycast.compile(dense_net(tmp_path / "m.onnx"), "cpu@litert", out=tmp_path)
    told = verify_on(other.path, "board", runner=runner, runs=1)["runtime"]
    assert told["version"] == version("ai-edge-litert"), (
        "its library does not tell it, and the wheel that it is of does"
    )
    monkeypatch.setattr("polycast.devices.native.libraries", lambda machine, runtime: [])
    with pytest.raises(ToolchainError, match="no libonnxruntime") as caught:
        verify_on(build, "board", runner=runner)
    assert "--lib FOLDER" in caught.value.hint


def test_a_changed_build_is_not_sent(board, build, tmp_path):
    copy = shutil.copytree(build, tmp_path / "copy")
    (copy / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.onnx: changed"):
        verify_on(copy, "board")


def test_a_board_that_is_not_there_is_named(board, build):
    with pytest.raises(ToolchainError, match="cannot reach nobody") as caught:
        verify_on(build, "nobody.invalid")
    assert "ssh nobody.invalid true" in caught.value.hint


#: A stand-in for ssh or adb: its first words are the tool's own, and its last is a shell's command.
FULL = """#!/bin/sh
for last; do :; done
case "$last" in
  tar*) cat >/dev/null; echo "tar: model.onnx: Cannot write: No space left on device" >&2; exit 2;;
  *) exec sh -c "$last";;
esac
"""


def test_a_board_without_room_is_said_to_be_full(build, tmp_path, monkeypatch):
    stand_in(tmp_path / "full", FULL)
    monkeypatch.setenv("POLYCAST_SSH", str(tmp_path / "full"))
    with pytest.raises(ToolchainError, match=r"board has no room for \d+ bytes: tar: model.onnx"):
        verify_on(build, "board")


#: Android's /data/local/tmp is a folder of the test's. What is pushed arrives whole, or as SPOIL leaves it.
ADB = """#!/bin/sh
[ "$1" = -s ] && shift 2
[ -n "$GONE" ] && { echo "error: device offline" >&2; exit 1; }
case "$1" in
  shell) shift; exec sh -c "$(echo "$*" | sed "s#/data/local/tmp#ROOT#g")";;
  push) to="$(echo "$3" | sed "s#/data/local/tmp#ROOT#")"; cp "$2" "$to"; [ -n "$SPOIL" ] && case "$to" in
          */$SPOIL) printf x >>"$to";; esac; exit 0;;
esac
"""

#: What stands for the native runner: it checks, runs and says the same.
RUNNER = '#!/bin/sh\nexec "{python}" -B "{here}" "$1" "$3"\n'


@pytest.fixture
def phone(tmp_path, monkeypatch) -> Path:
    """Put an adb on the PATH whose device is a folder. Returns: a runner for it."""
    from polycast.devices import here

    (tmp_path / "device").mkdir()
    stand_in(tmp_path / "bin" / "adb", ADB.replace("ROOT", str(tmp_path / "device")))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return stand_in(tmp_path / "runner", RUNNER.format(python=sys.executable, here=here.__file__))


def stand_in(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    return path


def test_a_phone_runs_what_is_pushed(phone, build, tmp_path):
    found = verify_on(build, serial="emulator-5554", runner=phone, runs=2)
    assert (found["device"], found["ok"], found["latency_ms"]["n"]) == ("emulator-5554", True, 2)
    assert not list((tmp_path / "device").iterdir()), "nothing is left on the phone"


def test_what_does_not_arrive_whole_is_not_run(phone, build, monkeypatch):
    monkeypatch.setenv("SPOIL", "golden.npz")
    with pytest.raises(InputError, match=r"not what was sent: golden.npz: changed"):
        verify_on(build, runner=phone)


def test_a_phone_that_is_gone_is_named(phone, build, monkeypatch):
    monkeypatch.setenv("GONE", "1")
    with pytest.raises(ToolchainError, match="cannot reach the device on adb: error: device offline"):
        verify_on(build, runner=phone)


def test_a_runner_for_android_needs_the_ndk(phone, build, monkeypatch):
    for name in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_NDK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("polycast.devices.verify._has_python", lambda device, build: False)
    with pytest.raises(ToolchainError, match="built with the NDK, and there is none here") as caught:
        verify_on(build)
    assert "--runner" in caught.value.hint
