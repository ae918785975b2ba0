"""Two ways to reach a device: ssh for one with Linux, adb for one with Android."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from polycast.errors import ToolchainError

#: A device that says nothing for so many seconds is not there.
_PATIENCE = 10


@dataclass(frozen=True)
class Said:
    """What a command on a device gave."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of its errors, or of its output."""
        return ((self.err or self.out).strip().splitlines() or [f"exit status {self.status}"])[-1]


class Device(Protocol):
    """A device that runs commands and takes files."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    def run(self, *words: str) -> Said:
        """Run a command there. Raises: ToolchainError where the device cannot be reached."""
        ...

    def place(self) -> str:
        """Make a folder there that is this call's alone. Returns: its path."""
        ...

    def push(self, files: dict[str, Path], folder: str) -> None:
        """Copy ``files``, by their path below ``folder``, and make it executable what is so here."""
        ...


@dataclass(frozen=True)
class Ssh:
    """A device with Linux. host: as ssh takes it; POLYCAST_SSH is the command in place of ``ssh``, as ``ssh -F F``."""

    host: str

    @property
    def name(self) -> str:
        """See ``Device``."""
        return self.host

    def run(self, *words: str) -> Said:
        """See ``Device``."""
        return self._ssh(shlex.join(words))

    def place(self) -> str:
        """See ``Device``."""
        made = self._ssh('mktemp -d "${TMPDIR:-/tmp}/polycast.XXXXXX"')
        if made.status:
            raise ToolchainError(f"{self.host} gives no place to copy to: {made.last}", "Set TMPDIR there")
        return made.out.strip()

    def push(self, files: dict[str, Path], folder: str) -> None:
        """See ``Device``."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, path in files.items():
                archive.add(path, name, recursive=False)
        done = self._ssh(f"tar -xf - -C {shlex.quote(folder)}", packed.getvalue())
        if done.status:
            raise _not_copied(self.host, files, done)

    def _ssh(self, command: str, given: bytes = b"") -> Said:
        words = shlex.split(os.environ.get("POLYCAST_SSH", "ssh"))
        _installed(words[0], "openssh-client")
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_PATIENCE}", "--"]
        said = _run([*words, *options, self.host, command], given)
        if said.status == 255:  # ssh's own status
            raise ToolchainError(
                f"cannot reach {self.host}: {said.last}", f"`ssh {self.host} true` has to work by itself"
            )
        return said


@dataclass(frozen=True)
class Adb:
    """A device with Android. serial: of ``adb devices``; empty where one alone is there, or ANDROID_SERIAL says it."""

    serial: str = ""

    @property
    def name(self) -> str:
        """See ``Device``."""
        return self.serial or os.environ.get("ANDROID_SERIAL", "") or "the device on adb"

    def run(self, *words: str) -> Said:
        """See ``Device``."""
        said = self._adb("shell", shlex.join(words))
        if said.status and said.err.startswith(("error:", "adb:")):  # adb's own word, not the command's
            raise ToolchainError(f"cannot reach {self.name}: {said.last}", "`adb devices` has to list it as device")
        return said

    def place(self) -> str:
        """See ``Device``."""
        folder = f"/data/local/tmp/polycast.{os.getpid()}"
        made = self.run("mkdir", "-p", folder)
        if made.status:
            raise ToolchainError(f"{self.name} gives no place to copy to: {made.last}", "Make room in /data/local/tmp")
        return folder

    def push(self, files: dict[str, Path], folder: str) -> None:
        """See ``Device``."""
        for parent in sorted({f"{folder}/{name}".rpartition("/")[0] for name in files}):
            self.run("mkdir", "-p", parent)
        for name, path in files.items():
            done = self._adb("push", str(path), f"{folder}/{name}")
            if done.status:
                raise _not_copied(self.name, files, done)

    def _adb(self, *words: str) -> Said:
        _installed("adb", "adb")
        return _run(["adb", *(["-s", self.serial] if self.serial else []), *words])


def _installed(tool: str, package: str) -> None:
    if not shutil.which(tool):
        raise ToolchainError(f"{tool} is not installed", f"apt install {package}")


def _run(words: list[str], given: bytes = b"") -> Said:
    done = subprocess.run(words, input=given, capture_output=True)
    return Said(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _not_copied(name: str, files: dict[str, Path], done: Said) -> ToolchainError:
    size = sum(path.stat().st_size for path in files.values() if path.is_file())
    full = "no space" in (done.out + done.err).lower()
    what = f"{name} has no room for {size} bytes" if full else f"cannot copy to {name}"
    return ToolchainError(f"{what}: {done.last}", "Free some, or set TMPDIR there" if full else "")
