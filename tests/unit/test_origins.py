"""Overlap: how often a validator asks for the vector at whose end a training began, and what it says where it missed
that round."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from samples import group, key

from distributed_training.chain.clock import BlockClock
from distributed_training.protocol.rules.audit_plan import AuditTask, Depth
from distributed_training.roles.auditing.looking import Looker
from distributed_training.roles.auditing.origins import Origins
from distributed_training.roles.auditing.starts import is_whole
from distributed_training.roles.began import Origin
from distributed_training.roles.service import MAX_PROBES

G = group(3)
CHUNKS = dict(enumerate(G.made[key(1)].chunks))
PEERS = SimpleNamespace(peers=None, verify=None, manifest=G.run, clock=BlockClock(cast(Any, None), 1.0))


def finished(*, followed: bool = True) -> Any:
    """A round in which the trainings of all miners began at their vectors of the one before."""
    began = {k: SimpleNamespace(began_at=b"1" * 32) for k in G.works}
    former = SimpleNamespace(plan=G.plan, works=G.works) if followed else None
    return SimpleNamespace(plan=G.plan, works=began, former=former)


class Miner:
    """Gives its vector `MAX_PROBES` times."""

    def __init__(self) -> None:
        self.asked = 0

    async def ask(self, former: Any, miner: Any, record: Any) -> Origin:
        self.asked += 1
        return Origin(None, CHUNKS if self.asked <= MAX_PROBES else {})


def origins(miner: Miner) -> Origins:
    made = Origins(cast(Any, PEERS))
    cast(Any, made)._reader = miner
    return made


def test_words_of_others_do_not_use_up_what_a_miner_gives_for_what_the_beacon_drew() -> None:
    miner, done = Miner(), finished()

    async def story() -> Origin | None:
        asking = origins(miner)
        asking.begin(done, [], lambda: False)
        first = await asking.for_another(done, key(1))
        assert first is not None and is_whole(done.former, first)
        for _ in range(2 * MAX_PROBES):
            again = await asking.for_another(done, key(1))
            assert again is not None and not is_whole(done.former, again), "nothing can be said to that"
        return await asking.of(done, key(1))

    own = asyncio.run(story())
    assert miner.asked == 2 and own is not None and is_whole(done.former, own)


def test_a_vector_that_is_here_is_not_asked_for_again() -> None:
    miner, done = Miner(), finished()

    async def story() -> None:
        asking = origins(miner)
        asking.begin(done, [key(1)], lambda: False)
        await asyncio.wait(asking.tasks.values())
        for _ in range(3):
            found = await asking.for_another(done, key(1))
            assert found is not None and is_whole(done.former, found)

    asyncio.run(story())
    assert miner.asked == 1


def test_a_round_that_was_missed_is_told_once_for_all_miners(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = list[Any]()
    metrics = SimpleNamespace(emit=lambda event, round: told.append((round, event.what, event.detail)))
    looker = cast(Any, SimpleNamespace(_p=SimpleNamespace(metrics=metrics)))
    tasks = [AuditTask(i, key(i), Depth(length, full=False), ()) for i, length in ((0, 3), (1, 2), (2, 0))]
    Looker._tell_unfollowed(looker, finished(), tasks)
    assert not told and not caplog.messages
    Looker._tell_unfollowed(looker, finished(followed=False), tasks)
    said = "uids [0, 1] are not replayed: we missed the round they began in"
    assert told == [(3, "audit", said)] and caplog.messages == [f"round 3: {said}"]
