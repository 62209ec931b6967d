"""What the arithmetic of an all-reduce costs where nothing else is done: each thing once, on chunks in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from distributed_training.averaging.codecs.base import Codec, Layout
from distributed_training.averaging.codecs.known import output_of, uplink_of
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.types import Carry
from distributed_training.training.outer import RunState, outer_step

CHUNKS, TURNS = 8, 5


def floor_ns(manifest: RunManifest, peers: int) -> dict[str, float]:
    """CPU nanoseconds for each parameter of the vector and node, by step; one core."""
    size = manifest.average.chunk_coords
    layout = Layout(size, size, manifest.average.block_coords)
    up, down = uplink_of(manifest.average), output_of(manifest.average)
    values = np.random.default_rng(0).standard_normal(size, np.float32) * np.float32(1e-3)
    sent, made = _codec(up, layout, values), _codec(down, layout, values)
    share = 1.0 / peers
    codec = {
        "encode": sent["encode"] + share * made["encode"],
        "check": sent["check"] + made["check"],
        "decode": sent["decode"] + made["decode"],
    }
    rest = {"add": _add(values), "outer and root": _outer(values, layout, manifest), "digests": sent["digest"] * 3}
    return {**codec, "codec": sum(codec.values()), **rest, "all": sum(codec.values()) + sum(rest.values())}


def _codec(codec: Codec, layout: Layout, values: np.ndarray) -> dict[str, float]:
    encoder, memory = codec.encoder(layout), np.empty_like(values)
    chunk = encoder.encode(values)
    data = bytes(chunk.data)
    return {
        "encode": _ns(lambda: encoder.encode(values).norm(), len(values)),
        "check": _ns(lambda: codec.parse(data, layout, 0).norm(), len(values)),
        "decode": _ns(lambda: chunk.decode(memory), len(values)),
        "digest": _ns(lambda: digest(data), len(values)),
    }


def _add(values: np.ndarray) -> float:
    total, part = np.zeros_like(values), values.copy()

    def add() -> None:
        np.multiply(part, np.float32(0.5), out=part)
        np.add(total, part, out=total)

    return _ns(add, len(values))


def _outer(values: np.ndarray, layout: Layout, manifest: RunManifest) -> float:
    state = RunState(values.copy(), values.copy(), 0, Carry(1.0, ()))
    return _ns(lambda: outer_step(state, [values], state.carry, manifest.outer), len(values))


def _ns(work: Callable[[], object], size: int) -> float:
    work()
    found = []
    for _ in range(TURNS):
        began = time.thread_time()
        for _ in range(CHUNKS):
            work()
        found.append((time.thread_time() - began) / CHUNKS / size * 1e9)
    return min(found)
