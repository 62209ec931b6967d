"""A node that starts again asks nobody for what final blocks said about a round, and sees when the chain is another."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from distributed_training.chain.base import Chain, Head
from distributed_training.errors import ChainFault, ChainReplaced, StatePruned
from distributed_training.journal import Journal
from distributed_training.journalled import KEPT_ROUNDS, JournalledChain
from distributed_training.protocol.sections import TimingSection
from distributed_training.protocol.types import BlockRef, Commitment, Neuron, Role, Roster

TIMING = cast(
    TimingSection,
    type("Timing", (), {"first_block": 4, "roster_lead": 2, "commit": 5, "output": 13, "map": 20, "length": 24}),
)
NAMED = [2, 9, 17, 19, 24, 26, 33]  # s-B, s+D, s+X, s+X+B, s+Y of round 0, s-B and s+D of round 1


class Recorded:
    """A chain whose node drops the state of blocks below `pruned_below`; counts what it is asked for."""

    def __init__(self, head: int = 40, seed: int = 0) -> None:
        self.at, self.seed, self.pruned_below, self.asked = Head(head, head - 3), seed, 0, list[tuple[str, int]]()

    async def head(self) -> Head:
        return self.at

    async def block_hash(self, number: int) -> bytes:
        if number > self.at.number:
            raise ChainFault(f"no block at height {number}")
        self.asked.append(("hash", number))
        return random.Random(self.seed * 1000 + number).randbytes(32)

    async def roster(self, block: int) -> Roster:
        self.asked.append(("roster", block))
        if block < self.pruned_below:
            raise StatePruned(f"block {block}")
        return roster_at(block, random.Random(self.seed * 1000 + block).randbytes(32))


def roster_at(block: int, hash_: bytes) -> Roster:
    said = Commitment(Role.MINER, True, b"p" * 32, b"run-tag-", 4, b"w" * 32, 4, b"o" * 32)
    plain = Neuron(0, "5F", b"k" * 32, 0.1 + 0.2, True, 3, ("10.0.0.1", 9), said, block - 1, 1 / 3, 0.0, 7, b"c" * 32)
    empty = replace(plain, uid=1, hotkey="5G", address=None, commitment=None, commitment_block=None)
    owner = replace(plain, uid=2, commitment=replace(said, role=Role.OWNER, reduces=False, place="hub:a/b"))
    return Roster(BlockRef(block, hash_), (plain, empty, owner))


async def begin(chain: Recorded, folder: Path) -> JournalledChain:
    made = await JournalledChain.begin(cast(Chain, chain), 0.01, Journal(folder / "journal.sqlite"), TIMING)
    await made.head()
    return made


async def test_a_node_that_starts_again_needs_no_old_state(tmp_path: Path) -> None:
    first = await begin(Recorded(), tmp_path)
    rosters = {block: await first.roster(block) for block in NAMED}
    later = Recorded(400)
    later.pruned_below = 399
    again = await begin(later, tmp_path)
    later.asked.clear()
    assert {block: await again.roster(block) for block in NAMED} == rosters
    assert {block: await again.block_hash(block) for block in NAMED} == {b: r.block.hash for b, r in rosters.items()}
    assert later.asked == []
    with pytest.raises(StatePruned):
        await again.roster(10)


async def test_only_final_blocks_with_a_name_are_kept(tmp_path: Path) -> None:
    chain = Recorded(35)
    first = await begin(chain, tmp_path)
    for block in (3, 33):  # no name; not final yet
        for _ in range(2):
            await first.roster(block)
    assert [block for what, block in chain.asked if what == "roster"] == [3, 3, 33, 33]


async def test_what_was_read_before_a_block_was_final_is_not_kept(tmp_path: Path) -> None:
    class Forked(Recorded):
        async def roster(self, block: int) -> Roster:
            read = await super().roster(block)
            self.at, self.seed = Head(36, 33), 1  # while that answer is on its way
            await first.head()
            return read

    chain = Forked(35)
    first = await begin(chain, tmp_path)
    assert (await first.roster(33)).block.hash != (await first.roster(33)).block.hash


async def test_a_hash_alone_does_not_stand_for_a_roster(tmp_path: Path) -> None:
    first = await begin(Recorded(), tmp_path)
    hash_ = await first.block_hash(9)
    roster = await first.roster(9)
    assert (roster.block.hash, len(roster.neurons)) == (hash_, 3)
    await first.block_hash(9)
    assert await first.roster(9) == roster


async def test_old_rounds_are_forgotten(tmp_path: Path) -> None:
    chain = Recorded(10_000)
    first = await begin(chain, tmp_path)
    for index in range(2 * KEPT_ROUNDS):
        await first.roster(9 + 24 * index)
    chain.asked.clear()
    await first.roster(9)
    await first.roster(9 + 24 * KEPT_ROUNDS)
    assert chain.asked == [("roster", 9)]


async def test_a_journal_of_another_chain_ends_the_node(tmp_path: Path) -> None:
    await (await begin(Recorded(), tmp_path)).roster(9)
    fresh = Recorded(5, seed=1)  # begun anew: it does not have that block yet
    with pytest.raises(ChainReplaced, match=r"block 1 had the hash 0x\w{12}, here it is 0x\w{12}.*--run-dir") as told:
        await begin(fresh, tmp_path)
    assert "\n" not in str(told.value)


async def test_a_disk_that_is_full_hides_no_answer(tmp_path: Path) -> None:
    journal: Any = Journal(tmp_path / "journal.sqlite")
    chain = await JournalledChain.begin(cast(Chain, Recorded()), 0.01, journal, TIMING)
    await chain.head()
    journal._db.execute("CREATE TRIGGER full BEFORE INSERT ON finals BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    assert len((await chain.roster(9)).neurons) == 3
