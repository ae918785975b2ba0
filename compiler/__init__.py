"""polycast: cast one trained model into a build for each kind of hardware, and prove what each build costs.

model = polycast.load("model.onnx")
[build] = polycast.compile(model, targets=["cpu"], precision="fp32", out="out")
outputs = polycast.open_build("out/cpu-fp32").run({"input": array})
evaluation = polycast.evaluate(build, against=model, data="test.npz")
report = polycast.sweep(model, ["cpu"], ["fp32", "fp16"], data="test.npz", out="sweep")
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if __name__ != "polycast":
    raise ImportError(f"this package is polycast, not {__name__}")

if TYPE_CHECKING:
    from .build import Build, open_build
    from .compile import compile
    from .errors import (
        BudgetError,
        InputError,
        PassError,
        PolycastError,
        PromiseError,
        RecipeError,
        ToolchainError,
        UnsupportedError,
    )
    from .evaluate import Evaluation, evaluate
    from .load import load
    from .measure import Measurement
    from .model import Model
    from .passbase import Numerics, Pass, PassContext
    from .pipeline import Pipeline
    from .report import Report
    from .samples import Sample, Samples, open_samples
    from .sweep import sweep
    from .targetbase import Probe, Session, Target

__version__ = "0.1.0"

_HOME = {
    "build": ("Build", "open_build"),
    "compile": ("compile",),
    "errors": (
        "BudgetError",
        "InputError",
        "PassError",
        "PolycastError",
        "PromiseError",
        "RecipeError",
        "ToolchainError",
        "UnsupportedError",
    ),
    "evaluate": ("Evaluation", "evaluate"),
    "load": ("load",),
    "measure": ("Measurement",),
    "model": ("Model",),
    "passbase": ("Numerics", "Pass", "PassContext"),
    "pipeline": ("Pipeline",),
    "report": ("Report",),
    "samples": ("Sample", "Samples", "open_samples"),
    "sweep": ("sweep",),
    "targetbase": ("Probe", "Session", "Target"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BudgetError",
    "Build",
    "Evaluation",
    "InputError",
    "Measurement",
    "Model",
    "Numerics",
    "Pass",
    "PassContext",
    "PassError",
    "Pipeline",
    "PolycastError",
    "Probe",
    "PromiseError",
    "RecipeError",
    "Report",
    "Sample",
    "Samples",
    "Session",
    "Target",
    "ToolchainError",
    "UnsupportedError",
    "compile",
    "evaluate",
    "load",
    "open_build",
    "open_samples",
    "sweep",
]


class _Package(ModuleType):
    """This package: public names are imported when they are first used, so that ``polycast --help`` is quick.

    Importing the module ``polycast.compile`` would by itself set the attribute ``compile`` to that module and hide
    the function, likewise ``load`` and ``evaluate``; so a module is never stored under a public name.
    """

    def __getattr__(self, name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        thing = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        super().__setattr__(name, thing)
        return thing

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
