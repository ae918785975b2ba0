"""A target of one's own: the reference evaluator of ONNX, which runs a model in plain Python and numpy.

pip install ./own_target
polycast compile model.onnx -t reference -p fp32 -o out
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycast.errors import InputError
from polycast.model import Model, Signature
from polycast.targetbase import Answer, Evidence, Probe, Target

if TYPE_CHECKING:
    import numpy as np

#: Lies in every build as run.py: it needs numpy and onnx, and no polycast.
RUNNER = '''#!/usr/bin/env python3
"""Run this build with the reference evaluator of ONNX.

python run.py --input x.npz [--output y.npz]   run the model on arrays saved under the names of its inputs
python run.py --verify                         check every file's hash, and the golden outputs
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator

folder = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
todo = parser.add_mutually_exclusive_group(required=True)
todo.add_argument("--input", type=Path, metavar="X.npz")
todo.add_argument("--verify", action="store_true")
parser.add_argument("--output", type=Path, metavar="Y.npz")
options = parser.parse_args()
model = str(folder / "model.onnx")
if options.verify:
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    from verify import verify

    problems = verify(folder, lambda feeds: ReferenceEvaluator(model).run(None, feeds))
    print("\\n".join(problems) or "verified: every file's hash and every golden output")
    sys.exit(bool(problems))
evaluator = ReferenceEvaluator(model)
with np.load(options.input, allow_pickle=False) as arrays:
    outputs = evaluator.run(None, {name: arrays[name] for name in evaluator.input_names})
for name, array in zip(evaluator.output_names, outputs):
    print(f"{name}: {array.dtype} {list(array.shape)}", array, sep="\\n")
if options.output:
    np.savez(options.output, **dict(zip(evaluator.output_names, outputs)))
'''


@dataclass(frozen=True)
class Reference(Target):
    """ONNX's own definition of every op: slow, and right. For checking numerics, never for speed."""

    name = "reference"

    @property
    def features(self) -> frozenset[str]:
        """See ``Target``."""
        return frozenset()

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Target``."""
        return ("fp32",)

    def recipe(self, precision: str) -> str | None:
        """See ``Target``."""
        return "clean | fold | clean" if precision == "fp32" else None

    def probe(self) -> Probe:
        """See ``Target``."""
        here = Answer(True, f"onnx {version('onnx')}")
        return Probe(here, here, "emulated", "plain Python")

    def problems(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        own = {(f.domain, f.name) for f in model.graph.functions.values()}
        ops = {(node.domain, node.op_type) for node in model.graph.graph.all_nodes()} - own
        return tuple(sorted(f"{domain or 'ai.onnx'}.{op}" for domain, op in ops if not _defined(domain, op, model)))

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        model.write(folder / "model.onnx")
        (folder / "run.py").write_text(RUNNER, encoding="utf-8")
        return {
            "name": "onnx.reference",
            "versions": {"onnx": version("onnx")},
            "needs": "pip install numpy onnx",
            "how_to_run": ["python run.py --input x.npz", "python run.py --verify"],
        }

    def open(self, folder: Path, *, own_process: bool = False) -> ReferenceSession:
        """See ``Target``."""
        from onnx.reference import ReferenceEvaluator

        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        evaluator = ReferenceEvaluator(str(folder / "model.onnx"))
        return ReferenceSession(evaluator, Signature.from_json(manifest["signature"]))


@dataclass
class ReferenceSession:
    """A build that is open in the reference evaluator; its figures are emulated: numerics, and no speed."""

    evaluator: Any
    signature: Signature
    evidence: Evidence = "emulated"

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; see ``polycast.targetbase.Session``."""
        self.signature.check(feeds)
        try:
            outputs: list[np.ndarray] = self.evaluator.run(None, dict(feeds))
        except Exception as error:  # each op raises what numpy raises
            raise InputError(f"onnx.reference cannot run the model on these feeds: {error}") from error
        return outputs


def _defined(domain: str, op: str, model: Model) -> bool:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import RuntimeContextError
    from onnx.reference.ops import load_op

    if domain:
        return False
    try:
        load_op(domain, op, model.opset, evaluator_cls=ReferenceEvaluator)
    except RuntimeContextError:
        return True  # defined by other ops, by which ones depends on the node
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True
