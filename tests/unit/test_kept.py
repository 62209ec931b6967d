"""Our own work of a round, after this node joined again with another state."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from samples import ROUND, D, group, key

from distributed_training.averaging.scatter import OwnWork
from distributed_training.averaging.store import RoundStore
from distributed_training.journal import Journal
from distributed_training.protocol.types import Signed
from distributed_training.protocol.wire import encode_signed, encode_work
from distributed_training.roles.mining.kept import find_work, keep_work
from distributed_training.roles.service import HeldWork

G = group()
WORK = G.works[key(0)]
HELD = HeldWork(WORK, OwnWork(G.made[key(0)], encode_signed(Signed(encode_work(WORK), bytes(64)))), b"log")


def at(index: int, root: bytes) -> Any:
    return SimpleNamespace(index=index, root=root, state=SimpleNamespace(params=[0.0] * D))


def test_work_is_taken_up_only_with_the_state_it_started_from(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    parts: Any = SimpleNamespace(manifest=G.run, store=RoundStore(tmp_path), journal=journal)
    asyncio.run(keep_work(parts, HELD))
    same, other = at(ROUND.index, WORK.state_root), at(ROUND.index, key(9, "state"))
    assert asyncio.run(find_work(parts, same, HELD)) is HELD
    found = asyncio.run(find_work(parts, same))
    assert found is not None and found.record == WORK, "a former process of ours kept it"
    away = replace(HELD, own=replace(HELD.own, contribution=replace(G.made[key(0)], chunks=())))
    again = asyncio.run(find_work(parts, same, away))
    assert again is not None and again.own.contribution == G.made[key(0)], "who joins again at a former round"
    assert asyncio.run(find_work(parts, other, HELD)) is None and asyncio.run(find_work(parts, other)) is None
    assert asyncio.run(find_work(parts, at(ROUND.index + 1, WORK.state_root), HELD)) is None
    journal.close()
