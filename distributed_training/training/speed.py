"""How fast a device multiplies matrices: an upper bound of what it can do of a run, measured in a moment."""

from __future__ import annotations

import time

import torch

MEASURE_S = 0.2


def flop_per_s(device: str) -> float:
    """Of products in the format in which the inner loop computes there: bfloat16 on CUDA, float32 elsewhere."""
    cuda = device.startswith("cuda")
    size, dtype = (4096, torch.bfloat16) if cuda else (512, torch.float32)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    (matrix @ matrix).sum().item()  # the first one loads kernels
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < MEASURE_S:
        (matrix @ matrix).sum().item()  # waits for the device
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - began)
