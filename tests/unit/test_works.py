"""What a node knows of work records, under miners that commit to the hash of somebody else's record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from samples import group, key

from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore
from distributed_training.averaging.works import WorkBook
from distributed_training.errors import WireError
from distributed_training.protocol.types import Signed
from distributed_training.protocol.wire import encode_signed, encode_work

G = group()
OWNER, THIEF = G.plan.candidates[:2]
SIGNED = encode_signed(Signed(encode_work(G.works[OWNER.public_key]), bytes(64)))


def yes(public_key: bytes, message: bytes, signature: bytes) -> bool:
    return True


def stolen() -> RoundPlan:
    """The round in which the second candidate has committed to the hash of the first one's record."""
    members = (OWNER, replace(THIEF, record_hash=OWNER.record_hash), *G.plan.candidates[2:])
    return replace(G.plan, candidates=members)


@pytest.mark.parametrize("held", ["in memory", "on disk"])
def test_a_record_speaks_for_nobody_but_its_miner(tmp_path: Path, held: str) -> None:
    plan, store = stolen(), RoundStore(tmp_path)
    works = WorkBook(G.run, yes, store)
    owner, thief = plan.candidates[:2]
    work = works.take(plan, owner, SIGNED)
    if held == "on disk":
        works = WorkBook(G.run, yes, store)
    assert works.get(plan, owner) == work and work.public_key == key(0)
    assert works.get(plan, thief) is None
    with pytest.raises(WireError, match="another miner"):
        works.take(plan, thief, SIGNED)


async def test_both_can_be_asked_for_at_once(tmp_path: Path) -> None:
    plan, works = stolen(), WorkBook(G.run, yes, RoundStore(tmp_path))
    asked = works.claim(works.lacking(plan, (True,) * len(plan.candidates)))
    assert asked == list(plan.candidates)
    works.release(asked)
    assert works.claim(plan.candidates) == list(plan.candidates)


class CountingStore(RoundStore):
    written = 0

    def put_work(self, round_index: int, record_hash: bytes, signed: bytes) -> None:
        self.written += 1
        super().put_work(round_index, record_hash, signed)


def test_fresh_signatures_on_one_record_are_checked_and_written_once(tmp_path: Path) -> None:
    checked: list[bytes] = []

    def counting(public_key: bytes, message: bytes, signature: bytes) -> bool:
        checked.append(signature)
        return True

    store = CountingStore(tmp_path)
    works = WorkBook(G.run, counting, store)
    fresh = [number.to_bytes(64, "big") + SIGNED[64:] for number in range(500)]
    assert {works.take(G.plan, OWNER, signed).wire_root for signed in fresh} == {G.works[OWNER.public_key].wire_root}
    assert len(checked) == store.written == 1
    with pytest.raises(WireError, match="not the one whose hash"):
        works.take(G.plan, OWNER, SIGNED[:-1] + bytes([SIGNED[-1] ^ 1]))


def test_slices_that_include_the_same_senders_share_one_mapping(tmp_path: Path) -> None:
    """Else a round of n miners makes n of them in every node, and looks for n records n times."""
    plan, works = G.plan, WorkBook(G.run, yes, RoundStore(tmp_path))
    everybody, some = (True,) * len(plan.candidates), (True,) + (False,) * (len(plan.candidates) - 1)
    assert works.of(plan, everybody) == {} and works.lacking(plan, everybody) == list(plan.candidates)
    work = works.take(plan, OWNER, SIGNED)
    assert works.of(plan, everybody) == {OWNER.public_key: work}, "what is here by now, until all are"
    assert works.of(plan, some) == {OWNER.public_key: work} and works.lacking(plan, some) == []
    assert works.of(plan, some) is works.of(plan, (*some,))
    other = replace(plan, candidates=plan.candidates[::-1])
    assert works.of(other, some) == {}, "under another plan the same places are others"
