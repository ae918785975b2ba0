"""What targets for phones share: files that run on this machine's CPU too, and a sample for the app."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from polycast.errors import ToolchainError
from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Probe

from . import _litert
from ._cpu_runtimes import CpuTarget


@dataclass(frozen=True)
class Sample:
    """What an app needs beside the model.

    files: of the target's folder, which are copied. dependency: the runtime as the system's package tool spells it.
    """

    files: tuple[str, ...]
    dependency: str


@dataclass(frozen=True)
class MobileTarget(CpuTarget):
    """A phone: builds are for its app. The numbers of a runtime's CPU kernels are told on this machine, and no times.

    folder: where the samples are. samples: by runtime.
    """

    folder: ClassVar[Path]
    samples: ClassVar[Mapping[str, Sample]]

    @property
    @abstractmethod
    def stand_in(self) -> Answer:
        """Say what on this machine runs the very files, or why nothing does."""

    @property
    def chosen_on(self) -> str:
        """See ``Target``."""
        return "cpu@litert" if self.executor == "litert" else ""

    def probe(self) -> Probe:
        """See ``Target``."""
        build, run = self.on.available(), self.stand_in
        if not build.yes and run.yes:
            run = build
        return Probe(build, run, "emulated", "this machine's CPU" if run.yes else "")

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        facts = {**self.on.write(model, folder)}
        sample = self.samples[self.executor]
        (folder / self.name).mkdir()
        for name in sample.files:
            (folder / self.name / name).write_bytes((self.folder / name).read_bytes())
        here = [line for line in facts["how_to_run"] if "run.py" in line]
        in_the_app = f"{self.name}/{sample.files[0]}   # for the app: checks the golden samples, and times them"
        return {
            **facts,
            "needs": sample.dependency,
            "how_to_run": [in_the_app, *self.on_a_device(folder), *here],
            "beside": [*facts.get("beside", ()), self.name, "native"],
        }

    def kernels(self, folder: Path) -> Mapping[str, Any] | None:
        """See ``Target``."""
        return _litert.what_runs(folder) if self.executor == "litert" else None

    def on_a_device(self, folder: Path) -> list[str]:
        """Write what runs a build on a device without an app. Returns: the lines that say how."""
        return []

    def open(self, folder: Path, *, own_process: bool = False) -> CheckedSession:
        """See ``Target``."""
        if not self.stand_in.yes:
            raise ToolchainError(f"no build for {self} runs here: {self.stand_in.reason}", self.stand_in.mend)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        session = self.on.open(folder, Signature.from_json(manifest["signature"]), own_process)
        session.evidence = "emulated"
        return session
