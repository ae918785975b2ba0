"""Verify a build on a device: copy it there, run it there, and keep what comes back beside the build."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from polycast import show
from polycast import verify as verifier
from polycast.build import Build, open_build
from polycast.errors import InputError, ToolchainError
from polycast.evaluating.on_device import path_of

from . import here, native
from .reach import Adb, Device, Said, Ssh

#: What a device's Python imports for each runtime.
_MODULES = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert", "tvm": "tvm"}

#: The oldest Python that checks files (hashlib.file_digest).
_PYTHON = (3, 11)


def verify_on(
    path: Path,
    host: str = "",
    serial: str = "",
    *,
    runs: int = 50,
    runner: Path | None = None,
    libraries: Sequence[Path] = (),
) -> dict[str, Any]:
    """Run the build in ``path`` on a device, with its Python where that has the runtime, else with the native runner.

    host: as ssh takes it; without one it is adb's device ``serial``. runs: how many are timed.
    runner: the native runner, compiled for the device; without it one is compiled here.
    libraries: the runtime's shared libraries, or folders of them, which are copied beside the runner; without any,
    those of the wheels that are here for such a device.

    Returns: what was found, with ``device`` and ``evidence``; ``<build>.device.json`` beside the build holds it too.
    Raises: InputError where the build is changed, here or there; ToolchainError for all that is the device's.
    """
    build, device = open_build(path), Ssh(host) if host else Adb(serial)
    if changed := verifier.check_files(build.path, dict(build.manifest["files"])):
        raise InputError(f"{build.path} is not what was built: {'; '.join(changed)}", "Compile the build again")
    if build.manifest["runtime"]["name"] not in _MODULES:
        raise InputError(f"{build.path} is for {build.target}, and that runs in a browser", "polycast serve shows it")
    folder = device.place()
    try:
        said = _run(device, build, folder, runs, runner, libraries)
    finally:
        device.run("rm", "-rf", folder)
    found = {"device": device.name, "evidence": "device", "manifest": build.stamp, **_read(device, said)}
    runtime = found["runtime"]
    if not runtime["version"] and not libraries and runtime.get("library", "").startswith(folder):
        runtime["version"] = native.version(runtime["name"])  # of the wheel whose library was sent
    path_of(build).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def _run(device: Device, build: Build, folder: str, runs: int, runner: Path | None, libraries: Sequence[Path]) -> Said:
    device.push(_tree(build), folder)
    if runner is None and not libraries and _has_python(device, build):
        device.push({"here.py": Path(here.__file__)}, folder)
        return device.run("python3", "-B", f"{folder}/here.py", f"{folder}/build", str(runs))
    machine = device.run("uname", "-m").out.strip()
    runner = runner or native.runner(machine, isinstance(device, Adb))
    if not libraries and isinstance(device, Ssh):
        libraries = native.libraries(machine, build.manifest["runtime"]["name"])
    device.push({"polycast_run": runner, **_files(libraries)}, folder)
    device.run("chmod", "755", f"{folder}/polycast_run")
    return device.run(f"{folder}/polycast_run", f"{folder}/build", "--runs", str(runs))


def _has_python(device: Device, build: Build) -> bool:
    wanted = ("numpy", _MODULES[build.manifest["runtime"]["name"]])
    code = (
        f"import sys, importlib.util as u; sys.exit(sys.version_info < {_PYTHON} or None in map(u.find_spec, {wanted}))"
    )
    return device.run("python3", "-c", code).status == 0


def _tree(build: Build) -> dict[str, Path]:
    return {f"build/{name}": build.path / name for name in [*build.manifest["files"], "manifest.json"]}


def _files(libraries: Sequence[Path]) -> dict[str, Path]:
    """Give the files of ``libraries`` by name: they lie beside the runner, where it looks first."""
    found = [path for each in libraries for path in (sorted(each.iterdir()) if each.is_dir() else [each])]
    return {path.name: path for path in found if path.is_file() and ".so" in path.name}


def _read(device: Device, said: Said) -> dict[str, Any]:
    try:
        found = json.loads(said.out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        what = f"the runner on {device.name} ends with {said.status}: {said.last}"
        raise ToolchainError(what, "--runner F and --lib F send another runner and other libraries") from None
    if error := found.get("error"):
        if ": changed" in error or ": missing" in error or "sha256" in error:
            raise InputError(f"what {device.name} has of the build is not what was sent: {error}", "Try it again")
        hint = "--lib FOLDER copies the runtime's libraries there" if "--lib" in error else ""
        raise ToolchainError(f"the build does not run on {device.name}: {error}", hint)
    return dict(found)


def print_verified(path: Path, *, host: str, adb: bool, serial: str, as_json: bool, **there: Any) -> int:
    """Verify a build on a device, or where none is named on this machine, and print it. Returns: the exit status."""
    if not (host or adb):
        return show.print_verified(path)
    found = verify_on(path, host, serial, **there)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else render(path, found))
    return 0 if found["ok"] else 1


def render(path: Path, found: Mapping[str, Any]) -> str:
    """Spell what was found as a few lines."""
    golden, latency, on = found["golden"], found["latency_ms"], found["on"]
    runtime = " ".join(filter(None, (found["runtime"]["name"], found["runtime"]["version"])))
    worst = max((each["worst"] for each in golden["outputs"] if each["worst"] is not None), default=0.0)
    lines = [f"{path}: {line}" for line in golden["problems"]]
    lines.append(f"{path} on {found['device']} ({on['system']} {on['machine']}, {on['cpus']} CPUs), {runtime}")
    near = f"worst deviation {worst:.2g} of the largest value, tolerance {golden['tolerance']:.2g}"
    lines.append(
        f"  golden   {golden['n']:g} sample(s), {near}" if golden["n"] else "  golden   the build holds no sample"
    )
    if latency:
        spread = ", ".join(f"{name} {latency[name]:.3g}" for name in ("min", "p50", "p90", "p99"))
        lines.append(f"  latency  {spread} ms (n={latency['n']:g})")
    lines.append(f"  load     {found['load_ms']:.3g} ms, peak memory {found['peak_memory_bytes'] / 2**20:.1f} MiB")
    return "\n".join(lines)
