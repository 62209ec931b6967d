"""How much memory a node takes, by role and phase: from the manifest and the shapes of its parameters, before any of it
is taken. `scripts/bench.py memory` measures the same phases.

Legend: d trained parameters; one "vector" is float32 [d]; an encoded vector is about a quarter of that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import output_bytes, uplink_bytes
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.training.optimizers import KINDS

Shapes = Sequence[tuple[str, tuple[int, ...]]]

GIB = 1 << 30
LIBRARIES_BYTES = GIB  # of host memory: Python with torch, transformers and the network, whatever the model
SCRATCH_BYTES = 96 << 20  # chunks at a time, frames, pieces
SENDERS = 16  # expected in a round, where nothing better is known
CARD_BYTES, CUDA_BYTES = 24 * GIB, GIB // 2
GPU_LOGITS_SHARE = 16  # a part of a GPU's memory for logits, their loss and its gradient, at most (training/losses.py)
CPU_LOGITS_BYTES = 512 << 20
_IN_BLOCK = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes. `host`: by phase, of the run's own numbers; `device`: by part, of what trains; `sequence`: for each
    sequence that goes through the model at a time."""

    host: Mapping[str, int]
    device: Mapping[str, int]
    sequence: int

    def device_bytes(self, micro_batch: int = 1) -> int:
        return sum(self.device.values()) + micro_batch * self.sequence

    def host_bytes(self, *, trains: bool, micro_batch: int = 1) -> int:
        """The most of all phases, with libraries. trains: the model is in this memory too, there is no GPU."""
        most = LIBRARIES_BYTES + max(self.host.values())
        return most + (self.device_bytes(micro_batch) if trains else 0)


def memory_plan(
    manifest: RunManifest, shapes: Shapes, role: Role, *, senders: int = SENDERS, card_bytes: int | None = CARD_BYTES
) -> MemoryPlan:
    """shapes: names and shapes of all trained parameters. card_bytes: of the GPU that trains; None: this machine's
    processor does, in float32. Whatever passes for a while only (frames, single chunks) is in SCRATCH_BYTES."""
    return MemoryPlan(
        _host(manifest, sum(math.prod(shape) for _, shape in shapes), role, senders),
        _device(manifest, shapes, card_bytes),
        _activations(manifest, shapes, 4 if card_bytes is None else 2),
    )


def _host(manifest: RunManifest, num_coords: int, role: Role, senders: int) -> dict[str, int]:
    """The public state, parameters and momentum, always; the rest comes and goes."""
    layout, vector = layout_of(manifest, num_coords), 4 * num_coords
    sent, wire = uplink_bytes(manifest, layout), output_bytes(manifest, layout)
    slices = max(1, min(senders, manifest.average.max_reducers))
    state = 2 * vector + SCRATCH_BYTES
    received = -(-sent * senders // slices)  # our slice from everybody
    gathered = wire + 2 * -(-wire // slices)  # every slice, and one as it came
    if role is not Role.MINER:
        looks = role is Role.VALIDATOR
        # The parameters that the audited round started from; with overlap those of the round before it too.
        kept = (2 if manifest.timing.overlap else 1) * vector if looks else 0
        phases = {"gather": state + kept + gathered, "apply": state + kept + wire, "snapshot": state + kept + wire}
        if looks and manifest.timing.overlap:  # where a replay begins, from a vector that is here beside the next one
            kept += vector + 2 * sent
        return phases | ({"compare": state + kept + vector + wire} if looks else {})
    if manifest.timing.overlap:  # its own end, until it is shifted
        state += vector
    return {
        "train": state,
        "encode": state + vector + sent,  # the pseudo-gradient stands where the trained parameters stood
        "reduce": state + sent + received + 2 * -(-wire // slices),
        "gather": state + sent + gathered,
        "apply": state + sent + wire,
        "snapshot": state + sent + wire,
    }


def _device(manifest: RunManifest, shapes: Shapes, card_bytes: int | None) -> dict[str, int]:
    matrices = sum(math.prod(shape) for name, shape in shapes if _is_matrix(name, shape))
    rest = sum(math.prod(shape) for _, shape in shapes) - matrices
    kind = KINDS[manifest.inner.optimizer]
    rows = max((shape[0] for name, shape in shapes if len(shape) == 2 and not _IN_BLOCK.search(name)), default=0)
    logits = 4 * 4 * manifest.data.sequence_length * rows  # in float32: logits, loss, and their gradients
    return {
        "parameters": 4 * (matrices + rest),
        "gradient": 4 * (matrices + rest),
        f"moments of {kind.name}": int(4 * (kind.matrix_moments * matrices + kind.moments * rest)),
        **({} if card_bytes is None else {"a bf16 copy": 2 * (matrices + rest), "CUDA itself": CUDA_BYTES}),
        "logits": min(logits, CPU_LOGITS_BYTES if card_bytes is None else card_bytes // GPU_LOGITS_SHARE),
    }


def _activations(manifest: RunManifest, shapes: Shapes, number_bytes: int) -> int:
    """What enters and leaves each matrix of the blocks is kept for the backward pass: an estimate, close to what a
    GPT-2 takes. Attention keeps no table of scores."""
    width = sum(sum(shape[-2:]) for name, shape in shapes if _is_matrix(name, shape))
    return manifest.data.sequence_length * width * number_bytes


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and _IN_BLOCK.search(name) is not None


def memory_lines(manifest: RunManifest, shapes: Shapes) -> tuple[str, str]:
    """What a GPU holds; what RAM does."""
    gpu, processor = (memory_plan(manifest, shapes, Role.MINER, card_bytes=card) for card in (CARD_BYTES, None))
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in gpu.device.items())
    miner, alone = gpu.host_bytes(trains=False), processor.host_bytes(trains=True)
    validator = memory_plan(manifest, shapes, Role.VALIDATOR).host_bytes(trains=False)
    return (
        f"a GPU needs {_gib(gpu.device_bytes())} GiB with one sequence at a time: {parts}; each sequence takes an "
        f"estimated {_gib(gpu.sequence)}",
        f"beside a GPU a miner takes {_gib(miner)} GiB of RAM and a validator up to {_gib(validator)}; a miner that "
        f"trains without one {_gib(alone)} GiB",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size >= GIB // 10 else f"{size / GIB:.2g}"
