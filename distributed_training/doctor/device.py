"""The device on which a node would work, asked of torch itself; where there is a GPU in a process of its own: a driver
that hangs can keep no other check from its answer, and a crash of it ends nothing else.

    python -m distributed_training.doctor.device --device auto      # what it prints is for the doctor
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distributed_training.devices import Gpu
from distributed_training.doctor.base import in_thread
from distributed_training.errors import ConfigError, LocalFault, said
from distributed_training.settings.config import NodeConfig


@dataclass(frozen=True, slots=True)
class Device:
    name: str  # cpu, cuda, cuda:1, mps
    torch: str  # version
    memory_bytes: int  # of the device's own; 0: this machine's
    flop_per_s: float | None  # of its matrix products; None: not measured, for a node is at work on it


async def device_of(config: NodeConfig, gpus: Sequence[Gpu], *, measure: bool) -> Device:
    """Raises as `asked_device`."""
    if gpus or config.device not in ("auto", "cpu"):
        return await asked_device(config, measure=measure)
    return await in_thread(lambda: look("cpu", config.threads or 0, measure))


async def asked_device(config: NodeConfig, *, measure: bool) -> Device:
    """Raises ConfigError for a device that this torch does not find, LocalFault for one that does not work, and
    TimeoutError. The process is gone afterwards."""
    words = [sys.executable, "-m", "distributed_training.doctor.device", config.device, str(config.threads or 0)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, *(["measure"] if measure else []), stdout=pipe, stderr=pipe)
    try:
        output, trouble = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    lines = output.decode(errors="replace").splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = trouble.decode(errors="replace").strip().splitlines()[-1:]
        raise LocalFault(f"torch does not work here: {said(Exception(*last))[:300]}") from None
    if "wrong" in answer:
        raise ConfigError(answer["wrong"])
    if "fault" in answer:
        raise LocalFault(answer["fault"])
    return Device(**answer)


def look(name: str, threads: int, measure: bool) -> Device:
    """Raises ConfigError, and whatever torch raises."""
    import torch

    from distributed_training.training.device import chosen_device
    from distributed_training.training.speed import flop_per_s

    if threads:
        torch.set_num_threads(threads)
    device, memory = chosen_device(name), 0
    total = (torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().item()
    if total != 512.0:
        raise LocalFault(f"{device} computes wrongly: a sum that is 512 came out as {total}")
    if device.startswith("cuda"):
        memory = torch.cuda.get_device_properties(device).total_memory
    return Device(device, str(torch.__version__), memory, flop_per_s(device) if measure else None)


def main() -> int:
    name, threads, *rest = sys.argv[1:]
    try:
        answer = asdict(look(name, int(threads), bool(rest)))
    except ConfigError as error:
        answer = {"wrong": said(error)}
    except Exception as error:
        answer = {"fault": f"{type(error).__name__}: {said(error)[:300]}"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
