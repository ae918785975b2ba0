#!/usr/bin/env python3
"""Score builds for the browser through a browser, with the zoo's own scorer, beside the original on the same rows.

Where a software adapter takes seconds for a run, a sample of the rows is scored: every so-many-th image, the first
stories. A build that is refused is a row with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import subjects
from zoo_scores import split_calibration

from polycast.targets import find

#: Which precisions are scored.
PRECISIONS = ("fp32", "int8-weights", "int4")

DEFAULT = ("kws", "ic_resnet8", "vww", "mobilenet025", "stories260K")

#: The length that a language model is built at.
LENGTH = {"stories260K": 256}

#: A score may be lower than the original's by half a point, a perplexity higher by one per cent.
POINTS, SHARE = 0.005, 0.01


def sample(zoo: Path, folder: Path, images: int, stories: int) -> None:
    """Fill ``folder`` with links into ``zoo``, but with fewer images and stories."""
    for path in zoo.iterdir():
        if path.name not in ("imagenet", "text"):
            (folder / path.name).symlink_to(path.resolve())
    for inside in ("imagenet", "imagenet/test", "text"):
        (folder / inside).mkdir()
    for path in (zoo / "imagenet").iterdir():
        if path.name != "test":
            (folder / "imagenet" / path.name).symlink_to(path.resolve())
    files = sorted((zoo / "imagenet" / "test").glob("*.jpg"))
    for path in files[:: max(1, len(files) // images)][:images]:
        (folder / "imagenet" / "test" / path.name).symlink_to(path.resolve())
    end = "<|endoftext|>"
    told = (zoo / "text" / "tinystories.txt").read_text(encoding="utf8", errors="ignore").split(end)
    long = [each for each in told[1:-1] if len(each.strip()) > 100]
    text = end.join(["", *long[:stories], ""])
    (folder / "text" / "tinystories.txt").write_text(text, encoding="utf8")


def calibration(subject: str, zoo: Path, folder: Path) -> dict[str, str]:
    """Write the scorer's calibration rows into ``folder``; of a text, those that are as long as the build takes.

    Returns: what tells ``zoo_plug`` of them.
    """
    folder.mkdir()
    if not split_calibration(subject, zoo, folder):
        return {}
    for path in sorted(folder.glob("*.npz")) if subject in LENGTH else ():
        with np.load(path) as feeds:
            if any(feeds[name].shape[1] != LENGTH[subject] for name in feeds.files):
                path.unlink()
    return {"POLYCAST_CALIBRATION": str(folder)}


def score(subject: str, zoo: Path, plug: dict[str, str] | None) -> dict[str, Any]:
    """Run the scorer on one subject. plug: the environment of ``zoo_plug``; None for the original in onnxruntime.

    Returns: its scores and the seconds that it took, or the last line of what went wrong under ``refused``.
    """
    command = [sys.executable, str(zoo / "evals.py"), "run", subject]
    command += ["--plug", "zoo_plug:make"] if plug is not None else []
    environment = os.environ | {"THREADS": "1", "POLYCAST_ZOO": str(zoo)} | (plug or {})
    started = time.perf_counter()
    done = subprocess.run(command, cwd=subjects.ROOT, env=environment, capture_output=True, text=True)
    seconds = round(time.perf_counter() - started, 1)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing printed"]
        said = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        return {"refused": said.rpartition("Error: ")[2]}
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"seconds": seconds}


def loss(metric: str, original: float, ours: float) -> tuple[float, bool]:
    """Give what is lost, and whether it is within what may be."""
    if metric == "ppl":
        return ours / original - 1, ours / original - 1 <= SHARE
    return original - ours, round(original - ours, 5) <= POINTS


def rows_of(subject: str, precision: str, original: dict[str, Any], found: dict[str, Any]) -> list[list[str]]:
    """Spell the scores of one build, one a row."""
    if "refused" in found:
        return [[subject, precision, "", "", "", "", found["refused"]]]
    rows = []
    for metric in (name for name in ("top1", "top1_exact_pixels", "ppl") if name in found):
        counted = "n_exact" if metric == "top1_exact_pixels" else "tokens" if metric == "ppl" else "n"
        lost, fine = loss(metric, original[metric], found[metric])
        lost_text = f"{lost:+.2%}" if metric == "ppl" else f"{100 * lost:+.2f} pt"
        scores = [f"{original[metric]:.4f}", f"{found[metric]:.4f}", lost_text]
        rows.append([subject, precision, f"{metric}, n={found[counted]}", *scores, "" if fine else "over"])
    return rows


def main() -> None:
    """Print a table, and write results/webgpu_scores.json after each build, so that a long run can go on."""
    parser = subjects.arguments(__doc__ or "")
    parser.add_argument("-p", "--precision", default=",".join(PRECISIONS))
    parser.add_argument("--images", type=int, default=100, help="of mobilenet025 (default: 100)")
    parser.add_argument("--stories", type=int, default=20, help="of stories260K (default: 20)")
    parser.add_argument(
        "--again", action="store_true", help="also what results/webgpu_scores.json has already, in its place"
    )
    options = parser.parse_args()
    path = subjects.RESULTS / "webgpu_scores.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    scores: dict[str, Any] = kept.get("scores", {})
    facts = {"machine": subjects.machine(), "adapter": find("webgpu").probe().hardware}
    with tempfile.TemporaryDirectory(prefix="polycast-zoo-") as scratch:
        zoo = Path(scratch)
        sample(options.zoo.resolve(), zoo, options.images, options.stories)
        for subject in options.subjects or DEFAULT:
            plug = {"POLYCAST_TARGET": "webgpu"}
            plug |= {"POLYCAST_LENGTH": str(LENGTH[subject])} if subject in LENGTH else {}
            plug |= calibration(subject, zoo, zoo / f"calibration-{subject}")
            own = scores.setdefault(subject, {})
            if "original" not in own:
                own["original"] = score(subject, zoo, None)
            for precision in options.precision.split(","):
                if precision not in own or options.again:
                    print(f"{subject} {precision} …", file=sys.stderr)
                    own[precision] = score(subject, zoo, plug | {"POLYCAST_PRECISION": precision})
                    path.write_text(json.dumps({**facts, "scores": scores}, indent=1) + "\n", encoding="utf-8")
    table = [
        row
        for subject, own in scores.items()
        for precision in own
        if precision != "original"
        for row in rows_of(subject, precision, own["original"], own[precision])
    ]
    print(subjects.table(["subject", "precision", "metric", "original", "in the browser", "lost", ""], table))


if __name__ == "__main__":
    main()
