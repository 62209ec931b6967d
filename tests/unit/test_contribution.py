from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from samples import Senders, deltas, key, small_run

from distributed_training.averaging.codecs.base import wire_bytes
from distributed_training.averaging.codecs.int8 import INT8, parse_chunk
from distributed_training.averaging.contribution import check_work, encode_contribution
from distributed_training.chain.keys import derive_keypair, verify
from distributed_training.errors import WireError
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import Candidate, Signed, WorkRecord
from distributed_training.protocol.wire import encode_work, record_hash, signing_message

RUN = small_run()
GROUP = Senders(deltas(1, 1, 150), RUN)
KEYPAIR = derive_keypair(1, "miner-0")
PUBLIC = bytes(KEYPAIR.public_key)
RECORD = replace(GROUP.works[key(0)], public_key=PUBLIC)


def signed(record: WorkRecord, candidate: Candidate | None = None) -> tuple[Signed, Candidate]:
    """The record as its miner would publish it: signed, and its hash on chain."""
    body = encode_work(record)
    chain = candidate or replace(GROUP.plan.candidates[0], public_key=PUBLIC, record_hash=record_hash(body))
    return Signed(body, bytes(KEYPAIR.sign(signing_message(body)))), chain


def test_a_contribution_says_what_its_chunks_are() -> None:
    delta, layout = GROUP.deltas[0], GROUP.plan.layout
    made = encode_contribution(delta, layout, INT8)
    assert made.digests == tuple(digest(c) for c in made.chunks) and made.wire_root == merkle_root(made.digests)
    parsed = [parse_chunk(c, layout, i) for i, c in enumerate(made.chunks)]
    assert made.norms == tuple(chunk.norm() for chunk in parsed)
    assert len(b"".join(made.chunks)) == wire_bytes(INT8, layout) == 150 + 4 * (4 + 4 + 2) + 3 * 4
    decoded = np.concatenate([chunk.decode() for chunk in parsed])
    assert np.abs(decoded - delta).max() < 0.01 * np.abs(delta).max()
    with pytest.raises(ValueError, match="non-finite"):
        encode_contribution(np.full(150, np.nan, np.float32), layout, INT8)


def test_an_honest_record_is_taken() -> None:
    assert check_work(*signed(RECORD), GROUP.plan, RUN, verify) == RECORD


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "manifest": ({"manifest": bytes(32)}, "another manifest"),
    "round": ({"round": 4}, "another round"),
    "uid": ({"uid": 1}, "another miner"),
    "hotkey": ({"public_key": key(5)}, "another miner"),
    "stale state": ({"state_root": key(1, "state")}, "another state root"),
    "no steps": ({"steps": 0, "tokens": 0}, "number of steps"),
    "too many steps": ({"steps": 51, "tokens": 51 * RUN.tokens_per_step}, "number of steps"),
    "more tokens than steps": ({"tokens": RECORD.tokens + 1}, "tokens do not follow"),
    "codec": ({"codec": 2}, "another codec"),
    "too few norms": ({"chunk_norms": RECORD.chunk_norms[:-1]}, "number of chunk norms"),
    "too many norms": ({"chunk_norms": (*RECORD.chunk_norms, 1.0)}, "number of chunk norms"),
    "negative norm": ({"chunk_norms": (-1.0, 1.0, 1.0)}, "norm is negative"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_record_of_something_else_is_refused_though_signed_and_on_chain(lie: str) -> None:
    change, message = LIES[lie]
    with pytest.raises(WireError, match=message):
        check_work(*signed(replace(RECORD, **change)), GROUP.plan, RUN, verify)


def test_the_most_steps_are_allowed() -> None:
    most = replace(RECORD, steps=50, tokens=50 * RUN.tokens_per_step)
    assert check_work(*signed(most), GROUP.plan, RUN, verify).steps == 50


def test_another_record_than_the_one_on_chain_is_refused() -> None:
    on_chain = signed(RECORD)[1]
    with pytest.raises(WireError, match="hash is on chain"):
        check_work(*signed(replace(RECORD, steps=9, tokens=9 * RUN.tokens_per_step), on_chain), GROUP.plan, RUN, verify)


def test_a_bad_signature_is_refused() -> None:
    good, chain = signed(RECORD)
    other = bytes(derive_keypair(1, "miner-1").sign(signing_message(good.body)))
    over_body = bytes(KEYPAIR.sign(good.body))
    for signature in (other, over_body, bytes(64), b""):
        with pytest.raises(WireError, match="bad signature"):
            check_work(replace(good, signature=signature), chain, GROUP.plan, RUN, verify)
