"""What is declared is what is there: packages, package data, dependencies, the lock, the editable install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from editable import FOLDERS, imported_from, install_problem
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LOCK = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
LOCKED = dict(re.findall(r"^(\S+)==(\S+)$", LOCK, re.MULTILINE))


def folder_of(package: str) -> Path:
    top = max((name for name in SETUPTOOLS["package-dir"] if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT.joinpath(SETUPTOOLS["package-dir"][top], *package.removeprefix(top).strip(".").split("."))


def test_every_folder_with_code_is_a_declared_package() -> None:
    with_code = {path.parent for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert {folder_of(package) for package in SETUPTOOLS["packages"]} == with_code
    assert all((folder / "__init__.py").exists() for folder in with_code)


def test_every_other_file_of_a_package_is_declared_package_data() -> None:
    declared = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in folder_of(package).glob(pattern)
    }
    others = {
        path
        for name in FOLDERS
        for path in (ROOT / name).rglob("[!.]*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and ".mypy_cache" not in path.parts
    }
    assert others == declared


def test_package_refuses_a_second_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    for package, folder in SETUPTOOLS["package-dir"].items():
        with pytest.raises(ImportError, match=re.escape(f"this package is {package}, not {folder}")):
            __import__(folder)


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_lock_meets_what_the_project_asks_for(extra: str) -> None:
    asked = [Requirement(line) for line in (EXTRAS[extra] if extra else PROJECT["project"]["dependencies"])]
    if extra == "tvm":
        pytest.skip("not part of the development environment yet: no target needs it")
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if name == "polycast":
            assert requirement.extras <= set(EXTRAS)
        else:
            assert requirement.specifier.contains(LOCKED[name]), f"{requirement} is locked at {LOCKED[name]}"


def test_every_extra_that_an_error_recommends_exists() -> None:
    sources = (path.read_text(encoding="utf-8") for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
    recommended = {extra for source in sources for extra in re.findall(r"polycast\[(\w+)\]", source)}
    assert recommended
    assert recommended <= EXTRAS.keys()


def test_lock_is_exact_and_names_no_place() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.lstrip().startswith("#")]
    assert lines
    assert not [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line)]


def test_torch_is_pinned_exactly_and_once() -> None:
    pins = {line for lines in EXTRAS.values() for line in lines if re.match(r"torch\b", line)}
    assert pins == {f"torch=={LOCKED['torch']}"}


def test_this_environment_sees_the_tree() -> None:
    assert install_problem(ROOT, imported_from()) == ""


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    """A tree of four files and the link tree of its editable install."""
    root, package = tmp_path / "tree", tmp_path / "links"
    for name in ("compiler/errors.py", "compiler/model.py", "passes/graph/fold.py", "targets/cpu.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        folder, _, rest = name.partition("/")
        link = package / FOLDERS[folder] / rest
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return root, package


def test_install_that_agrees_is_fine(linked: tuple[Path, Path]) -> None:
    assert install_problem(*linked) == ""


def test_new_file_asks_for_a_new_install(linked: tuple[Path, Path]) -> None:
    (linked[0] / "passes/graph/clean.py").write_text("")
    assert "lacks passes/graph/clean.py. Run `pip install -e .` again" in install_problem(*linked)


def test_removed_pass_asks_for_a_new_install(linked: tuple[Path, Path]) -> None:
    (linked[0] / "passes/graph/fold.py").unlink()
    assert "still has passes/graph/fold.py. Run `pip install -e .` again" in install_problem(*linked)


def test_copy_of_the_tree_is_not_the_tree(linked: tuple[Path, Path]) -> None:
    copy = linked[1] / "model.py"
    copy.unlink()
    copy.write_text("")
    assert "lacks compiler/model.py" in install_problem(*linked)


def test_folder_that_is_linked_whole_is_fine(linked: tuple[Path, Path]) -> None:
    root, package = linked
    for file in (package / "targets").iterdir():
        file.unlink()
    (package / "targets").rmdir()
    (package / "targets").symlink_to(root / "targets")
    assert install_problem(root, package) == ""


def test_no_install_is_said() -> None:
    assert "not installed" in install_problem(ROOT, None)
