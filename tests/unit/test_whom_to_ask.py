"""Whom a node asks for a slice, and in which order; found without a look at everybody where the first one answers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import key, neuron, roster

from distributed_training.averaging.collect import Collector
from distributed_training.protocol.rules.membership import Claim
from distributed_training.protocol.types import Neuron, Roster


def collector(people: Roster, own: bytes) -> Collector:
    peers = SimpleNamespace(neurons=people.neurons, by_public_key=people.by_public_key)
    return Collector(cast(Any, None), cast(Any, peers), cast(Any, None), cast(Any, None), own)


def by_definition(people: Roster, claim: Claim, holders: tuple[bytes, ...], own: bytes) -> list[bytes]:
    """Holders first, the reducer, then stake; nobody who cannot be dialled, and not ourselves."""

    def rank(n: Neuron) -> tuple[Any, ...]:
        return n.public_key not in holders, n.public_key != claim.reducer, -n.stake, n.uid

    ranked = sorted((n for n in people.neurons if n.commitment is not None and n.reachable_at is not None), key=rank)
    return [n.commitment.peer_key for n in ranked if n.commitment is not None and n.public_key != own]


@settings(max_examples=200)
@given(st.data())
def test_the_order_is_that_of_the_definition(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    stakes = data.draw(st.lists(st.sampled_from((0.0, 1.0, 2.0)), min_size=count, max_size=count))
    mute = data.draw(st.sets(st.integers(0, count - 1)))
    shut = data.draw(st.sets(st.integers(0, count - 1)))
    lacks = [{"commitment": None} if i in mute else {"address": None} if i in shut else {} for i in range(count)]
    people = roster(*(replace(neuron(i, stake=stakes[i]), **lacks[i]) for i in range(count)))
    everybody = st.integers(0, count)  # one of them is on no roster
    claim = Claim(key(data.draw(everybody)), bytes(32), by_backup=False)
    holders = tuple(key(i) for i in sorted(data.draw(st.sets(everybody))))
    own = key(data.draw(everybody))
    asked = list(collector(people, own)._sources(claim, holders))
    assert asked == by_definition(people, claim, holders, own)
