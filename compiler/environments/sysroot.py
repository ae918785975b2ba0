"""A sysroot for 64-bit ARM: Debian's Python and C libraries, and the wheels of the runtimes, run under qemu.

What runs there gives the numbers that an ARM board gives; its time says nothing of a board's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from polycast.calibrating.folder import cache_folder
from polycast.errors import ToolchainError
from polycast.targetbase import Answer

from .environment import PATIENCE, locked

#: What is told of how far the making is: a stage, how many are done, of how many.
Progress = Callable[[str, int, int], None]

#: The runtimes, and what they import. Of each, the version that is installed here.
_WHEELS = (
    "numpy", "onnxruntime", "ai-edge-litert", "apache-tvm", "apache-tvm-ffi", "ml-dtypes", "typing-extensions",
)  # fmt: skip

#: Most of their bytes: TVM's compiler, and LiteRT on GPUs.
_LEFT_OUT = (
    "tvm/lib/libtvm_compiler.so",
    "tvm/3rdparty",
    "tvm/include",
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
)

#: Wheels for any C library up to that of Debian 12. pip takes what it is told to the letter.
_PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))
_PACKAGES = "usr/lib/python3/dist-packages"

#: What qemu plays. onnxruntime asks the system what the CPU is, and what it finds of this machine's is no ARM at all.
_CPU = "cortex-a76"
_SYSTEM = {
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 100.00\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n",
    **{f"sys/devices/system/cpu/{name}": "0\n" for name in ("kernel_max", "online", "possible", "present")},
}

#: apt, as if this were an ARM machine on which nothing is installed: its sources, and nothing else of it.
_APT = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "{patience}";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
"""


@dataclass(frozen=True)
class Sysroot:
    """A sysroot that is there, and whole. ``find`` gives it, ``make`` makes it."""

    folder: Path

    @classmethod
    def find(cls) -> Sysroot | None:
        """Give the one that holds the versions that are installed here; None where it is not made yet."""
        folder = _place()
        return cls(folder) if folder.is_dir() else None

    @classmethod
    def available(cls) -> Answer:
        """Say whether programs for 64-bit ARM run here, through qemu and a sysroot that is made."""
        if (lacking := _lacking()).reason:
            return lacking
        if cls.find() is None:
            return Answer(False, "the sysroot for 64-bit ARM is not made yet", "polycast setup cpu:aarch64")
        return Answer(True, f"64-bit ARM through {Path(_qemu()).name}")

    @classmethod
    def make(cls, progress: Progress | None = None) -> Sysroot:
        """Make it, where it is not there yet; another process that makes it meanwhile is waited for.

        Raises: ToolchainError with the last line that apt, dpkg-deb or pip says; nothing half-made is left.
        """
        if (lacking := _lacking()).reason:
            raise ToolchainError(f"no sysroot for 64-bit ARM can be made here: {lacking.reason}", lacking.mend)
        folder = _place()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    _make(folder, progress or (lambda stage, done, total: None))
        except OSError as error:
            raise ToolchainError(f"cannot make {folder}: {error.strerror or error}", "Set POLYCAST_CACHE") from error
        return cls(folder)

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Folders of the runtimes' shared libraries: onnxruntime, LiteRT, TVM and its foreign function interface."""
        packages = self.folder / _PACKAGES
        names = ("onnxruntime/capi", "ai_edge_litert", "tvm/lib", "tvm_ffi/lib")
        return tuple(packages / name for name in names if (packages / name).is_dir())

    @property
    def python(self) -> list[str]:
        """The command that starts its Python, which has numpy and the runtimes."""
        return self.command(_interpreter(self.folder))

    def command(self, program: Path) -> list[str]:
        """Give the command that runs ``program``, which is for 64-bit ARM."""
        return [_qemu(), "-cpu", _CPU, "-L", str(self.folder), str(program)]

    def run(
        self, program: Path, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``program`` to its end. env: what is set beside this process's environment."""
        return self._run(self.command(program), arguments, env)

    def run_python(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python to its end; see ``run``."""
        return self._run([*self.python, "-B"], arguments, env)

    def _run(
        self, command: list[str], arguments: Sequence[str | Path], env: Mapping[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, **(env or {})}
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=given)


def _qemu() -> str:
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64") or ""


def _lacking() -> Answer:
    """Name the tool that is not here; no reason where all are."""
    if not _qemu():
        return Answer(False, "qemu-aarch64 is not installed", "apt install qemu-user-static")
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return Answer(False, "its Python and C libraries are Debian packages, and there is no apt-get", "use Debian")
    return Answer(True, "")


def _requirements() -> list[str]:
    found = []
    for name in _WHEELS:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _place() -> Path:
    told = "\n".join((*_requirements(), _CPU, *_SYSTEM.values(), *_LEFT_OUT))
    return cache_folder() / "environments" / f"arm64-{sha256(told.encode()).hexdigest()[:12]}"


def _make(folder: Path, tell: Progress) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=".arm64.", suffix=".partial", dir=folder.parent))
    try:
        root = scratch / "root"
        packages = _packages(scratch, tell)
        for done, package in enumerate(packages):
            tell("unpack Debian's packages", done, len(packages))
            _do(["dpkg-deb", "-x", str(package), str(root)], "an ARM package cannot be unpacked")
        for name, text in _SYSTEM.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        tell("fetch the runtimes' wheels", 0, 1)
        _install(root)
        root.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _packages(scratch: Path, tell: Progress) -> list[Path]:
    """Fetch Python and the C++ library with all that they depend on, from the machine's own sources."""
    for name in ("lists/partial", "archives/partial"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    settings = scratch / "apt.conf"
    settings.write_text(_APT.format(folder=scratch, patience=PATIENCE), encoding="utf-8")
    env = {"APT_CONFIG": str(settings), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    why = "this machine's apt sources have no packages for 64-bit ARM"
    tell("fetch Debian's lists", 0, 2)
    _do(["apt-get", "-q", "update"], why, env)
    tell("fetch Debian's packages", 1, 2)
    _do(["apt-get", "-q", "-y", "install", "--download-only", "python3", "libstdc++6"], why, env)
    return sorted((scratch / "archives").glob("*.deb"))


def _interpreter(root: Path) -> Path:
    [found] = (path for path in (root / "usr/bin").glob("python3.[0-9]*") if path.name.replace(".", "").isalnum())
    return found


def _install(root: Path) -> None:
    number = _interpreter(root).name.removeprefix("python")
    command = [sys.executable, "-m", "pip", "--timeout", PATIENCE, "--disable-pip-version-check", "install", "--quiet"]
    command += [
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        number,
    ]
    command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    _do(
        [*command, "--target", str(root / _PACKAGES), *_requirements()], "the wheels for 64-bit ARM cannot be installed"
    )
    for name in _LEFT_OUT:
        path = root / _PACKAGES / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _do(command: list[str], why: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
        raise ToolchainError(f"{why}: {said[-1]}", "It needs a network; try it again with one")
