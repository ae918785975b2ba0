"""Kept: what compiles and sweeps have done, beside the builds, each with everything that it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polycast.evaluating.evaluation import Evaluation, Subject
from polycast.evaluating.refused import Refused

from . import verify as verifier
from .build import Build, open_build
from .errors import InputError

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One build as it was left. It lies beside the build, so that the build has the same bytes whenever it is made.

    made_from: what the build depends on; measured_with: what its evaluation depends on beside that.
    manifest: sha256 of the build's manifest. seconds: what building and evaluating took. layers: the seconds a run
    that each layer would take more in float, None where nobody looked.
    """

    made_from: Mapping[str, Any]
    measured_with: Mapping[str, Any] = field(default_factory=dict)
    manifest: str = ""
    seconds: float = 0.0
    evaluation: Evaluation | None = None
    refused: Refused | None = None
    layers: Mapping[str, float] | None = None

    def fits(self, made_from: Mapping[str, Any]) -> bool:
        """Whether the build, or its refusal, would come out the same again."""
        return key_of(self.made_from) == key_of(made_from)

    def holds(self, measured_with: Mapping[str, Any]) -> bool:
        """Whether its evaluation was taken in the same way."""
        return self.evaluation is not None and key_of(self.measured_with) == key_of(measured_with)

    def changed(self, made_from: Mapping[str, Any]) -> list[str]:
        """Name what the build was made from and is another now."""
        names = sorted({*self.made_from, *made_from})
        return [name for name in names if key_of(self.made_from.get(name)) != key_of(made_from.get(name))]


def key_of(facts: object) -> str:
    """Give the sha256 of ``facts``, which JSON can spell."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Shelf:
    """A folder of builds, and under ``.polycast/`` a record for each."""

    folder: Path

    def record(self, name: str) -> Record | None:
        """Read what is known of the build ``name``; a damaged record is as good as none."""
        try:
            data = json.loads(self._file(name).read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                return None
            return Record(
                data["made_from"],
                data["measured_with"],
                data["manifest"],
                data["seconds"],
                Evaluation.from_json(data["evaluation"]) if data["evaluation"] else None,
                Refused.from_json(data["refused"]) if data["refused"] else None,
                data["layers"],
            )
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return None

    def build(self, name: str, record: Record) -> Build | None:
        """Open the build that ``record`` is about, if it is still the one: same manifest, same files."""
        path = self.folder / name
        if not record.manifest or sha256_of(path / "manifest.json") != record.manifest:
            return None
        build = open_build(path)
        return None if verifier.check_files(path, dict(build.manifest["files"])) else build

    def evaluation(self, build: Build, record: Record) -> Evaluation:
        """Give the evaluation of ``build``, wherever the folder lay when it was taken."""
        assert record.evaluation is not None
        return replace(record.evaluation, build=Subject.of(build))

    def keep(self, name: str, record: Record) -> None:
        """Write ``record``, whole or not at all.

        Raises: InputError when the disk is full or not writable.
        """
        manifest = sha256_of(self.folder / name / "manifest.json") if record.refused is None else ""
        data = {
            "schema": SCHEMA,
            "key": key_of([record.made_from, record.measured_with]),
            "made_from": record.made_from,
            "measured_with": record.measured_with,
            "manifest": manifest,
            "seconds": round(record.seconds, 3),
            "evaluation": record.evaluation.to_json() if record.evaluation else None,
            "refused": record.refused.to_json() if record.refused else None,
            "layers": record.layers,
        }
        write_whole(self._file(name), json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def _file(self, name: str) -> Path:
        return self.folder / ".polycast" / f"{name}.json"


def sha256_of(path: Path) -> str:
    """Give the sha256 of a file; nothing where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all; a file that has it already is left as it is.

    Raises: InputError when the disk is full or not writable.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.is_file() and path.read_bytes() == text.encode():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
