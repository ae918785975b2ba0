"""The layout holds: who imports whom, how long a file is, what is imported when, what things are called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"compiler": "polycast", "passes": "polycast.passes", "targets": "polycast.targets"}

#: A module imports modules of the rows above its own, and no other. A new file takes its place in a row.
RANKS = (
    ("commands", "errors", "kernels", "manual", "options", "progress", "statistics", "verify"),
    ("model", "plugins", "readme", "serve"),
    ("reading", "shares", "seeded", "targetbase"),
    ("fallback", "profiling", "promise", "sizes"),
    ("data", "measure", "reference"),
    ("samples",),
    ("activations", "fingerprint", "golden", "outputs", "passbase"),
    ("calibrating", "rows"),
    ("environments", "load"),
    ("passes", "targets", "metrics"),
    ("build", "pipeline"),
    ("assignment", "evaluating", "recipe", "sensitivity"),
    ("blame", "guard", "kept", "op_times"),
    ("layer_costs", "making", "mixed"),
    ("candidates",),
    ("auto", "gate", "plan"),
    ("compile",),
    ("evaluate", "doctor", "rendering", "show"),
    ("devices", "report"),
    ("sweep",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
#: What lies in one folder has one place; inside it Python itself refuses a circle.
FOLDERS = ("calibrating", "data", "devices", "environments", "evaluating", "passes", "reading", "rendering", "targets")
RANK = {name: row for row, names in enumerate(RANKS) for name in names}

HEAVY = {
    "ai_edge_litert", "flatbuffers", "matplotlib", "onnxruntime", "onnxscript", "openvino", "optimum", "PIL", "rich",
    "scipy", "sklearn", "tokenizers", "torch", "transformers", "tvm",
}  # fmt: skip
NOT_FOR_HELP = HEAVY | {"numpy", "onnx", "onnx_ir", "ml_dtypes"}

#: Words that DESIGN's table of words has a better one for.
VAGUE = {"engine", "manager", "handler", "helper", "util", "artifact", "optimizer"}


@dataclass(frozen=True)
class Source:
    """One Python file of the package."""

    path: Path
    module: str

    @property
    def tree(self) -> ast.Module:
        return parse(self.path)

    @property
    def package(self) -> str:
        return self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]

    @property
    def label(self) -> str:
        return label_of(self.module)


def label_of(module: str) -> str:
    """Give the name that ``module`` has in RANKS."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def package_sources() -> list[Source]:
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = inside[:-1] if inside[-1] == "__init__" else inside
            found.append(Source(path, ".".join((package, *parts))))
    return found


SOURCES = package_sources()
MODULES = {source.module for source in SOURCES}


def each_source() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.module)


def imports(source: Source) -> Iterator[str]:
    """Yield every module of polycast that ``source`` imports, wherever in the file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            parents = source.package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            name = ".".join(filter(None, (".".join(base), node.module)))
            for alias in node.names:
                if f"{name}.{alias.name}" in MODULES:
                    yield f"{name}.{alias.name}"
                elif name in MODULES:
                    yield name


@each_source()
def test_module_imports_only_what_stands_above_it(source: Source) -> None:
    assert source.label in RANK, f"give {source.label} its place in RANKS of {Path(__file__).name}"
    for name in imports(source):
        label = label_of(name)
        if label != source.label or label not in FOLDERS:
            assert RANK.get(label, 0) < RANK[source.label], f"{source.module} may not import {name}"


@each_source()
def test_pass_imports_no_pass_and_target_no_target(source: Source) -> None:
    if source.label not in ("passes", "targets"):
        return
    for name in imports(source):
        if label_of(name) != source.label or name.count(".") < 2 or in_one_target(source, name):
            continue
        home = home_of_private(name)
        assert home, f"{source.module} may not import {name}: share a private _file instead"
        assert f"{source.package}.".startswith(f"{home}."), f"{name} is private to {home}"


def home_of_private(name: str) -> str:
    """Give the package that ``name``, a private module or one inside a private package, is private to; "" if public."""
    parts = name.split(".")
    return next((".".join(parts[:at]) for at, part in enumerate(parts) if part.startswith("_")), "")


def in_one_target(source: Source, name: str) -> bool:
    """Whether both lie in the folder of one target."""
    folder = ".".join(name.split(".")[:3])
    return source.label == "targets" and f"{source.package}.".startswith(f"{folder}.")


@each_source()
def test_file_is_at_most_400_lines(source: Source) -> None:
    lines = len(source.path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{source.path.relative_to(ROOT)} has {lines} lines: it wants to be two files, split by idea"


@each_source()
def test_heavy_library_is_imported_where_it_is_used(source: Source) -> None:
    at_import = {name.partition(".")[0] for name in imported_at_module_level(source.tree)}
    assert not at_import & HEAVY, "import these inside the function that needs them"


def imported_at_module_level(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported when the module is: function bodies and ``if TYPE_CHECKING`` aside."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["evaluate", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom polycast.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    child = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert "Usage" in child.stdout
    assert not NOT_FOR_HELP & set(child.stderr.split())


@each_source()
def test_public_names_have_docstrings(source: Source) -> None:
    bare = [name for name, node in public(source.tree, source.module) if not ast.get_docstring(node)]
    if source.path.name.startswith("_") and source.path.stem != "__init__":
        bare = [name for name in bare if name == source.module]
    assert not bare, f"no docstring: {', '.join(bare)}"


def public(tree: ast.Module, module: str) -> Iterator[tuple[str, ast.Module | ast.FunctionDef | ast.ClassDef]]:
    """Yield the module, its public functions and classes, and the methods that a class adds to no base of ours."""
    yield module, tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if "overload" not in map(ast.unparse, node.decorator_list):
                yield node.name, node
            if isinstance(node, ast.ClassDef) and not {ast.unparse(base) for base in node.bases} - {"ABC", "Protocol"}:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f"{node.name}.{method.name}", method


@each_source()
def test_what_is_unsupported_comes_with_what_could_be_done(source: Source) -> None:
    bare = [
        node.lineno
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "UnsupportedError" and len(node.args) < 2
    ]
    assert not bare, f"{source.path.relative_to(ROOT)} refuses and gives no hint in lines {bare}"


@each_source()
def test_names_use_the_words_of_the_house(source: Source) -> None:
    vague = {name for name in names_given(source.tree) | set(source.module.split(".")) if words(name) & VAGUE}
    assert not vague, f"say what it is: {', '.join(sorted(vague))}"


def names_given(tree: ast.Module) -> set[str]:
    """Collect what this file names: functions, classes, parameters, variables, fields."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def words(name: str) -> set[str]:
    """Split ``fuseGelu_heads`` into fuse, gelu, head."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {part.lower().removesuffix("s") for part in parts}


def test_no_path_of_a_machine_and_no_package_index() -> None:
    forbidden = re.compile(
        r"(?<![\w.~}-])/(?:home|root|work|opt(?!/rocm)|Users|farm)/\w|(?<![\w.])/tmp/|[\w.]*pypi\.org/simple|pythonhosted\.org"
        r"|artifactory|--(?:extra-)?index-url|--find-links|download\.pytorch\.org"
    )
    found = []
    for path in tracked_text():
        if path != Path(__file__).resolve():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if forbidden.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def tracked_text() -> Iterator[Path]:
    """Yield every text file that git has, or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:8000]:
            yield path
