"""What is reduced while it comes is what is reduced at the end, whatever the order in which chunks arrive."""

from __future__ import annotations

import asyncio
import random

import pytest
from samples import group

from distributed_training.averaging.ahead import Ahead
from distributed_training.averaging.combine import Made, reduce_slice
from distributed_training.averaging.inbox import Inbox
from distributed_training.simulation import loop

G = group()
SPEC = G.plan.slices[1]
PLACES = range(SPEC.first_chunk, SPEC.last_chunk)
KEYS = [c.public_key for c in G.plan.candidates]


def filled(order: list[tuple[bytes, int]], pause_s: float = 0.1) -> tuple[Inbox, dict[int, Made]]:
    """(sender, chunk) as they come; what was made ahead of them."""
    inbox = Inbox(G.plan, SPEC, frozenset(KEYS))

    async def main() -> dict[int, Made]:
        ahead = Ahead(inbox, G.run)
        running = asyncio.create_task(ahead.run())
        received = G.received()
        for key, chunk in order:
            await asyncio.sleep(pause_s)
            inbox.put(key, G.works[key], {chunk: received[key][chunk]})
        await asyncio.sleep(1)
        made = dict(await ahead.made())
        running.cancel()
        return made

    return inbox, loop.run(main())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_the_same_bytes_in_any_order(seed: int, pause_s: float) -> None:
    order = [(key, chunk) for key in KEYS for chunk in PLACES]
    random.Random(seed).shuffle(order)
    inbox, made = filled(order + order[:5], pause_s)
    assert made.keys() == set(PLACES), "each as soon as all have given it, and what comes again counts once"
    args = (G.plan, SPEC, inbox.chunks, inbox.works, G.run)
    assert reduce_slice(*args, ready=made) == reduce_slice(*args)


def test_a_chunk_that_somebody_lacks_waits_for_the_end() -> None:
    lacking = (KEYS[2], PLACES[0])
    inbox, made = filled([(key, chunk) for key in KEYS for chunk in PLACES if (key, chunk) != lacking])
    assert made.keys() == set(PLACES[1:])
    args = (G.plan, SPEC, inbox.chunks, inbox.works, G.run)
    assert reduce_slice(*args, ready=made) == reduce_slice(*args)


def test_what_was_made_of_other_senders_is_made_anew() -> None:
    _, made = filled([(key, chunk) for key in KEYS for chunk in PLACES])
    received = {key: chunks for key, chunks in G.received().items() if key != KEYS[0]}
    args = (G.plan, SPEC, received, G.works, G.run)
    assert reduce_slice(*args, ready=made) == reduce_slice(*args)
    assert not any(row[0] for row in reduce_slice(*args, ready=made).record.included)
