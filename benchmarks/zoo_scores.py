#!/usr/bin/env python3
"""Score the cpu build of every zoo subject with the zoo's own scorer, and compare with its BASELINE.jsonl.

The scorer, evals.py, knows nothing of polycast: it runs what zoo_plug.make gives it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import subjects

#: A fp32 build scores within this of the original.
WITHIN = 1e-3

#: What stands in a line beside the scores.
_COUNTS = {"subject", "n", "n_exact", "tokens", "classes"}


def score(subject: str, zoo: Path, precision: str, calibrate: bool) -> dict[str, float] | str:
    """Run the scorer on one subject. Returns: its scores, or the last line of what went wrong."""
    environment = os.environ | {
        "POLYCAST_ZOO": str(zoo),
        "POLYCAST_PRECISION": precision,
        "THREADS": "1",
        "POLYCAST_THREADS": os.environ.get("POLYCAST_THREADS", "1"),
    }
    with tempfile.TemporaryDirectory(prefix="polycast-calibration-") as folder:
        if calibrate and split_calibration(subject, zoo, Path(folder)):
            environment["POLYCAST_CALIBRATION"] = folder
        command = [sys.executable, zoo / "evals.py", "run", subject, "--plug", "zoo_plug:make"]
        done = subprocess.run(command, cwd=subjects.ROOT, env=environment, capture_output=True, text=True)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["nothing printed"]
    if done.returncode:
        return next((line for line in reversed(lines) if "Error" in line), lines[-1])
    return {name: value for name, value in json.loads(lines[-1]).items() if name not in _COUNTS}


def split_calibration(subject: str, zoo: Path, folder: Path) -> bool:
    """Write the scorer's calibration rows into ``folder``, one file a run. Returns: whether the subject has any."""
    import numpy as np

    made = folder.parent / f"{folder.name}.npz"
    done = subprocess.run([sys.executable, zoo / "evals.py", "calib", subject, made], capture_output=True)
    if done.returncode:
        return False
    runs: dict[str, subjects.Feeds] = {}
    with np.load(made) as rows:
        for key in rows.files:
            number, _, name = key.partition("/")
            runs.setdefault(number, {})[name] = rows[key]
    made.unlink()
    for number, feeds in runs.items():
        np.savez(folder / f"{int(number):05d}.npz", **feeds)
    return bool(runs)


def main() -> int:
    """Score. Returns: 1 where a subject fails or, at fp32, a score is further than WITHIN from the baseline."""
    parser = subjects.arguments(__doc__)
    parser.add_argument("-p", "--precision", default="fp32")
    parser.add_argument("--calibrate", action="store_true", help="give compile the scorer's calibration rows")
    parser.add_argument("--json", type=Path, help="default: results/zoo_scores_PRECISION.json")
    options = parser.parse_args()
    baseline = {}
    for line in (options.zoo / "BASELINE.jsonl").read_text().splitlines():
        fields = json.loads(line)
        baseline[fields["subject"]] = {name: value for name, value in fields.items() if name not in _COUNTS}
    rows, scores, bad = [], {}, []
    with tempfile.TemporaryDirectory(prefix="polycast-zoo-") as scratch:
        for subject in subjects.chosen(options.subjects, subjects.workspace(options.zoo, Path(scratch))):
            print(f"{subject} …", file=sys.stderr)
            found = scores[subject] = score(subject, Path(scratch), options.precision, options.calibrate)
            if isinstance(found, str):
                bad.append(subject)
                rows.append([subject, "", "", "", found])
                continue
            for name, value in found.items():
                expected = baseline[subject][name]
                far = abs(value - expected) > WITHIN
                if far and options.precision == "fp32":
                    bad.append(subject)
                rows.append([subject, name, f"{expected:.5f}", f"{value:.5f}", f"{value - expected:+.5f}"])
    print(subjects.table(["subject", "metric", "original", options.precision, "difference"], rows))
    path = options.json or subjects.RESULTS / f"zoo_scores_{options.precision}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": subjects.machine(), "precision": options.precision, "baseline": baseline, "scores": scores}
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if bad:
        print(f"not as it should be: {', '.join(dict.fromkeys(bad))}", file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
