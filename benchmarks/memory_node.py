"""One node of the memory benchmark, in a process of its own: everything of a round but training, chain and network.

    python -m benchmarks.memory_node prepare   FOLDER    what the others send, into the folder
    python -m benchmarks.memory_node miner     FOLDER    rounds of a miner that reduces slice 0
    python -m benchmarks.memory_node validator FOLDER    rounds of a validator, with one whole vector compared

FOLDER/manifest.json is the run's, FOLDER/group.json says how many parameters, senders and rounds. A node prints one
JSON line for each phase of its last round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from distributed_training.averaging.codecs.base import Chunk
from distributed_training.averaging.codecs.int8 import INT8, encode_chunk
from distributed_training.averaging.combine import SliceOutput, check_output, combine, reduce_slice
from distributed_training.averaging.contribution import Contribution, encode_contribution
from distributed_training.averaging.gather import cut_slice
from distributed_training.averaging.plan import RoundPlan, layout_of
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.protocol.manifest import load_manifest
from distributed_training.protocol.rules.fidelity import judge_vector
from distributed_training.protocol.rules.membership import Counted
from distributed_training.protocol.rules.slices import slices
from distributed_training.protocol.types import BlockRef, Candidate, Carry, Roster, WorkRecord
from distributed_training.protocol.wire import decode_output, decode_work, encode_output, encode_work
from distributed_training.training.outer import RunState, Vector, outer_step

MOVED = np.float32(1e-3)  # by which a round moves a parameter, more or less
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Group:
    """The run and its round: every sender is a candidate, and reduces."""

    def __init__(self, folder: Path) -> None:
        asked = json.loads((folder / "group.json").read_text())
        self.folder, self.rounds, count = folder, asked["rounds"], asked["senders"]
        self.manifest = load_manifest(folder / "manifest.json")
        self.keys = [number.to_bytes(32, "big") for number in range(1, count + 1)]
        people = tuple(Candidate(n, str(n), k, 1, k, None, k, reduces=True) for n, k in enumerate(self.keys))
        layout, carry = layout_of(self.manifest, asked["params"]), Carry(self.manifest.average.initial_tau, ())
        self.plan = RoundPlan(
            self.manifest.round(0), Roster(BlockRef(0, bytes(32)), ()), bytes(32), bytes(32), carry.tau, carry, layout,
            INT8, INT8,
            (), people, slices([(c, 1) for c in people], layout.num_chunks, self.manifest.average),
        )  # fmt: skip

    def prepare(self) -> None:
        """Chunk by chunk: what each sender sends of slice 0, every reduced slice, and the work records."""
        layout, norms = self.plan.layout, {key: list[float]() for key in self.keys}
        for spec in self.plan.slices:
            received: dict[bytes, dict[int, Chunk]] = {key: {} for key in self.keys}
            for chunk in range(spec.first_chunk, spec.last_chunk):
                for number, key in enumerate(self.keys):
                    received[key][chunk] = encode_chunk(drawn(layout.coords(chunk), number), layout)
                    norms[key].append(received[key][chunk].norm())
            works = {key: self._work(norms[key]) for key in self.keys}
            made = reduce_slice(self.plan, spec, received, works, self.manifest)
            (self.folder / f"slice-{spec.index}").write_bytes(b"".join(chunk.data for chunk in made.chunks))
            (self.folder / f"record-{spec.index}").write_bytes(encode_output(made.record))
            if spec.index == 0:
                for key in self.keys:
                    (self.folder / f"sent-{key.hex()}").write_bytes(
                        b"".join(chunk.data for chunk in received[key].values())
                    )
        for key in self.keys:
            (self.folder / f"work-{key.hex()}").write_bytes(encode_work(self._work(norms[key])))

    def _work(self, norms: list[float]) -> WorkRecord:
        zero, tokens = bytes(32), 100 * self.manifest.tokens_per_step
        return WorkRecord(
            self.manifest.digest, 0, 0, zero, zero, 100, tokens, zero, zero, zero, 1, zero, zero, zero, 0, tuple(norms)
        )

    def works(self) -> dict[bytes, WorkRecord]:
        return {key: decode_work((self.folder / f"work-{key.hex()}").read_bytes()) for key in self.keys}


def drawn(coords: tuple[int, int], seed: int) -> Vector:
    values = np.random.default_rng((seed, coords[0])).standard_normal(coords[1] - coords[0], np.float32)
    return np.multiply(values, MOVED, out=values)


class Node:
    """Holds what a node holds from round to round; each phase is measured."""

    def __init__(self, group: Group, role: str) -> None:
        self.group, self.plan, self.role = group, group.plan, role
        self.store = RoundStore(group.folder / role)
        size = self.plan.layout.num_coords
        self.before_mb = resident_mb("VmRSS")
        self.state = RunState(self._vector(size), self._vector(size), 0, self.plan.carry)
        self.own: Contribution | None = None
        self.spare = np.empty_like(self.state.params) if role == "validator" else None
        self.works = group.works()
        self.rows: list[dict[str, object]] = []

    def round(self, index: int) -> None:
        self.rows.clear()
        size = self.plan.layout.num_coords
        if self.role == "miner":
            end, self.own = self._vector(size), None  # it is put away
            with self._phase("encode"):
                delta = np.subtract(self.state.params, end, out=end)
                self.own = encode_contribution(delta, self.plan.layout, INT8)
                self.store.put_own(index, self.own.chunks, b"log")
            del end, delta
            with self._phase("reduce"):
                self._reduce(index)
        with self._phase("gather"):
            outputs = {spec.index: self._gathered(index, spec.index) for spec in self.plan.slices}
        former = self.state.params
        with self._phase("apply"):
            self._apply(outputs)
        with self._phase("snapshot"):
            self.store.put_state(index + 1, self.state)
        del outputs
        if self.role == "validator":
            end = self._vector(size)
            with self._phase("compare"):
                self._compare(former, end)
            self.spare = former

    def _reduce(self, index: int) -> None:
        plan, spec = self.plan, self.plan.slices[0]
        received: dict[bytes, dict[int, Chunk]] = {}
        for key in self.group.keys:
            data = cut_slice(plan.layout, INT8, spec, (self.group.folder / f"sent-{key.hex()}").read_bytes())
            received[key] = {c: INT8.parse(part, plan.layout, c) for c, part in enumerate(data)}
            assert [chunk.norm() for chunk in received[key].values()] == list(self.works[key].chunk_norms[: len(data)])
        made = reduce_slice(plan, spec, received, self.works, self.group.manifest)
        stored = StoredOutput(b"record", tuple(chunk.data for chunk in made.chunks))
        self.store.put_output(index, spec.reducer, stored)

    def _gathered(self, index: int, slice_index: int) -> SliceOutput:
        plan, spec, manifest = self.plan, self.plan.slices[slice_index], self.group.manifest
        record = decode_output((self.group.folder / f"record-{slice_index}").read_bytes())
        data = (self.group.folder / f"slice-{slice_index}").read_bytes()
        made = check_output(record, cut_slice(plan.layout, INT8, spec, data), self.works, plan, manifest, spec)
        self.store.put_output(index, spec.reducer, StoredOutput(b"record", (data,)))
        return made

    def _apply(self, outputs: dict[int, SliceOutput]) -> None:
        manifest = self.group.manifest
        made = combine(self.plan, Counted(tuple(outputs), "applied", {}), outputs, manifest)
        assert all(made.chunks), "the gate let something out"
        self.state, _ = outer_step(self.state, made.averages(self.plan.layout), made.carry, manifest.outer, self.spare)

    def _compare(self, former: Vector, end: Vector) -> None:
        """A whole vector against what its miner committed, as an audit of full depth does."""
        delta, layout = np.subtract(former, end, out=end), self.plan.layout
        probe = [
            part
            for spec in self.plan.slices
            for part in cut_slice(layout, INT8, spec, (self.group.folder / f"slice-{spec.index}").read_bytes())
        ]
        parts = (
            (ours := delta[slice(*layout.coords(chunk))], INT8.parse(part, layout, chunk).decode(), ours)
            for chunk, part in enumerate(probe)
        )
        judge_vector(parts, self.group.manifest.audit, depth=1)

    def _vector(self, size: int) -> Vector:
        made, step = np.empty(size, np.float32), self.plan.layout.chunk_coords
        for start in range(0, size, step):
            made[start : start + step] = drawn((start, min(start + step, size)), 99)
        return made

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        _RESET.write_text("5")  # the highest mark is the present again
        began = time.process_time()
        yield
        took = time.process_time() - began
        self.rows.append({"phase": name, "cpu_s": took, "peak_mb": resident_mb("VmHWM") - self.before_mb})


def resident_mb(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def main(what: str, folder: Path) -> None:
    group = Group(folder)
    if what == "prepare":
        group.prepare()
        return
    node = Node(group, what)
    for index in range(group.rounds):
        node.round(index)
    for row in node.rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
