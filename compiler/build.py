"""Build: the folder that a user ships, with its manifest. It is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycast import targets

from . import verify as verifier
from .errors import InputError
from .model import Signature, Step
from .targetbase import Session

if TYPE_CHECKING:
    import numpy as np

#: Manifests of this schema and older ones are read.
SCHEMA = 2


@dataclass(frozen=True)
class Build:
    """One build. ``manifest`` is what stands in manifest.json; the model itself is opened at the first run.

    seconds: wall time that casting it took, None for a build that was read from disk. changed: what is another now
    than when it was made before.
    """

    path: Path
    manifest: Mapping[str, Any]
    seconds: float | None = None
    changed: tuple[str, ...] = ()
    _session: list[Session] = field(default_factory=list, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the folder: ``cpu-fp32``."""
        return self.path.name

    @property
    def target(self) -> str:
        """Spelling of the target."""
        return str(self.manifest["target"])

    @property
    def precision(self) -> str:
        """Name of the recipe."""
        return str(self.manifest["recipe"]["name"])

    @property
    def promise(self) -> Mapping[str, Any]:
        """``asked`` and ``reached``: shares of weights and MACs by precision."""
        return dict(self.manifest["promise"])

    @property
    def agreement(self) -> Mapping[str, Any]:
        """How near the build comes to the original on the golden samples, or ``not_run`` with the reason."""
        return dict(self.manifest["agreement"])

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """Each pass: its spelling, its sites, its skips with their reasons."""
        return list(self.manifest["steps"])

    @cached_property
    def bytes(self) -> int:
        """Size on disk of what is deployed: the model and its weights, without golden, runner and papers."""
        files: Mapping[str, Any] = self.manifest["files"]
        return sum(file["bytes"] for name, file in files.items() if file.get("deployed"))

    @property
    def stamp(self) -> str:
        """The sha256 of the manifest, which tells this build from one that is made anew in its place."""
        return hashlib.sha256((self.path / "manifest.json").read_bytes()).hexdigest()

    @cached_property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return Signature.from_json(self.manifest["signature"])

    def open(self, *, own_process: bool = False) -> Session:
        """Open the build on its target, or on the best stand-in there is.

        own_process: as its own runner does, in a process where nothing else runs; see ``Target.open``.
        Raises: InputError when the runtime refuses it; ToolchainError when there is no runtime here.
        """
        return targets.find(self.target).open(self.path, own_process=own_process)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once. Returns: the outputs in the model's order.

        Raises: InputError naming the input, for a missing or unknown name, or a wrong dtype or shape.
        """
        if not self._session:
            self._session.append(self.open())
        return self._session[0].run(feeds)

    def verify(self) -> list[str]:
        """Check every file's hash, and the golden outputs where the target runs here. Returns: what is wrong."""
        probe = targets.find(self.target).probe()
        changed = verifier.check_manifest(self.path)
        changed += verifier.check_files(self.path, dict(self.manifest["files"]))
        if changed or not probe.run.yes:
            return changed
        return verifier.check_golden(self.path, dict(self.manifest), self.open().run)

    def to_json(self) -> dict[str, Any]:
        """Spell for ``--json``."""
        return {
            "target": self.target,
            "precision": self.precision,
            "path": str(self.path),
            "bytes": self.bytes,
            "promise": self.promise,
            "agreement": self.agreement,
            "evidence": self.manifest["evidence"],
            "steps": self.steps,
            "seconds": self.seconds,
            **({"auto": self.manifest["auto"]} if "auto" in self.manifest else {}),
        }


def open_build(path: str | Path) -> Build:
    """Read the build in folder ``path``.

    Raises: InputError when there is none, or its manifest is damaged or of a newer schema.
    """
    path = Path(path)
    manifest = path / "manifest.json"
    try:
        table = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} is no build: cannot read manifest.json: {error.strerror}",
            "A build is the folder that polycast compile writes, e.g. out/cpu-fp32",
        ) from error
    except ValueError as error:
        raise InputError(f"{manifest} is damaged: {error}", "Compile the build again") from error
    if not isinstance(table, dict) or not isinstance(table.get("schema"), int):
        raise InputError(f"{manifest} is no manifest of a build", "Compile the build again")
    if table["schema"] > SCHEMA:
        raise InputError(
            f"{manifest} has schema {table['schema']}, this polycast reads up to {SCHEMA}", "Update polycast"
        )
    missing = [key for key in _KEYS if key not in table]
    if missing:
        raise InputError(f"{manifest} is damaged: it lacks {', '.join(missing)}", "Compile the build again")
    return Build(path, table)


_KEYS = ("target", "recipe", "promise", "agreement", "evidence", "steps", "signature", "golden", "runtime", "files")


def write_manifest(folder: Path, facts: Mapping[str, Any], deployed: set[str]) -> None:
    """Write manifest.json: ``facts``, sha256 and size of every other file in ``folder``, its own seal."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = {"sha256": sha256, "bytes": path.stat().st_size, "deployed": name in deployed}
    text = verifier.sealed({"schema": SCHEMA, **facts, "files": files})
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def spell_steps(history: tuple[Step, ...]) -> list[dict[str, Any]]:
    """Spell steps for a manifest: no seconds, since the same inputs give the same bytes."""
    return [
        {
            "pass": step.what,
            "sites": step.sites,
            "skips": [{"node": s.node, "op": s.op, "reason": s.reason} for s in step.skips],
        }
        for step in history
    ]


@contextmanager
def whole_or_nothing(final: Path) -> Iterator[Path]:
    """Give a folder beside ``final`` to write into; on success it takes the place of ``final``, else it goes.

    The build that stood there before survives a failure, a full disk and an interrupt.
    Raises: InputError when the disk is full or not writable, or ``final`` is there and is no build.
    """
    if final.exists() and not (final / "manifest.json").is_file():
        raise InputError(f"{final} is there already and is no build", "Give another -o, or remove it")
    made: list[Path] = []
    try:
        for parent in reversed([p for p in (final.parent, *final.parent.parents) if not p.exists()]):
            parent.mkdir()
            made.append(parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"cannot write to {final.parent}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        old = folder.with_suffix(".old")
        if final.exists():
            os.rename(final, old)
        os.rename(folder, final)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {final}: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(error.message.replace(str(folder), str(final)), error.hint) from error
    finally:
        old = folder.with_suffix(".old")
        if old.exists() and not final.exists():
            os.rename(old, final)
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)


def _remove_empty(made: list[Path]) -> None:
    for path in reversed(made):
        if not any(path.iterdir()):
            path.rmdir()
