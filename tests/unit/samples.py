"""Records, rosters and rounds with known contents, shared by the tests of the pure protocol code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tiny_training import GPT2, manifest, stated

from distributed_training.averaging.codecs.base import Chunk, Layout, Vector
from distributed_training.averaging.codecs.int8 import INT8, parse_chunk
from distributed_training.averaging.combine import Combined, SliceOutput, reduce_slice
from distributed_training.averaging.contribution import Contribution, encode_contribution
from distributed_training.averaging.plan import RoundPlan, make_plan
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import (
    NO_ROOT,
    Accusation,
    BlockRef,
    Carry,
    Commitment,
    Left,
    Neuron,
    OutputRecord,
    Role,
    Roster,
    StepRecord,
    WorkRecord,
)
from distributed_training.protocol.wire import encode_work, record_hash

RUN: RunManifest = manifest(GPT2, section=stated)
ROUND = RUN.round(3)
BEACON = bytes(range(32))


def key(number: int, kind: str = "hotkey") -> bytes:
    """A 32-byte stand-in for a public key or digest, different for each number and kind."""
    return bytes([number, len(kind)]) + kind.encode().ljust(30, b".")


def commitment(number: int = 1, role: Role = Role.MINER, **more: Any) -> Commitment:
    fields: dict[str, Any] = {
        "role": role, "reduces": True, "peer_key": key(number, "peer"), "run": RUN.tag,
        "first_round": 3, "first": key(number, "first"), "second_round": 3, "second": key(number, "second"),
    }  # fmt: skip
    return Commitment(**(fields | more))


def neuron(number: int, role: Role = Role.MINER, **more: Any) -> Neuron:
    fields: dict[str, Any] = {
        "uid": number, "hotkey": f"5hot{number}", "public_key": key(number), "stake": 0.0,
        "may_validate": role is Role.VALIDATOR, "registered_block": 1, "address": ("127.0.0.1", 9000 + number),
        "commitment": commitment(number, role), "commitment_block": ROUND.start_block + 1, "incentive": 0.0,
        "dividends": 0.0, "last_update": 0, "coldkey": key(number, "coldkey"),
    }  # fmt: skip
    return Neuron(**(fields | more))


def roster(*neurons: Neuron, block: int = 0) -> Roster:
    return Roster(BlockRef(block, bytes(32)), neurons)


def failed(*who: int) -> tuple[bytes, ...]:
    return tuple(key(i) for i in who)


STEPS = tuple(
    StepRecord(step=i, losses=(2.5 + i, -0.125), grad_norm=0.75 * i, sketch=((1.0, -2.0, 0.5), (0.0, 65504.0, -0.25)))
    for i in range(2)
)
WORK = WorkRecord(
    manifest=key(1, "manifest"), round=7, uid=513, public_key=key(2), state_root=key(3, "state"), steps=5,
    tokens=10240, pages_root=key(4, "pages"), log_root=key(5, "log"), wire_root=key(6, "wire"), codec=1,
    feedback_start=key(7, "start"), feedback_end=key(8, "end"), began_at=key(9, "began"), shift_step=3,
    chunk_norms=(0.0, 1.5, 0.25),
)  # fmt: skip
OUTPUT = OutputRecord(
    manifest=key(1, "manifest"), round=7, slice=2, public_key=key(2), output_root=key(3, "output"),
    backup=key(7, "backup"), senders=tuple(key(i, "work") for i in range(9)),
    included=(tuple(i % 2 == 0 for i in range(9)), tuple(i == 8 for i in range(9))),
)  # fmt: skip
ACCUSATION = Accusation(key(1, "manifest"), 7, key(2), key(3), 11, "gradient")
CARRY = Carry(12.5, (failed(3), failed(), failed(1, 2)))
LEFT = replace(CARRY, left=(Left(key(1), key(1, "left"), 0), Left(key(4), key(2, "left"), 7)))


class Senders:
    """A round with real contributions: plan, work records and encoded chunks of `count` miners."""

    def __init__(self, deltas: list[Vector], run: RunManifest = RUN, carry: Carry | None = None) -> None:
        self.run, self.deltas = run, deltas
        layout = Layout(len(deltas[0]), run.average.chunk_coords, run.average.block_coords)
        self.made: dict[bytes, Contribution] = {}
        self.works: dict[bytes, WorkRecord] = {}
        neurons = []
        for i, delta in enumerate(deltas):
            contribution = encode_contribution(delta, layout, INT8)
            work = self.work(i, contribution)
            self.made[key(i)], self.works[key(i)] = contribution, work
            said = commitment(i, first=record_hash(encode_work(work)))
            neurons.append(neuron(i, commitment=said))
        self.plan: RoundPlan = make_plan(
            run, ROUND, roster=roster(*neurons), at_commit=roster(*neurons), beacon=BEACON, state_root=key(0, "state"),
            carry=carry or Carry(run.average.initial_tau, ()), num_coords=len(deltas[0]),
        )  # fmt: skip

    def work(self, i: int, made: Contribution) -> WorkRecord:
        steps = 2 + i
        return WorkRecord(
            manifest=self.run.digest, round=ROUND.index, uid=i, public_key=key(i), state_root=key(0, "state"),
            steps=steps, tokens=steps * self.run.tokens_per_step, pages_root=key(i, "pages"), log_root=key(i, "log"),
            wire_root=made.wire_root, codec=INT8.id,
            feedback_start=NO_ROOT, feedback_end=NO_ROOT, began_at=NO_ROOT, shift_step=0, chunk_norms=made.norms,
        )  # fmt: skip

    def received(self) -> dict[bytes, dict[int, Chunk]]:
        layout = self.plan.layout
        return {k: {c: parse_chunk(d, layout, c) for c, d in enumerate(m.chunks)} for k, m in self.made.items()}


def deltas(seed: int, count: int, size: int, scale: float = 0.01) -> list[Vector]:
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(size)).astype(np.float32) for _ in range(count)]


def small_run(**average: Any) -> RunManifest:
    """The tiny manifest with chunks of 64 coordinates in blocks of 16, and other averaging fields as given."""
    section = RUN.average.model_copy(update={"chunk_coords": 64, "block_coords": 16} | average)
    return RUN.model_copy(update={"average": section})


def with_neuron(base: Roster, number: int, **changes: Any) -> Roster:
    """`base` with fields of the neuron of that number replaced."""
    return replace(
        base, neurons=tuple(replace(n, **changes) if n.public_key == key(number) else n for n in base.neurons)
    )


SMALL = small_run()
D = 64 * 6 + 20  # six whole chunks and a short one; blocks of 16, the last of 4


def group(count: int = 4, seed: int = 1, run: Any = SMALL, **more: Any) -> Senders:
    return Senders(deltas(seed, count, D), run, **more)


def reduced(g: Senders, received: dict[bytes, dict[int, Chunk]] | None = None) -> dict[int, SliceOutput]:
    got = g.received() if received is None else received
    return {s.index: reduce_slice(g.plan, s, got, g.works, g.run) for s in g.plan.slices}


def whole(made: Combined, plan: RoundPlan) -> Vector:
    """The average, all at once."""
    return np.concatenate([values.copy() for values in made.averages(plan.layout)])
