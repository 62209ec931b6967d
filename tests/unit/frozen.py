"""What the golden vectors freeze: a name for each encoding, and the bytes it gives for the samples of samples.py.

`python tests/unit/frozen.py` prints the vectors of the present code; a change of any is a new protocol version.
"""

from __future__ import annotations

import numpy as np
from samples import ACCUSATION, CARRY, LEFT, OUTPUT, RUN, STEPS, WORK, commitment, key

from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.codecs.known import CODECS
from distributed_training.protocol import commitments, wire
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.rules.membership import encode_slice_map
from distributed_training.protocol.types import Carry, Role, Signed
from distributed_training.training.outer import RunState, initial_state, outer_step, state_root


def known_vector(size: int, numerator: int) -> np.ndarray:
    """fp32 [size] without a random generator: exact eighths between -16 and 16."""
    return ((np.arange(size, dtype=np.int64) * numerator % 257 - 128).astype(np.float32) / np.float32(8)).copy()


def three_steps() -> RunState:
    state = initial_state(known_vector(1000, 7), RUN.average)
    for i in range(3):
        average = known_vector(1000, 11 + i) * np.float32(0.001)
        state, _ = outer_step(state, [average], Carry(10.0 + i, CARRY.failed[: i + 1]), RUN.outer)
    return state


def fields(role: Role) -> bytes:
    said = commitments.encode_commitment(commitment(5, role, reduces=role is Role.MINER, first_round=258))
    return b"".join(f.kind.encode() + b":" + f.data for f in said)


def chunks() -> dict[str, bytes]:
    """Of every codec: a short chunk, and the digest of one of several blocks and a short last one."""
    few, many = known_vector(200, 37), known_vector(9001, 101)
    many *= np.float32(1) + known_vector(9001, 3) / np.float32(1024)
    made = {f"chunk {c.name}": c.encoder(Layout(200, 200, 16)).encode(few).data for c in CODECS}
    return made | {f"long chunk {c.name}": digest(c.encoder(Layout(9001, 9001, 512)).encode(many).data) for c in CODECS}


def vectors() -> dict[str, bytes]:
    leaves = [digest(bytes([i])) for i in range(5)]
    bare = commitment(5, first=None, first_round=None, second=None, second_round=None)
    half = commitment(5, second=None, second_round=None)
    state = RunState(known_vector(100, 3), known_vector(100, 5), 7, CARRY)
    body = wire.encode_work(WORK)
    return {
        "commitment miner": fields(Role.MINER),
        "commitment validator": fields(Role.VALIDATOR),
        "commitment owner": fields(Role.OWNER),
        "commitment bare": b"".join(f.data for f in commitments.encode_commitment(bare)),
        "commitment first only": b"".join(f.data for f in commitments.encode_commitment(half)),
        "work record": body,
        "work record hash": wire.record_hash(body),
        "step": wire.encode_step(STEPS[1]),
        "log": wire.encode_log((key(1, "page"), key(2, "page")), STEPS),
        "accusation": wire.encode_accusation(ACCUSATION),
        "output record": wire.encode_output(OUTPUT),
        "signed": wire.encode_signed(Signed(b"body", bytes(range(64)))),
        "signing message": wire.signing_message(b"body"),
        "binding message": wire.binding_message(259, key(9), 0x01020304),
        "request": wire.encode_request(key(9), bytes(range(64)), b"payload"),
        "carry": wire.encode_carry(CARRY),
        "carry with feedback": wire.encode_carry(LEFT),
        "slice map": encode_slice_map([j in (0, 9, 255) for j in range(256)]),
        "digest": digest(b"distributed-training"),
        "merkle root": merkle_root(leaves),
        "merkle root of nothing": merkle_root([]),
        **chunks(),
        "state root": state_root(state, 64),
        "state root after three outer steps": state_root(three_steps(), 256),
        "manifest": RUN.digest,
    }


if __name__ == "__main__":
    for name, data in vectors().items():
        print(f'    "{name}": "{data.hex()}",')
