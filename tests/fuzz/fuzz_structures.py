"""Targets whose inputs are built, not cut: JSON with one foreign value, state headers, checkpoints, logs, rosters."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

import fuzz_world as world
import numpy as np
import samples
from fuzz_decoders import FIELD_OBJECTS, LOG, RUN_JSON, check_manifest
from fuzz_engine import ACCEPTED, Target
from fuzz_pack import cut_frames, cut_object, pack_frames, pack_object
from fuzz_rpc import HOSTILE, KNOWN, cut, pack
from fuzz_world import BINDING, MANIFEST, PLAN, ROSTER, Node, Script

from distributed_training.chain.fields import encode_field, parse_fields
from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.checkpoints.description import STATE_FILE, Description, FileFacts
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.errors import ConfigError, LocalFault, WireError
from distributed_training.protocol.commitments import decode_commitment, encode_commitment
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules.fidelity import failing, judge
from distributed_training.protocol.rules.slices import earned, reducers, slices
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Role
from distributed_training.protocol.wire import decode_log, encode_carry, encode_log, encode_request
from distributed_training.snapshots.header import METHOD, RANGE, ROUND, Shape, decode_header, encode_header, header_of
from distributed_training.snapshots.serving import SnapshotService
from distributed_training.snapshots.statefile import decode_state
from distributed_training.snapshots.states import StateFiles
from distributed_training.training.outer import RunState, state_root

# --- documents with one foreign value --------------------------------------------------------------


def _places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


DOCUMENT = json.loads(RUN_JSON)
PLACES = _places(DOCUMENT)[1:]


def _plain(value: Any) -> Any:
    """What JSON can say of it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def check_manifest_fields(data: bytes) -> str:
    """One byte for the place, then the object that stands there instead."""
    *path, last = PLACES[(data[0] if data else 0) % len(PLACES)]
    document = json.loads(RUN_JSON)
    section = document
    for key in path:
        section = section[key]
    section[last] = _plain(cut_object(data[1:]))
    return check_manifest(json.dumps(document).encode())


def check_state_fields(data: bytes) -> str:
    """Round, applied count, carry, number of coordinates as any objects in a well-formed header; then the numbers."""
    head, numbers_of = (*cut_frames(data), b"", b"")[:2]
    said = cut_object(head)
    round_, applied, carry, count = (*(said if isinstance(said, list | tuple) else ()), None, None, None, None)[:4]
    ends = [4 * i * count if type(count) is int else count for i in range(3)]
    tensors = {
        name: {"dtype": "F32", "shape": [_plain(count)], "data_offsets": _plain(ends[i : i + 2])}
        for i, name in enumerate(("params", "momentum"))
    }
    meta = {"round": str(round_), "applied": str(applied), "carry": _plain(carry)}
    text = json.dumps({"__metadata__": meta, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    index, state = decode_state(len(text).to_bytes(8, "little") + text + numbers_of)
    assert np.isfinite(state.params).all() and np.isfinite(state.momentum).all()
    state_root(state, 64)
    assert header_of(index, state, 64).root == state_root(state, 64)
    encode_header(header_of(index, state, 64))
    return ACCEPTED


def check_checkpoint(data: bytes) -> str:
    """training_state.json and one file, as a stranger would leave them in the folder."""
    state, file = (*cut_frames(data), b"", b"")[:2]
    (CHECKPOINT / STATE_FILE).write_bytes(state)
    (CHECKPOINT / WEIGHTS).write_bytes(file)
    ref = CheckpointRef(4, str(CHECKPOINT), hashlib.sha256(state).digest())
    store = LocalCheckpoints(CHECKPOINT.parent)
    assert store.describe(ref).encode() == state
    assert (store.fetch(ref, [WEIGHTS]) / WEIGHTS).read_bytes() == file
    return ACCEPTED


# --- what the rules make of strangers ----------------------------------------------------------------

REPLAYED = tuple(replace(s, grad_norm=0.75 * s.step + 0.5) for s in samples.STEPS)


def check_judge(data: bytes) -> str:
    """A log that decodes is judged, whatever is in it."""
    _, logged = decode_log(data, **LOG)
    for depth in (1, 2):
        result = judge(logged, REPLAYED, depth=depth, audit=MANIFEST.audit)
        assert 0 <= result.quality <= 1 and (result.error is None or math.isfinite(result.error))
    for step, ours in zip(logged, REPLAYED, strict=False):
        failing(step, ours, MANIFEST.audit)
    return ACCEPTED if logged else "an empty log fails"


def check_roster(data: bytes) -> str:
    """Every uid wrote something else on chain: who takes part and what counts is found without an error."""
    round_, found = PLAN.round, 0
    neurons = []
    for neuron, frame in zip(ROSTER.neurons, [*cut_frames(data), b"", b"", b"", b"", b""], strict=False):
        fields = parse_fields(stored if isinstance(stored := cut_object(frame[1:]), list | tuple) else [stored])
        said = None if fields is None else decode_commitment(fields)
        found += said is not None
        block = round_.start_block - 1 + (frame[0] if frame else 0)
        neurons.append(replace(neuron, commitment=said, commitment_block=block))
    now = replace(ROSTER, neurons=tuple(neurons))
    for before in (ROSTER, now):
        members = membership.candidates(round_, before, now, MANIFEST)
        ordered = reducers(members, earned(before), PLAN.carry, PLAN.beacon, MANIFEST.average)
        specs = slices(ordered, PLAN.layout.num_chunks, MANIFEST.average)
        people = voters(MANIFEST, before)
        maps = membership.slice_maps(round_, len(specs), people, now)
        counted = membership.counted_slices(
            len(specs), {s.index: bytes(32) for s in specs}, maps, people, MANIFEST.average
        )
        assert set(counted.slices) <= {s.index for s in specs}
        membership.majority_root(round_, people, now)
    return ACCEPTED if found == len(ROSTER.neurons) else f"{found} commitments are believed"


# --- snapshots -------------------------------------------------------------------------------------

SHAPE = Shape(100, 16)
STATE = RunState(np.linspace(-1, 1, 100, dtype=np.float32), np.zeros(100, np.float32), 2, samples.CARRY)
HEADER = encode_header(header_of(7, STATE, 16))
FILES = StateFiles(world.FOLDER / "snapshots")
FILES.folder.mkdir(exist_ok=True)
FILES.put(7, STATE)


def check_snapshot_header(data: bytes) -> str:
    header = decode_header(data, 7, SHAPE)
    assert encode_header(header) == data and len(header.root) == 32
    return ACCEPTED


async def _nothing_newer() -> None: ...


def _donor() -> tuple[Node, SnapshotService]:
    node = Node()
    return node, SnapshotService(node.peers, FILES, 16, _nothing_newer)


DONOR = _donor()


def check_serve_snapshot(data: bytes) -> str:
    _, frames = cut(data)
    node, service = DONOR
    node.forget()
    stream = Script(HOSTILE.peer_key, frames)
    end = node.answer(METHOD, stream)
    assert not service._places._taken, "a place was not given back"
    return ACCEPTED if len(stream.sent) > 1 else end


def _commitments() -> tuple[bytes, ...]:
    round_ = PLAN.round.index
    miner = samples.commitment(1, first_round=round_, second_round=round_)
    judge_ = samples.commitment(9, Role.VALIDATOR, first_round=round_, second_round=round_)
    said = [b"\2" + pack_object([encode_field(f) for f in encode_commitment(c)]) for c in (miner, judge_)]
    odd = [b"\2" + pack_object(o) for o in FIELD_OBJECTS]
    return (
        pack_frames([said[0]] * 4 + [said[1]]),
        pack_frames([said[1]] * 5),
        pack_frames(odd[:5]),
        pack_frames(odd[-5:]),
    )


CHECKPOINT = world.FOLDER / "round-000004"
CHECKPOINT.mkdir(exist_ok=True)
WEIGHTS = "model.safetensors"
FACTS = {WEIGHTS: FileFacts(hashlib.sha256(b"weights").hexdigest(), 7)}
GOOD = Description("00" * 32, 4, 2, encode_carry(samples.CARRY), "00" * 32, 1 << 20, FACTS).encode()
CHECKPOINTS = tuple(
    pack_frames([state, b"weights"]) for state in (GOOD, b"[" * 2000, b'{"files":[]}', b"null", b"\xff")
)
VECTORS = STATE.params[:9].tobytes() * 2
HEADS = ([7, 2, encode_carry(samples.CARRY), 9], [0, "9" * 25, encode_carry(samples.CARRY), 9], ["9" * 25, 0, b"", 9.0])
VALUES = (1, -1, 0.5, 1e308, "x", None, [], {"model_type": "gpt2"}, "00" * 32, 1 << 62, [[[[1]]]], True, float("nan"))
ASKED = [encode_request(HOSTILE.public_key, BINDING, ROUND.pack(7)), RANGE.pack(0, 2), RANGE.pack(3, 14)]

STRUCTURES = (
    Target("manifest_fields", tuple(bytes([i % 256]) + pack_object(v) for i in range(len(PLACES)) for v in VALUES),
           check_manifest_fields, (ConfigError,), 800, 1 << 20),
    Target("state_fields", tuple(pack_frames([pack_object(h), VECTORS]) for h in HEADS), check_state_fields,
           (WireError,), 400, 256 * 1024),
    Target("checkpoint", CHECKPOINTS, check_checkpoint, (WireError, LocalFault), 200, 512 * 1024),
    Target("judge", tuple(encode_log((), s) for s in (samples.STEPS, REPLAYED, REPLAYED[:1])), check_judge,
           (WireError,), 200, 128 * 1024),
    Target("roster", _commitments(), check_roster, (), 800, 128 * 1024),
    Target("snapshot_header", (HEADER,), check_snapshot_header, (WireError,), 40),
    Target("serve_snapshot", (pack(0, ASKED), pack(KNOWN, ASKED), pack(KNOWN, ASKED[:2])), check_serve_snapshot, (),
           200, 512 * 1024),
)  # fmt: skip
