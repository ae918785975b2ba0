"""Check a build with numpy alone: every file's hash, and the golden outputs.

This very file also lies in every build, as verify.py, so that a build verifies itself where polycast is not installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Runs the model once: arrays by input name -> outputs in the order of the signature.
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


#: Folders that running a build makes, or that its README has the user make.
_MADE_BESIDE = {"__pycache__", "node_modules"}


def verify(folder: Path, run: Run | None) -> list[str]:
    """Give what is wrong with the build in ``folder``; the golden outputs are left out where nothing can run it."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    problems = check_manifest(folder) or check_files(folder, manifest["files"])
    return problems or (check_golden(folder, manifest, run) if run else [])


#: Where the seal begins: after all else that a manifest says.
_SEAL = ',\n  "seal": "'


def sealed(manifest: dict[str, Any]) -> str:
    """Spell a manifest. Its last key is the sha256 of all the text before it, since no other file vouches for it."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False).removesuffix("\n}")
    return f'{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def check_manifest(folder: Path) -> list[str]:
    """Hold the manifest against its own seal, which those of schema 1 do not have yet."""
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    said, mark, seal = text.rpartition(_SEAL)
    if json.loads(text)["schema"] == 1 and not mark:
        return []
    kept = seal == hashlib.sha256(said.encode()).hexdigest() + '"\n}\n'
    return [] if kept else ["manifest.json: changed: its seal is not the sha256 of what it says"]


def check_files(folder: Path, files: dict[str, Any]) -> list[str]:
    """Hold every file against its sha256 and size; name each that is missing, changed or was added."""
    problems = []
    for name, want in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != want["sha256"]:
                problems.append(f"{name}: changed: its sha256 is not the manifest's")
    known = {*files, "manifest.json"}
    present = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    added = [p for p in present if p not in known and not _MADE_BESIDE & set(p.split("/"))]
    return problems + [f"{name}: not in the manifest" for name in sorted(added)]


def check_golden(folder: Path, manifest: dict[str, Any], run: Run) -> list[str]:
    """Run the golden inputs; name each output that leaves the tolerance (relative to the largest reference value)."""
    golden = manifest["golden"]
    if not golden["n"]:
        return []
    problems = []
    outputs = [port["name"] for port in manifest["signature"]["outputs"]]
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        for i in range(golden["n"]):
            start = f"{i}/input/"
            feeds = {key[len(start) :]: arrays[key] for key in arrays.files if key.startswith(start)}
            for name, found in zip(outputs, run(feeds), strict=True):
                want, found = arrays[f"{i}/output/{name}"], np.asarray(found)
                worst = difference(want, found)
                if not worst <= golden["tolerance"]:
                    problems.append(
                        f"golden sample {i}, output {name}: off by {worst:.3g} of the largest value, "
                        f"tolerance {golden['tolerance']:.3g}"
                    )
    return problems


def difference(want: np.ndarray, found: np.ndarray) -> float:
    """Largest ``|found - want|`` as a share of the largest finite ``|want|``; for non-floats the share that differs."""
    if want.shape != found.shape or want.dtype != found.dtype:
        return float("inf")
    if not want.size:
        return 0.0
    if want.dtype.kind != "f":
        return float(np.mean(want != found))
    a, b = want.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(a[finite]).max())
    gap = float(np.abs(a[finite] - b[finite]).max())
    return gap / largest if largest else gap
