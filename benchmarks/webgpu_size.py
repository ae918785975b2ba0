"""What a browser downloads to run a model, and the time to its first inference, beside onnxruntime-web.

python benchmarks/webgpu_size.py [SUBJECT …] [--zoo DIR] [--onnxruntime-web DIR]

Both run in the same headless Chromium, each in a tab of its own with nothing cached. Bytes are gzipped at level 9, as a
server of static files sends them; weights are not counted on either side. onnxruntime-web comes from npm
(``npm install onnxruntime-web@1.30.0`` in a folder of its own, which this does where DIR is not given).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import subjects

import polycast
from polycast.serve import served
from polycast.targets import find
from polycast.targets.webgpu import _chromium
from polycast.targets.webgpu._onnxruntime_web import VERSION

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "minilm": dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (1, 128)),
    "stories260K": {"input_ids": (1, 256)},
    "superres": {"input": (1, 1, 224, 224)},
}
DEFAULT = ("mobilenet025", "minilm")

VERDICT = """async () => {
  while (!globalThis.verdict) await new Promise((resolve) => setTimeout(resolve, 20));
  return globalThis.verdict;
}"""

#: What its import of ``onnxruntime-web/webgpu`` fetches.
ORT_FILES = (
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


def gzipped(path: Path) -> int:
    """Count the bytes of a file as a server sends it."""
    return len(gzip.compress(path.read_bytes(), 9))


def ours(folder: Path) -> dict[str, int]:
    """Count what the runner fetches on an adapter without float16, but for the weights."""
    plan = json.loads((folder / "plan.json").read_text())
    kernels = plan["variants"][-1]["code"]["file"]
    return {name: gzipped(folder / name) for name in ("runner.mjs", "files.mjs", "plan.json", kernels)}


def theirs(web: Path) -> dict[str, int]:
    """Count what onnxruntime-web fetches."""
    return {name: gzipped(web / "dist" / name) for name in ORT_FILES}


def first_inference(folder: Path) -> dict[str, Any]:
    """Open the page of a build: milliseconds from its start to the first outputs, and whether they meet the golden."""
    with served(folder) as url:
        tab = _chromium.Tab(url)
        try:
            return dict(tab.call(VERDICT))
        finally:
            tab.close()


def installed(given: Path | None, scratch: Path) -> Path:
    """Give the folder of onnxruntime-web, from npm where none is given."""
    if given is not None:
        return given.resolve()
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"onnxruntime-web@{VERSION}"]
    subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    return scratch / "node_modules" / "onnxruntime-web"


def measure(subject: str, zoo: Path, web: Path, scratch: Path) -> dict[str, Any]:
    """Build one subject for both runtimes, and measure both."""
    source = zoo / subjects.FILES[subject]
    shapes = SHAPES.get(subject)
    [own] = polycast.compile(source, "webgpu", out=scratch / subject, shapes=shapes)
    [other] = polycast.compile(source, "webgpu@onnxruntime-web", out=scratch / subject, shapes=shapes)
    beside = other.path / "node_modules"
    beside.mkdir(exist_ok=True)
    (beside / "onnxruntime-web").symlink_to(web)
    found = {
        "subject": subject,
        "adapter": find("webgpu").probe().hardware,
        "ours": {"files": ours(own.path), **first_inference(own.path)},
        "onnxruntime-web": {"files": theirs(web), **first_inference(other.path)},
    }
    shutil.rmtree(scratch / subject)
    return found


def main() -> None:
    """Print a table, and write results/webgpu_size.json."""
    parser = subjects.arguments(__doc__ or "")
    parser.add_argument("--onnxruntime-web", type=Path, metavar="DIR", help="its folder, with dist in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        scratch = Path(folder)
        zoo = scratch / "zoo"
        zoo.mkdir()
        there = subjects.workspace(options.zoo, zoo)
        web = installed(options.onnxruntime_web, scratch)
        os.environ["POLYCAST_ONNXRUNTIME_WEB"] = str(web)
        wanted = subjects.chosen(options.subjects or [name for name in DEFAULT if name in there], there)
        rows = [measure(name, zoo, web, scratch) for name in wanted]
    head = ["subject", "ours, kB", "onnxruntime-web, kB", "ours, ms to first", "onnxruntime-web, ms to first"]
    table = []
    for row in rows:
        both = [row["ours"], row["onnxruntime-web"]]
        sizes = [f"{sum(each['files'].values()) / 1e3:.1f}" for each in both]
        times = [f"{each['firstInference']:.0f}" if each["verified"] else "does not verify" for each in both]
        table.append([row["subject"], *sizes, *times])
    print(subjects.table(head, table))
    print(f"\nAdapter: {rows[0]['adapter']}. On a software adapter the times say nothing of a GPU.")
    results = {"machine": subjects.machine(), "onnxruntime-web": VERSION, "rows": rows}
    subjects.RESULTS.mkdir(exist_ok=True)
    (subjects.RESULTS / "webgpu_size.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
