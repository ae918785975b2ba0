"""What runs a build where polycast is not installed: run.py, which is the same in all, and its runtime's session.py."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from . import _run

#: The files, neither of which is part of what is deployed.
FILES = ("run.py", "session.py")

#: What helps where a runtime does not open what a build holds.
DAMAGED = "polycast verify BUILD says whether a file of it changed; polycast compile --force makes it anew"


def write(folder: Path, session: ModuleType) -> None:
    """Write run.py and session.py into ``folder``. session: a module that needs numpy and the runtime, no polycast."""
    for name, module in zip(FILES, (_run, session), strict=True):
        assert module.__file__
        (folder / name).write_bytes(Path(module.__file__).read_bytes())
