#!/usr/bin/env python3
"""Builds of polycast beside what a user would take instead: score, speed and size on every zoo subject, in one run.

Peers: onnxruntime's quantize_dynamic and quantize_static, and where they are installed (pip install openvino nncf)
OpenVINO, and NNCF into onnxruntime and into OpenVINO; and with --official the int8 files that MLPerf Tiny publishes
for LiteRT (github.com/mlcommons/tiny, benchmark/training/*/trained_models), named FOLDER/<subject>.tflite. Each is
made and run in a process of its own; they take turns, and every ratio is against plain onnxruntime on the untouched
model in the same run. Everyone gets the same calibration rows, those of the zoo's scorer; for MiniLM, where it has
none, lines of a text that it is not scored on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peer_tools
import subjects
import zoo_data
from zoo_scores import split_calibration

PLAIN = "onnxruntime fp32"
OFFICIAL = "litert, official int8"

#: Which precisions of polycast stand in the table. With a budget, ``auto`` is compiled with --max-drop.
OURS = ("fp32", "int8", "int8-dynamic", "auto")


@dataclass
class Row:
    """One build: medians over openings; ``ratio`` is plain's time over its own, lowest and highest of the openings."""

    subject: str
    name: str
    error: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0
    ms: float = 0.0
    ratio: float = 0.0
    ratio_low: float = 0.0
    ratio_high: float = 0.0
    timings: int = 0
    seconds_to_make: float = 0.0
    note: str = ""


class Child:
    """One open model in a process of its own; what polycast's clock can time."""

    evidence = "device"

    def __init__(self, made: Mapping[str, Any], subject: str, zoo: Path, feeds: Path) -> None:
        task = {"made": dict(made), "subject": subject, "zoo": str(zoo), "feeds": str(feeds)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"left with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def ask(self, question: str, times: int = 0) -> Any:
        """Send one question and give its answer. Raises: RuntimeError with the child's last words."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"question": question, "times": times}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def warm_up(self) -> float:
        return float(self.ask("warm_up"))

    def time(self, times: int) -> list[float]:
        return list(self.ask("time", times))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(task: Mapping[str, Any]) -> None:
    """Be a child: open what was made, and answer questions on stdout until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    from polycast.measure import Stopwatch

    try:
        run = peer_tools.opener(task["made"])
        with np.load(task["feeds"]) as arrays:
            feeds = {name: arrays[name] for name in arrays.files}
        run(feeds)
        watch = Stopwatch(lambda: run(feeds))
        say(answer=True)
        for line in sys.stdin:
            question = json.loads(line)
            if question["question"] == "warm_up":
                say(answer=watch.warm_up())
            elif question["question"] == "time":
                say(answer=watch.time(question["times"]))
            else:
                say(answer=score(task["subject"], Path(task["zoo"]), run))
    except Exception as error:
        say(error=peer_tools.first_line(error))


def score(subject: str, zoo: Path, run: Callable[[subjects.Feeds], list[np.ndarray]]) -> dict[str, float]:
    """Score with the zoo's own scorer."""
    evals = _module(zoo / "evals.py")
    found = evals.SUB[subject][1](run)
    return {name: float(value) for name, value in found.items() if not isinstance(value, int)}


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(name: str, task: list[str]) -> dict[str, Any]:
    """Make one build in a child process, whose crash is a row of the table. Raises: RuntimeError with the reason."""
    this = str(Path(__file__).resolve())
    with tempfile.TemporaryDirectory(prefix="polycast-peers-") as beside:  # onnxruntime leaves files where it stands
        done = subprocess.run(
            [sys.executable, this, "--make", json.dumps([name, *task])], capture_output=True, text=True, cwd=beside
        )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"left with status {done.returncode}"])[-1]
        raise RuntimeError(said[:200])
    made: dict[str, Any] = json.loads(lines[-1])
    return made


def race(made: Mapping[str, Mapping[str, Any]], subject: str, zoo: Path, options: Any, rows: dict[str, Row]) -> None:
    """Score all once, and time all in turns, in several openings; what fails says so in its row."""
    from polycast.measure import time_in_turns

    with tempfile.TemporaryDirectory(prefix="polycast-feeds-") as folder:
        feeds = Path(folder) / "feeds.npz"
        np.savez(feeds, **subjects.feeds(subject))
        heats: list[dict[str, np.ndarray]] = []
        for opening in range(options.openings):
            children: dict[str, Child] = {}
            names = [name for name in made if not rows[name].error]
            for name in names if opening % 2 == 0 else reversed(names):
                try:
                    children[name] = Child(made[name], subject, zoo, feeds)
                    if opening == 0:
                        rows[name].scores = children[name].ask("score")
                except RuntimeError as error:
                    rows[name].error = str(error)
                    children.pop(name, None)
            series = time_in_turns(children, options.seconds / options.openings / max(1, len(children)))
            heats.append({name: times for name, times in series.items() if not isinstance(times, str)})
            for child in children.values():
                child.close()
    for name, row in rows.items():
        own = [heat for heat in heats if name in heat and PLAIN in heat]
        if own:
            ratios = [float(np.median(heat[PLAIN]) / np.median(heat[name])) for heat in own]
            times = np.concatenate([heat[name].ravel() for heat in own])
            row.ms, row.timings = float(np.median(times)) * 1e3, len(times)
            row.ratio, row.ratio_low, row.ratio_high = float(np.median(ratios)), min(ratios), max(ratios)


def measure(subject: str, zoo: Path, options: Any) -> list[Row]:
    """Make, score and time every build of one subject."""
    with tempfile.TemporaryDirectory(prefix="polycast-peers-") as scratch:
        calibration = Path(scratch) / "calibration"
        calibration.mkdir()
        if not split_calibration(subject, zoo, calibration):
            peer_tools.other_calibration(subject, zoo, calibration)
        data = Path(scratch) / "data"
        data.mkdir()
        metric = zoo_data.write(subject, zoo, data)
        rows: dict[str, Row] = {}
        made: dict[str, Mapping[str, Any]] = {}
        ours = [f"polycast {precision}" for precision in options.ours]
        for name in (PLAIN, *ours, *peer_tools.peers()):
            rows[name] = Row(subject, name)
            print(f"{subject}: {name} …", file=sys.stderr)
            folder = Path(scratch) / name.replace(" ", "-").replace("→", "to")
            folder.mkdir()
            try:
                told = ["", ""] if metric is None else [str(data), metric]
                model = str(zoo / subjects.FILES[subject])
                made[name] = make(name, [model, str(calibration), *told, str(folder), options.max_drop])
            except RuntimeError as error:
                rows[name].error = str(error)
                continue
            rows[name].bytes, rows[name].seconds_to_make = made[name]["bytes"], made[name]["seconds"]
            rows[name].note = made[name].get("note", "")
        if options.official and (file := options.official / f"{subject}.tflite").is_file():
            made[OFFICIAL] = {"kind": "tflite", "path": str(file)}
            rows[OFFICIAL] = Row(subject, OFFICIAL, bytes=file.stat().st_size)
        race(made, subject, zoo, options, rows)
    return list(rows.values())


def report(rows: list[Row]) -> str:
    """Spell the table."""
    cells = [
        [
            row.subject,
            row.name + (f" ({row.note})" if row.note else ""),
            *((row.error, "", "", "") if row.error else (
                ", ".join(f"{name} {value:.4f}" for name, value in row.scores.items()),
                f"{row.ms:.3f}",
                f"×{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})",
                f"{row.bytes / 1e3:,.0f}",
            )),
        ]
        for row in rows
    ]  # fmt: skip
    return subjects.table(["subject", "build", "score", "ms", "speed", "kB"], cells)


def main() -> int:
    """Run the benchmark, or be one of its children."""
    parser = subjects.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long to time each subject (default: 20)")
    parser.add_argument("--openings", type=int, default=3, help="how often all are opened anew (default: 3)")
    parser.add_argument("--ours", nargs="+", default=list(OURS), metavar="P", help=f"default: {' '.join(OURS)}")
    parser.add_argument("--max-drop", default="1pp", help="what auto may lose (default: 1pp)")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="int8 files published for LiteRT")
    parser.add_argument("--json", type=Path, default=subjects.RESULTS / "peers.json")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"POLYCAST_THREADS": "1", "THREADS": "1", "OMP_NUM_THREADS": "1"}
    if options.make:
        print(json.dumps(peer_tools.make(*json.loads(options.make))))
        return 0
    if options.serve:
        serve(json.loads(options.serve))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="polycast-zoo-") as folder:
        zoo = Path(folder)
        for subject in subjects.chosen(options.subjects, subjects.workspace(options.zoo, zoo)):
            rows += measure(subject, zoo, options)
            facts = {"machine": subjects.machine(), "max_drop": options.max_drop, "rows": [asdict(row) for row in rows]}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(report(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
