"""What a schedule has to know of a CPU: which instructions there are, and how wide its registers."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polycast.targetbase import Answer, Probe


@dataclass(frozen=True)
class Cpu:
    """One kind of CPU.

    arch: ``vnni`` (AVX-512 with VNNI), ``avx512``, ``avx2``, ``neon`` (ARMv8.0), or ``generic``, what every CPU of
    ``machine`` has.
    machine: as ``platform.machine`` spells it. system: what follows it in the triple that LLVM knows the system by.
    """

    arch: str
    machine: str = "x86_64"
    kind: str = "cpu"
    tensor_cores: bool = False
    system: str = "linux-gnu"

    @property
    def lanes(self) -> int:
        """Numbers of 32 bits in one register."""
        return {"vnni": 16, "avx512": 16, "avx2": 8}.get(self.arch, 4)

    @property
    def registers(self) -> int:
        """Sums that a tile may hold; the other registers are for what is multiplied."""
        return {"vnni": 24, "avx512": 24, "avx2": 12, "neon": 24}.get(self.arch, 12)

    @property
    def multiplies_bytes(self) -> bool:
        """Whether an instruction adds four products of uint8 and int8 in 32 bits."""
        return self.arch == "vnni"

    @property
    def masks(self) -> bool:
        """Whether an instruction reads or writes a part of a register."""
        return self.arch in ("vnni", "avx512")

    @property
    def instructions(self) -> tuple[str, ...]:
        """Flags, as /proc/cpuinfo spells them, without which a build does not run."""
        wide = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
        return {"vnni": (*wide, "avx512_vnni"), "avx512": wide, "avx2": ("avx2", "fma", "f16c")}.get(self.arch, ())

    def target(self) -> Any:
        """Give the tvm.target.Target."""
        import tvm

        options: dict[str, Any] = {"kind": "llvm", "num-cores": 1, "mtriple": f"{self.machine}-{self.system}"}
        if chip := _CHIPS.get(self.arch):
            options |= {"mcpu": chip, "mattr": ["-prefer-256-bit"]} if self.lanes == 16 else {"mcpu": chip}
        return tvm.target.Target(options)

    def to_json(self) -> dict[str, Any]:
        """Spell for another process."""
        return asdict(self)


#: The oldest chip with the instructions of each arch, in LLVM's spelling.
_CHIPS = {"vnni": "cascadelake", "avx512": "skylake-avx512", "avx2": "haswell"}


#: What every 64-bit ARM has. Products of bytes (sdot) came with ARMv8.2, and a Raspberry Pi 4 has none.
NEON = Cpu("neon", "aarch64")


def this_cpu() -> Cpu:
    """Give the kind of CPU that this machine has."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return NEON
    if machine not in ("x86_64", "amd64"):
        return Cpu("generic", machine)
    known = flags()
    return next((cpu for arch in _CHIPS if known.issuperset((cpu := Cpu(arch)).instructions)), Cpu("generic"))


def probe(cpu: Cpu, hardware: str, build: Answer, run: Answer) -> Probe:
    """Say whether builds for ``cpu`` can be made and run here; run: whether any can."""
    if run.yes and (lacking := sorted(set(cpu.instructions) - flags())):
        run = Answer(False, f"this CPU has no {', '.join(lacking)}", "-t cpu compiles for this machine")
    return Probe(build, run, "device", hardware)


def chip() -> str:
    """Give the name of this machine's CPU, with its model and stepping where Linux says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(known.get(key, "") for key in ("vendor_id", "cpu family", "model", "model name", "stepping"))


def flags() -> frozenset[str]:
    """Give the instruction sets of this machine, as /proc/cpuinfo spells them; none where there is no such file."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return frozenset()
