"""What an operator is told of its uid when a node starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from samples import neuron, roster

from distributed_training.chain.subnet import SubnetFacts
from distributed_training.metrics.events import Standing
from distributed_training.operator.standing import standings, word
from distributed_training.operator.standing import told as line

FACTS = SubnetFacts(
    netuid=38, block=5000, block_s=12.0, name="x", owner_hotkey="5a", owner_coldkey="5b", tempo=360, num_uids=64,
    max_uids=64, commitment_bytes=3100, weights_rate_limit=100, immunity_blocks=4096, emission_enabled=True,
    commit_reveal=True, reveal_epochs=1, started=True, registration_open=True, registered_block=None, start_delay=None,
    price_rao=500_000_000,
    lock_share=0.2, drain_ratio=0.5, spec_version=461, timestamp_s=1e9, collateral={17: 0.25},
)  # fmt: skip
OTHERS = [neuron(n, registered_block=1, incentive=n / 10_000) for n in range(64) if n != 17]
PRICE = "0.5 TAO: 0.4 TAO burned, 0.1 TAO locked as collateral of the hotkey (0.5 alpha unlocked per alpha it earns)"


def stands(facts: SubnetFacts = FACTS, block: int = 5000, **mine: Any) -> Standing:
    return standings(facts, roster(*OTHERS, neuron(17, **mine), block=block))[17]


def told(facts: SubnetFacts = FACTS, block: int = 5000, **mine: Any) -> str:
    return line(17, stands(facts, block, **mine), facts)


def test_a_fresh_uid_sees_its_immunity_its_rank_and_the_price() -> None:
    assert told(registered_block=4114, incentive=0.0024, dividends=0.00005) == (
        "uid 17, immune for another 3,210 blocks (10.7 h), rank 40 of 64 by emission, no place is free; "
        f"registering now costs {PRICE}"
    )
    newcomer = told(registered_block=4114)
    assert "no emission yet, 62 of 64 have some" in newcomer


def test_an_old_uid_sees_how_many_go_before_it() -> None:
    assert "uid 17, no longer immune, 24 others would be replaced before it, rank 40 of 64" in told(
        registered_block=900, incentive=0.0024
    )
    assert "no longer immune, 1 others would be replaced before it" in told(block=4097), "uid 0 earns as little"
    assert "immune for another 1 blocks" in told(block=4096), "the others are as old, and immune like it"


def test_what_the_chain_does_not_say_is_left_out() -> None:
    silent = replace(FACTS, immunity_blocks=None, price_rao=None, num_uids=60, registration_open=False)
    assert told(silent, incentive=1.0) == (
        "uid 17, rank 1 of 64 by emission, 4 places are free; registering now costs a price that this chain does not "
        "tell, but registration is closed at present"
    )


def test_who_is_replaced_next_is_who_earns_least_of_those_that_may_be() -> None:
    others = [*OTHERS, neuron(17, registered_block=1)]
    line_up = standings(FACTS, roster(*others, block=5000))
    assert line_up[0].prunable_rank == 1 and line_up[17].prunable_rank == 2, "equals: the lower uid"
    fresh = stands(registered_block=4900)
    assert (fresh.immune_blocks, fresh.prunable, fresh.prunable_rank) == (3996, 63, 2), "as if its immunity were over"
    assert (fresh.price_tao, fresh.collateral, line_up[3].collateral, fresh.free_places) == (0.5, 0.25, 0.0, 0)
    assert stands(replace(FACTS, collateral=None)).collateral is None
    mine = replace(FACTS, owner_hotkey="5hot17")
    assert stands(mine).prunable_rank is None and "never replaced: it is the owner's" in told(mine, block=9000)
    assert standings(mine, roster(*others, block=9000))[1].prunable == 63, "the owner's is none of them"


def test_where_all_are_immune_the_least_is_replaced_all_the_same() -> None:
    mine = replace(FACTS, owner_hotkey="5hot0")
    young = standings(mine, roster(*OTHERS, neuron(17, registered_block=1), block=100))
    assert (young[17].prunable_rank, young[1].prunable_rank, young[0].prunable_rank) == (1, 2, None)
    assert [word(young[uid]) for uid in (17, 1, 63, 0)] == ["danger", "danger", "safe", "safe"]
    one = standings(mine, roster(*OTHERS, neuron(17, registered_block=4900), block=5000))
    assert one[17].prunable_rank == 1 and word(one[17]) == "safe", "immune, and others are not"
