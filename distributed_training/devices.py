"""Which GPUs this machine has, asked without torch, and which torch can use them.

Of the standard library alone, and nothing of ours: scripts/setup.sh runs this file before anything is installed. What
is looked for never raises, and all of it takes 5 s at most.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

QUERY = ("--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits")
# The builds that PyTorch makes of torch 2.13 (its RELEASE.md): name, oldest driver, compute capabilities from and to.
# Drivers: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html (CUDA 13.x: 580, 12.x: 525).
CUDA_BUILDS = (("cu130", 580, 7.5, 99.0), ("cu126", 525, 5.0, 9.9))
ROCM_BUILD = "rocm7.2"
ROCM_GPUS = "gfx900 gfx906 gfx908 gfx90a gfx942 gfx950 gfx1030 gfx1100 gfx1101 gfx1102 gfx1150 gfx1151 gfx1200 gfx1201"
SETUP = "bash scripts/setup.sh"
NEW_DRIVER = (
    "install NVIDIA's driver, {0} or newer (Ubuntu: sudo ubuntu-drivers install; Debian: sudo apt install "
    "nvidia-driver; WSL2: in Windows), and reboot"
)
FELL_OFF = "it fell off the PCI bus (Xid 79 in the kernel log)"
POWER_CYCLE = "switch the machine off and on, a reboot may not bring it back; if it happens again: power, heat, riser"
# What nvidia-smi says in trouble, what that means, and what mends it.
_SAID = (
    ("version mismatch", "its driver was updated under the running system", "reboot"),
    ("gpu is lost", FELL_OFF, POWER_CYCLE),
    ("unable to determine the device handle", FELL_OFF, POWER_CYCLE),
    ("no devices were found", FELL_OFF, POWER_CYCLE),
    ("unknown error", "the driver answers with an unknown error", "restart this container, or reboot"),
    ("permission", "this user may not use it", "give this user /dev/nvidia* (often the group video), and log in again"),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """`trouble`: why nothing can use it as things are, and `fix` what mends that; both empty where it answers."""

    vendor: str  # nvidia, amd or apple
    name: str
    driver: str = ""  # empty: not known, as 0 is below
    memory_bytes: int = 0
    capability: float = 0.0  # CUDA's
    trouble: str = ""
    fix: str = ""

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else ""
        details = ", ".join(filter(None, (memory, self.driver and f"driver {self.driver}")))
        return f"{self.name} ({details})" if details else self.name


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The installed torch, read from its files. `cuda`, `hip`: the version that it was built for, empty for none."""

    version: str
    cuda: str = ""
    hip: str = ""

    def __str__(self) -> str:
        kind = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else "no CUDA"
        return f"torch {self.version} ({kind})"


def seen_gpus(root: Path = Path("/"), timeout_s: float = 4.0) -> tuple[Gpu, ...]:
    """Those that answer and those that are there and do not. `root`: where /proc, /sys and /dev are."""
    if platform.system() == "Darwin":
        return _apple()
    try:
        return (*_nvidia(root, timeout_s), *_amd(root))
    except OSError:
        return ()


def usable(gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    return tuple(gpu for gpu in gpus if not gpu.trouble)


def torch_here() -> TorchBuild | None:
    """Without importing it, which takes seconds. None where there is none."""
    spec = find_spec("torch")
    try:
        text = Path(spec.origin or "").with_name("version.py").read_text() if spec is not None else ""
    except OSError:
        text = ""
    found = dict(re.findall(r"(?m)^(__version__|cuda|hip)\b[^=\n]*= *'([^'\n]*)'", text))
    return TorchBuild(found["__version__"], found.get("cuda", ""), found.get("hip", "")) if found else None


def torch_build(gpus: Sequence[Gpu]) -> str:
    """What of torch can use these: `cu130`, `cu126`, `rocm7.2`, `mps` (the usual wheel of a Mac), or `cpu`."""
    vendors = {gpu.vendor for gpu in usable(gpus)}
    if "nvidia" in vendors:
        return _cuda_build(usable(gpus)) or "cpu"
    if "amd" in vendors:
        return ROCM_BUILD
    return "mps" if "apple" in vendors else "cpu"


def torch_advice(gpus: Sequence[Gpu]) -> str:
    """What makes torch use these GPUs, one command wherever one is enough; empty where there is no GPU."""
    build = torch_build(gpus)
    if build not in ("cpu", "mps"):
        return f"DT_TORCH={build} {SETUP}"
    if build == "mps":
        return SETUP
    for gpu in gpus:
        if not gpu.trouble and gpu.capability and gpu.capability < CUDA_BUILDS[-1][2]:
            return "use the CPU (--device cpu) or a newer GPU"
        if not gpu.trouble:
            return f"{NEW_DRIVER.format(CUDA_BUILDS[0][1])}; then {SETUP}"
    return gpus[0].fix if gpus else ""


def no_gpu(gpus: Sequence[Gpu], torch: TorchBuild | None) -> tuple[str, str]:
    """Why this torch can use no GPU of these, and what mends it; two empty texts where it should be able to."""
    fits = usable(gpus)
    if not gpus:
        return "this machine has no GPU that torch can use", ""
    if not fits:
        return f"{gpus[0].name}: {gpus[0].trouble}", gpus[0].fix
    gpu, build = fits[0], torch_build(gpus)
    if gpu.vendor == "apple":
        return "", ""
    if build == "cpu" and gpu.capability and gpu.capability < CUDA_BUILDS[-1][2]:
        return f"no build of torch runs on {gpu.name} (compute capability {gpu.capability})", torch_advice(gpus)
    if build == "cpu":
        return f"driver {gpu.driver} is too old for any build of torch", torch_advice(gpus)
    if torch is None or not (torch.cuda if gpu.vendor == "nvidia" else torch.hip):
        return f"{torch or 'no torch'} cannot use this machine's {gpu}", torch_advice(gpus)
    needed = min((oldest for name, oldest, *_ in CUDA_BUILDS if name[2:4] == torch.cuda.partition(".")[0]), default=0)
    if gpu.vendor == "nvidia" and _major(gpu.driver) < needed:
        return f"driver {gpu.driver} is too old for {torch}, which needs {needed}", torch_advice(gpus)
    return "", ""


def refusal(name: str, gpus: Sequence[Gpu], torch: TorchBuild | None) -> str:
    """Why `--device NAME` cannot be, as far as that is sure without torch; empty where it may be."""
    kind = name.partition(":")[0]
    gpus = [gpu for gpu in gpus if (gpu.vendor == "apple") == (kind == "mps")]
    if kind not in ("cuda", "mps") or (not gpus and torch is not None and torch.cuda + torch.hip and kind == "cuda"):
        return ""
    why, fix = no_gpu(gpus, torch)
    return why and f"--device {name}: {why}; {fix or 'use --device auto or cpu'}"


def _cuda_build(gpus: Sequence[Gpu]) -> str:
    """The newest that all of them can use; empty where none."""
    for name, driver, oldest, newest in CUDA_BUILDS:
        if all(
            _major(gpu.driver) >= driver and (not gpu.capability or oldest <= gpu.capability <= newest)
            for gpu in gpus
            if gpu.vendor == "nvidia"
        ):
            return name
    return ""


def _major(driver: str) -> int:
    """A driver that does not say its version is taken for a new one."""
    number = driver.partition(".")[0]
    return int(number) if number.isdecimal() else 9999


def _nvidia(root: Path, timeout_s: float) -> tuple[Gpu, ...]:
    kernel = re.search(r"Module\D*?(?:x86_64|aarch64)?\s+(\d+\.[\d.]+)", _text(root / "proc/driver/nvidia/version"))
    driver, on_bus = kernel.group(1) if kernel else "", _on_bus(root, "0x10de", "0x03")
    wsl = root / "usr/lib/wsl/lib/nvidia-smi"
    command = shutil.which("nvidia-smi") or (str(wsl) if wsl.exists() else None)
    said = "" if command is None else _output([command, *QUERY], timeout_s)
    gpus = [gpu for line in said.splitlines() if (gpu := _row(line)) is not None]
    if command is None and driver and _given(root):
        gpus = [Gpu("nvidia", name, driver) for name in _models(root)]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and hidden in ("", "-1"):
        gpus = [replace(gpu, trouble=f"CUDA_VISIBLE_DEVICES={hidden} hides it", fix="unset it") for gpu in gpus]
    lost = re.findall(r"Unable to determine the device handle for (?:GPU *)?([\w:.]+)", said)
    silent = lost or ([] if gpus else on_bus or ([""] if driver else []))
    trouble, fix = _why(said, root, driver) if silent else ("", "")
    names = (f"NVIDIA GPU {bus.rstrip(':.')}".strip() for bus in silent)
    return (*gpus, *(Gpu("nvidia", name, driver, trouble=trouble, fix=fix) for name in names))


def _given(root: Path) -> bool:
    return any(root.glob("dev/nvidia[0-9]*"))


def _models(root: Path) -> list[str]:
    """By the kernel module alone: containers with `compute` but not `utility` have no nvidia-smi."""
    found = (_text(path) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")))
    return [match.group(1)[:80] for text in found if (match := re.search(r"Model:\s*(\S.*)", text))]


def _why(said: str, root: Path, driver: str) -> tuple[str, str]:
    """Why a GPU that is on the bus does not answer."""
    contained = (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
    known = next(((trouble, fix) for mark, trouble, fix in _SAID if mark in said.lower()), None)
    if contained and not _given(root) and (known is None or known[0] != FELL_OFF):
        give = "start it with --gpus all (NVIDIA's container toolkit must be on the host)"
        return "this container was not given it", give
    if known is not None:
        return known
    if said.startswith("no answer"):
        return f"nvidia-smi gives {said}", POWER_CYCLE
    if not driver:
        return "no NVIDIA driver runs here", NEW_DRIVER.format(CUDA_BUILDS[0][1])
    return f"nvidia-smi says {' '.join(said.split())[:120]!r}", NEW_DRIVER.format(CUDA_BUILDS[0][1])


def _row(line: str) -> Gpu | None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != 4 or not re.fullmatch(r"\d+\.[\d.]+", cells[1]):
        return None
    memory, capability = cells[2], cells[3]
    return Gpu(
        "nvidia",
        "".join(letter for letter in cells[0] if letter.isprintable())[:80],
        cells[1],
        int(memory) * 2**20 if memory.isdecimal() else 0,
        float(capability) if re.fullmatch(r"\d+\.\d+", capability) else 0.0,
    )


def _output(command: list[str], timeout_s: float) -> str:
    """What a command says on both streams. One that hangs in the driver cannot even be killed: it is not waited for."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        )
    except OSError as error:
        return str(error)
    try:
        return process.communicate(timeout=timeout_s)[0][:10_000]
    except subprocess.TimeoutExpired:
        process.kill()
        return f"no answer in {timeout_s:.0f} s"


def _on_bus(root: Path, vendor: str, *classes: str) -> list[str]:
    """Addresses of the PCI devices of this vendor and of these classes."""
    devices = sorted((root / "sys/bus/pci/devices").glob("*"))
    return [d.name for d in devices if _text(d / "vendor") == vendor and _text(d / "class").startswith(classes)]


def _amd(root: Path) -> tuple[Gpu, ...]:
    """What the kernel's compute driver knows, without graphics inside of processors: torch has no code for most."""
    gpus = []
    for node in sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("*")):
        version = re.search(r"gfx_target_version (\d+)", _text(node / "properties"))
        number = int(version.group(1)) if version else 0
        name = f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"
        if name in ROCM_GPUS.split():
            banks = (_text(bank) for bank in node.glob("mem_banks/*/properties"))
            sizes = (re.search(r"size_in_bytes (\d+)", bank) for bank in banks)
            memory = sum(int(size.group(1)) for size in sizes if size)
            gpus.append(Gpu("amd", f"AMD {name}", "", memory, 0.0, *_amd_trouble(root)))
    if not gpus and (bus := _on_bus(root, "0x1002", "0x12")):
        fix = "install AMD's driver (amdgpu-install --usecase=dkms) and reboot"
        return tuple(Gpu("amd", f"AMD GPU {name}", trouble="no amdgpu driver runs here", fix=fix) for name in bus)
    return tuple(gpus)


def _amd_trouble(root: Path) -> tuple[str, str]:
    kfd = root / "dev/kfd"
    if not kfd.exists():
        return "there is no /dev/kfd", "start the container with --device /dev/kfd --device /dev/dri"
    if not os.access(kfd, os.R_OK | os.W_OK):
        return "this user may not use /dev/kfd", "sudo usermod -aG render,video $USER, and log in again"
    return "", ""


def _apple() -> tuple[Gpu, ...]:
    if platform.machine() != "arm64":
        return ()
    said = _output(["sysctl", "-n", "machdep.cpu.brand_string", "hw.memsize"], 1.0).split("\n")
    memory = int(said[1]) if len(said) > 1 and said[1].isdecimal() else 0
    return (Gpu("apple", said[0][:80] or "Apple silicon", "", memory),)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


if __name__ == "__main__":  # for scripts/setup.sh: the build of torch; the GPUs; why none is used, if one is there
    found = seen_gpus()
    build = torch_build(found)
    why = "; ".join(no_gpu(found, None)) if found and build == "cpu" else ""
    print(build, "; ".join(map(str, found)), why, sep="\n")
