from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import group

from distributed_training.averaging.inbox import Inbox

G = group(4)
SPEC = G.plan.slices[0]
PLACES = range(SPEC.first_chunk, SPEC.last_chunk)
KEYS = sorted(G.made)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sets(st.sampled_from(PLACES))), max_size=12))
def test_who_is_missing_is_who_has_not_given_every_chunk(came: list[tuple[bytes, set[int]]]) -> None:
    async def story() -> None:
        inbox = Inbox(G.plan, SPEC, frozenset(KEYS[:3]))
        for key, chunks in came:
            parsed = {c: G.plan.uplink.parse(G.made[key].chunks[c], G.plan.layout, c) for c in chunks}
            inbox.put(key, G.works[key], parsed)
            held = inbox.chunks
            assert inbox.missing() == [k for k in KEYS[:3] if len(held.get(k, {})) < len(PLACES)]

    asyncio.run(story())
