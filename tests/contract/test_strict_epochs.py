"""What the local chain's epochs do with stake, permits, weights and uids, on rows and without a clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rig import COLDKEY, NETUID, SEED, VERSION_KEY, genesis, key

from distributed_training.chain.local.calls import CALLS
from distributed_training.chain.local.epoch import run_due_epochs
from distributed_training.chain.local.genesis import put_params, write_genesis
from distributed_training.chain.local.state import RAO, RefusedError, neurons, read_epoch
from distributed_training.chain.local.store import ChainParams, in_force
from distributed_training.chain.memory import MemoryRows

OWNER, FIRST, SECOND, MINER, OTHER = (
    key(n).hotkey for n in ("owner", "validator-0", "validator-1", "miner-0", "miner-1")
)
PARAMS = ChainParams(
    SEED, 1.0, NETUID, 10, 0, VERSION_KEY, 8, 64, 0, 100, 0, OWNER, COLDKEY.ss58_address,
)  # fmt: skip
TEMPO = PARAMS.tempo


class Chain:
    """Rows of one chain; every call goes to the block it is given, in ascending order."""

    def __init__(self, **changes: Any) -> None:
        self.params = replace(PARAMS, **changes)
        self.rows = MemoryRows({}, 0)
        write_genesis(self.rows, genesis())

    def at(self, block: int) -> MemoryRows:
        rows = self.rows.as_of(block)
        run_due_epochs(rows, self.params)
        return rows

    def call(self, block: int, function: str, signer: str, **args: Any) -> None:
        rows = self.at(block)
        call = CALLS["SubtensorModule", function]
        call(rows, in_force(rows, self.params), signer, {"netuid": NETUID, **args})

    def weigh(self, block: int, row: dict[int, int], *signers: str) -> None:
        args = {"dests": list(row), "weights": list(row.values()), "version_key": VERSION_KEY}
        for signer in signers:
            if self.params.commit_reveal:
                shut = {"commit": "0x00", "reveal_round": 1, "commit_reveal_version": 4, "opening": args}
                self.call(block, "commit_timelocked_mechanism_weights", signer, **shut)
            else:
                self.call(block, "set_mechanism_weights", signer, **args)

    def register(self, block: int, name: str, coldkey: str = COLDKEY.ss58_address) -> int:
        self.call(block, "burned_register", coldkey, hotkey=key(name).hotkey)
        return self.at(block).get("uid", key(name).hotkey)

    def stakes(self, block: int) -> dict[str, float]:
        return {hotkey: rao / RAO for hotkey, rao in self.at(block).scan("stake").items()}

    def incentive(self, block: int) -> list[float]:
        return [round(value / 65535, 3) for value in read_epoch(self.at(block)).incentive]


def test_each_epoch_pays_one_alpha_a_block_as_stake() -> None:
    chain = Chain()
    chain.weigh(1, {3: 1, 4: 3}, FIRST, SECOND)
    before, after = chain.stakes(TEMPO - 1), chain.stakes(TEMPO)
    gained = {hotkey: after[hotkey] - before.get(hotkey, 0.0) for hotkey in after}
    assert gained[OWNER] == pytest.approx(1.8, abs=1e-3)
    assert [gained[h] for h in (FIRST, SECOND, MINER, OTHER)] == pytest.approx([3.075, 1.025, 1.025, 3.075], abs=1e-3)
    assert sum(gained.values()) == pytest.approx(TEMPO)


def test_permits_follow_stake_one_epoch_late_until_max_validators_are_reached() -> None:
    wide, narrow = Chain(), Chain(max_validators=2)
    for chain in (wide, narrow):
        chain.weigh(1, {3: 1, 4: 3}, FIRST, SECOND)
        assert read_epoch(chain.at(TEMPO)).permits == [True, True, True, False, False]
    assert read_epoch(wide.at(2 * TEMPO)).permits == [True] * 5
    assert read_epoch(narrow.at(2 * TEMPO)).permits == [True, True, True, False, False]
    wide.weigh(2 * TEMPO, {4: 1}, MINER)  # what a miner earned is stake like any other
    with pytest.raises(RefusedError):
        narrow.weigh(2 * TEMPO, {4: 1}, MINER)


def test_a_fresh_stakers_weights_count_from_the_second_epoch() -> None:
    chain = Chain()
    chain.weigh(1, {3: 1}, FIRST, SECOND)
    chain.at(2).put("stake", OTHER, 10_000 * RAO)
    assert chain.incentive(TEMPO) == [0, 0, 0, 1, 0]
    chain.weigh(TEMPO, {1: 1}, OTHER)  # with the permit that this epoch gave
    assert chain.incentive(2 * TEMPO) == [0, 1, 0, 0, 0]


def test_weights_older_than_the_activity_cutoff_do_not_count() -> None:
    chain = Chain()
    chain.weigh(1, {3: 1}, FIRST)
    for block in range(TEMPO, 20 * TEMPO, TEMPO):
        chain.weigh(block, {4: 1}, SECOND)
    assert chain.incentive(10 * TEMPO) == [0, 0, 0, 1, 0]  # 100 blocks old, the cutoff is 138
    assert chain.incentive(20 * TEMPO) == [0, 0, 0, 0, 1]
    assert not read_epoch(chain.at(20 * TEMPO)).active[1]


def test_what_miners_get_from_the_owner_uid_is_burned_and_a_subnet_that_does_not_emit_pays_nobody() -> None:
    chain = Chain()
    chain.weigh(1, {0: 1, 3: 1}, FIRST, SECOND)
    gained = sum(chain.stakes(TEMPO).values()) - 400
    assert gained == pytest.approx(TEMPO - 8.2 / 4, abs=1e-3)  # half of the miners' half
    for off in ({"started": False}, {"registration_allowed": False}):
        silent = Chain(**off)
        silent.weigh(1, {3: 1}, FIRST, SECOND)
        assert sum(silent.stakes(2 * TEMPO).values()) == 400 and silent.incentive(TEMPO)[3] == 1


def test_a_uid_that_was_given_out_anew_earns_nothing_from_older_weights() -> None:
    chain = Chain(max_uids=5, immunity_period=0)
    chain.weigh(1, {3: 9, 4: 1}, FIRST, SECOND)
    assert chain.register(TEMPO + 1, "extra") == 4
    assert chain.at(TEMPO + 1).get("weights", "1") == [[3, 65535], [4, 7281]]  # the row still names it
    assert chain.incentive(2 * TEMPO) == [0, 0, 0, 1, 0]
    chain.weigh(2 * TEMPO + 1, {3: 9, 4: 1}, FIRST, SECOND)
    assert chain.incentive(3 * TEMPO) == [0, 0, 0, 0.9, 0.1]


def test_sealed_weights_move_last_update_at_once_and_the_row_at_the_reveal() -> None:
    chain = Chain(commit_reveal=True)
    chain.weigh(1, {3: 1}, FIRST, SECOND)
    assert chain.at(1).get("last_update", "1") == 1 and chain.at(TEMPO - 1).get("weights", "1") is None
    assert chain.at(TEMPO).get("weights", "1") == [[3, 65535]] and chain.at(TEMPO).scan("sealed") == {}
    assert chain.incentive(TEMPO) == [0, 0, 0, 1, 0]  # revealed before the epoch reckons
    late = Chain(commit_reveal=True, reveal_period=3)
    late.weigh(TEMPO + 1, {3: 1}, FIRST)
    assert late.at(4 * TEMPO - 1).get("weights", "1") is None and late.at(4 * TEMPO).get("weights", "1") is not None


def test_while_an_older_commit_is_sealed_uids_given_out_since_do_not_count() -> None:
    chain = Chain(commit_reveal=True, reveal_period=3, max_uids=5, immunity_period=0)
    chain.weigh(1, {3: 9, 4: 1}, FIRST, SECOND)
    chain.weigh(3 * TEMPO + 1, {3: 9, 4: 1}, FIRST, SECOND)
    assert chain.register(3 * TEMPO + 2, "extra") == 4
    chain.weigh(3 * TEMPO + 3, {3: 9, 4: 1}, FIRST, SECOND)  # newer than the uid, and so is last_update
    assert chain.incentive(4 * TEMPO) == [0, 0, 0, 1, 0]


def test_a_reveal_without_a_pulse_is_late_or_lost() -> None:
    chain = Chain(commit_reveal=True, beacon=False)
    chain.weigh(1, {3: 1}, FIRST)
    chain.weigh(TEMPO + 1, {4: 1}, SECOND)
    assert list(chain.at(TEMPO).scan("sealed")) == ["0"] and chain.at(TEMPO).get("weights", "1") is None
    assert list(chain.at(2 * TEMPO).scan("sealed")) == ["1"]  # the first is gone
    rows = chain.at(2 * TEMPO + 3)
    put_params(rows, chain.params, {"beacon": True})
    assert rows.get("weights", "2") == [[4, 65535]] and rows.get("weights", "1") is None
    assert rows.get("last_update", "1") == 1  # and nothing says so


def test_a_full_subnet_takes_the_uid_with_the_least_emission_that_is_not_immune() -> None:
    chain = Chain(max_uids=5, immunity_period=15)
    chain.weigh(1, {3: 1, 4: 9}, FIRST, SECOND)
    assert chain.register(TEMPO + 1, "extra") == 3  # all are immune: the least earner, never the owner
    assert chain.register(16, "more") == 2  # uid 3 earns nothing, but is immune
    with pytest.raises(RefusedError) as refusal:
        chain.register(17, "miner-0", coldkey="another")
    assert refusal.value.name == "NonAssociatedColdKey"
    chain.params = replace(chain.params, max_uids=1)
    for neuron in neurons(chain.at(17))[1:]:
        chain.at(17).put("neuron", str(neuron.uid), None)
    with pytest.raises(RefusedError) as refusal:
        chain.register(18, "last")
    assert refusal.value.name == "NoNeuronIdAvailable"


def test_a_part_of_the_price_is_locked_and_earned_free() -> None:
    chain = Chain(burn_rao=100 * RAO, collateral_share=65535 // 5, max_uids=6, immunity_period=0)
    chain.at(1).put("balance", COLDKEY.ss58_address, 1000 * RAO)
    assert chain.register(1, "extra") == 5
    held = chain.at(1).get("collateral", key("extra").hotkey)
    assert held["locked"] == chain.at(1).get("stake", key("extra").hotkey) == pytest.approx(20 * RAO, rel=1e-4)
    assert chain.at(1).get("balance", COLDKEY.ss58_address) == 900 * RAO
    chain.weigh(2, {5: 1}, FIRST, SECOND)
    freed = chain.at(TEMPO).get("collateral", key("extra").hotkey)
    assert freed["earned"] == held["locked"] - freed["locked"] == pytest.approx(4.1 * RAO, rel=1e-3)


def test_the_owner_changes_in_mid_run_and_with_it_who_is_paid_and_permitted() -> None:
    chain = Chain()
    chain.weigh(1, {3: 1}, FIRST, SECOND)
    put_params(chain.at(TEMPO + 1), chain.params, {"owner_hotkey": OTHER, "owner_coldkey": "another"})
    assert in_force(chain.at(TEMPO), chain.params).owner_hotkey == OWNER
    assert in_force(chain.at(TEMPO + 1), chain.params).owner_hotkey == OTHER
    before = chain.stakes(TEMPO + 1)
    assert read_epoch(chain.at(2 * TEMPO)).permits[4]
    after = chain.stakes(2 * TEMPO)
    assert after[OTHER] == pytest.approx(1.8, abs=1e-3) and after[OWNER] == pytest.approx(before[OWNER])


def test_a_setting_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        put_params(Chain().at(1), PARAMS, {"tempi": 3})


@pytest.mark.parametrize("commit_reveal", [False, True])
def test_what_epochs_leave_does_not_depend_on_who_runs_them_and_when(commit_reveal: bool) -> None:
    early, late = Chain(commit_reveal=commit_reveal), Chain(commit_reveal=commit_reveal)
    for chain in (early, late):
        chain.weigh(1, {3: 1, 4: 3}, FIRST, SECOND)
    for block in range(1, 4 * TEMPO):
        early.at(block)
    for item in ("stake", "weights", "sealed", "epoch", "bonds"):
        for block in (TEMPO - 1, TEMPO, 4 * TEMPO):
            late.at(4 * TEMPO)
            assert early.at(4 * TEMPO).as_of(block).scan(item) == late.rows.as_of(block).scan(item)
