"""An environment of its own for a runtime whose packages collide with what is installed here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from polycast.calibrating.folder import cache_folder
from polycast.errors import ToolchainError

#: A download that says nothing for so many seconds is given up.
PATIENCE = "60"


@dataclass(frozen=True)
class Environment:
    """Pinned packages in a folder of the cache, made on demand: whole, or not at all.

    name: what it is for, as part of a folder name. requirements: as pip spells them, every one pinned.
    """

    name: str
    requirements: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is or will be: other requirements, or another Python, are another folder."""
        told = "\n".join((sys.version.split()[0], *self.requirements))
        return cache_folder() / "environments" / f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def is_made(self) -> bool:
        """Whether it is there. A folder that is there is whole."""
        return self.python.exists()

    def make(self) -> Path:
        """Make it, where it is not there yet; another process that makes it meanwhile is waited for.

        Returns: its folder.
        Raises: ToolchainError with the last line that pip says, and the command.
        """
        self._parent()
        with locked(self.folder.with_suffix(".lock")):
            if not self.is_made:
                self._make()
        return self.folder

    def _parent(self) -> None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolchainError(
                f"cannot write {self.folder.parent}: {error.strerror}", "Set POLYCAST_CACHE"
            ) from error

    def _make(self) -> None:
        scratch = Path(tempfile.mkdtemp(prefix=f".{self.name}.", suffix=".partial", dir=self.folder.parent))
        try:
            venv.create(scratch, with_pip=False, symlinks=os.name != "nt")
            python = scratch / self.python.relative_to(self.folder)
            self._install(python)
            scratch.rename(self.folder)
        except OSError as error:
            raise ToolchainError(
                f"cannot make {self.folder}: {error.strerror or error}", "Set POLYCAST_CACHE"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _install(self, python: Path) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(python), "--timeout", PATIENCE, "install", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", *self.requirements]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
            raise ToolchainError(
                f"{', '.join(self.requirements)} cannot be installed: {said[-1]}",
                f"With a network, run: {' '.join(['python', *command[1:3], 'download', *self.requirements])}",
            )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` against every other process. The system lets go of it when this one ends, however it does."""
    with path.open("w") as file:
        if os.name != "nt":  # on Windows a rename onto a folder that is there fails, and the first to finish stays
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
