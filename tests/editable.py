"""Does Python see the files that are there? A strict editable install is a tree of links made when it was installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

FOLDERS = {"compiler": "", "passes": "passes", "targets": "targets"}
MEND = "Run `pip install -e .` again (3 seconds)."


def imported_from() -> Path | None:
    """Give the folder that ``import polycast`` would read, or None where there is none."""
    spec = importlib.util.find_spec("polycast")
    return Path(spec.origin).parent if spec and spec.origin else None


def install_problem(root: Path, package: Path | None) -> str:
    """Compare the three folders of ``root`` with the package that Python imports: "" when they agree."""
    if package is None:
        return f"polycast is not installed in this environment. {MEND}"
    missing, stale = [], []
    for folder, inside in FOLDERS.items():
        seen = {path.relative_to(package / inside): path for path in modules(package / inside)}
        for path in modules(root / folder):
            link = seen.pop(path.relative_to(root / folder), None)
            if link is None or not link.exists() or not link.samefile(path):
                missing.append(str(path.relative_to(root)))
        # Passes and targets are found by listing their folder, so a link to a file that is gone breaks the import.
        stale += [f"{folder}/{name}" for name in seen if inside]
    if missing:
        return f"Python imports polycast from {package}, which lacks {', '.join(sorted(missing))}. {MEND}"
    if stale:
        return f"Python imports polycast from {package}, which still has {', '.join(sorted(stale))}. {MEND}"
    return ""


def modules(folder: Path) -> Iterator[Path]:
    """Yield every Python file under ``folder``, through links to folders too; ``passes`` and ``targets`` aside."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in FOLDERS]
        yield from (Path(parent, name) for name in files if name.endswith(".py"))
