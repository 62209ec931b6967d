"""How long what senders sent us is kept for those that replay."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samples import SMALL, group, key

from distributed_training.averaging.sent import Sent
from distributed_training.averaging.store import RoundStore

G = group(3)


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_replay_begins_at_is_kept_until_that_is_over(tmp_path: Path, overlap: bool) -> None:
    """With overlap round 1 is audited while round 2 is reduced, and its replays begin at vectors of round 0."""
    run = SMALL.model_copy(update={"timing": SMALL.timing.model_copy(update={"overlap": overlap})})
    peers: Any = SimpleNamespace(transport=SimpleNamespace(serve=lambda method, handler: None))
    nobody: Any = None
    sent, sender = Sent(run, peers, RoundStore(tmp_path), nobody, nobody, nobody), key(0)

    async def held() -> list[tuple[int, int]]:
        for index in range(3):
            plan = replace(G.plan, round=run.round(index))
            inbox: Any = SimpleNamespace(
                plan=plan,
                spec=plan.slices[0],
                shown={sender: b"digests"},
                chunks={sender: {0: SimpleNamespace(data=b"chunk")}},
                works=G.works,
            )
            await sent.keep(inbox)
        return sorted(sent._held)

    assert asyncio.run(held()) == [(index, 0) for index in ((0, 1, 2) if overlap else (1, 2))]
