"""The device that computes: which one is meant, what it is called, and how it says that it failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from distributed_training.devices import no_gpu, refusal, seen_gpus, torch_here
from distributed_training.errors import ConfigError, DeviceLost, OutOfMemory, said
from distributed_training.memory import memory_bytes

Precision = Literal["auto", "fp32", "bf16"]
_FAILED = ("cuda error", "hip error", "cublas_status", "cudnn_status", "device-side assert")
_AGAIN = (
    "the GPU still answers, so a new start of this node may use it; if it happens again look at its driver, its heat "
    "and its memory (nvidia-smi -q -d ECC,TEMPERATURE)"
)


def chosen_device(name: str, *, mps: bool = False) -> str:
    """What `--device NAME` means here. Raises ConfigError for one that cannot be used here, DeviceLost for a GPU that
    fails at its first task, OutOfMemory for one that others fill.

    `auto` is CUDA's where there is one, else the CPU; Apple's GPU only with `mps`. A node's `auto` is without: whether
    replays of what it computes stay within the tolerances of audits was never measured, and a miner is paid by that.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps and torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda":
        if not cuda:
            raise ConfigError(refusal(name, seen_gpus(), torch_here()) or _unclear(name))
        if index.isdigit() and int(index) >= (count := torch.cuda.device_count()):
            raise ConfigError(f"--device {name}: torch finds {count} here, cuda:0 to cuda:{count - 1}")
    try:
        with device_faults(kind):
            torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if out_of_memory(error):
            raise no_room(name, error) from None
        raise ConfigError(
            f"--device {name}: it cannot be used here ({said(error)[:200]}); give auto, cpu, cuda or mps"
        ) from None
    return name


def rank_device(name: str, rank: int) -> str:
    """The device of one of several processes of a node, `name` as of `--device`. Raises as chosen_device does, and
    ConfigError for a name that all of them would mean."""
    if name.startswith(("cuda:", "mps")):
        raise ConfigError(
            f"--device {name}: each process has a GPU of its own; give auto or cuda, and say which with "
            "CUDA_VISIBLE_DEVICES"
        )
    return chosen_device(f"cuda:{rank}" if name != "cpu" and chosen_device(name) == "cuda" else "cpu")


def chosen_precision(device: str, asked: Precision = "auto") -> Literal["fp32", "bf16"]:
    """What `--precision` means on a device: `auto` is bf16 on CUDA from Ampere on, else fp32. Raises ConfigError for
    bf16 where there is none. float16 is not offered: its gradients need a scale that honest nodes would not share."""
    kind = device.partition(":")[0]
    able = _has_bf16(kind)
    if asked == "auto":
        return "bf16" if able and kind == "cuda" else "fp32"
    if asked == "bf16" and not able:
        raise ConfigError(
            f"--precision bf16: {device} does not compute with bfloat16 (NVIDIA's GPUs do from Ampere on); give fp32, "
            "or leave it to auto"
        )
    return asked


def other_precision(kind: str, used: str) -> Literal["fp32", "bf16"]:
    """The one that a device of this kind is not using; fp32 where it has no other."""
    return "bf16" if used == "fp32" and _has_bf16(kind) else "fp32"


def _has_bf16(kind: str) -> bool:
    return kind == "cpu" or (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))


def free_bytes(device: str) -> int:
    """Of the device's memory, what nothing uses now."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else memory_bytes()[1]


def device_text(device: str) -> str:
    """In one line: what computes here, with how much memory, by which driver and which torch."""
    build = str(torch_here() or f"torch {torch.__version__}")
    if not device.startswith("cuda"):
        what = f"CPU, {torch.get_num_threads()} threads" if device == "cpu" else device
        return f"{what}, {build}"
    properties = torch.cuda.get_device_properties(device)
    driver = next((gpu.driver for gpu in seen_gpus() if gpu.driver), "")
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    return f"{device}, {properties.name} ({memory}{driver and f', driver {driver}'}), {build}"


def surprise(asked: str, device: str) -> str:
    """Why `--device auto` became the CPU on a machine with a GPU, and what changes that; else empty."""
    gpus = seen_gpus() if (asked, device) == ("auto", "cpu") else ()
    if not gpus:
        return ""
    if gpus[0].vendor == "apple":
        return f"this node computes on the CPU; --device mps takes {gpus[0]}, which no audit was measured with yet"
    why, fix = no_gpu(gpus, torch_here())
    return f"THIS NODE COMPUTES ON THE CPU: {why or _unclear('cuda')}. To use the GPU: {fix or 'bash scripts/setup.sh'}"


def out_of_memory(error: BaseException) -> bool:
    """Python, the CPU allocator and the accelerators each say it in their own way."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(mark in said for mark in ("out of memory", "can't allocate memory", "status_alloc_failed"))
    )


def no_room(device: str, error: BaseException) -> OutOfMemory:
    """Of a device that others fill."""
    return OutOfMemory(
        f"{device} has too little free memory (nvidia-smi shows who else uses it): {said(error)[:200]}", retry=False
    )


@contextmanager
def device_faults(kind: str) -> Iterator[None]:
    """A device of this kind (`cuda`, `cpu`...) that fails becomes DeviceLost; too little memory goes through."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().split("\n")[0]
        failed = isinstance(error, torch.AcceleratorError) or any(mark in text.lower() for mark in _FAILED)
        if kind == "cpu" or out_of_memory(error) or not failed:
            raise
        broken = next((gpu for gpu in seen_gpus() if gpu.trouble), None)
        why = _AGAIN if broken is None else f"{broken.name}: {broken.trouble}; {broken.fix}"
        raise DeviceLost(f"the GPU failed ({text}): {why}") from error


def _unclear(name: str) -> str:
    return (
        f"--device {name}: torch {torch.__version__} finds no GPU; "
        "what is in its way, says: python -c 'import torch; torch.cuda.init()'"
    )
