"""How long a block takes: room for what a round computes on this machine, and nothing of it in the manifest."""

from __future__ import annotations

import pytest
from localnet_recording import recorded_manifest

from distributed_training.errors import ConfigError
from distributed_training.localnet.options import MAX_BLOCK_S, MIN_BLOCK_S
from distributed_training.localnet.run.faults import RESTART_AFTER_S
from distributed_training.localnet.run.pace import (
    Machine,
    Work,
    block_seconds,
    free_cores,
    in_words,
    needed_block_s,
    replayed,
    round_steps,
)

RUN = recorded_manifest()
COORDS = 859_008  # of the demo's own model
DEFAULT = Work((20, 20, 20, 20), 2, False, COORDS)
TWO_CORES = Machine(step_s=0.06, cores=2.0, start_s=4.0)
WINDOW = RUN.timing.commit - RUN.timing.commit_margin  # blocks


def chosen(machine: Machine, work: Work = DEFAULT, exact: int | None = None) -> float:
    return block_seconds(machine, RUN, work, exact)


def test_six_rounds_on_two_idle_cores_take_less_than_three_minutes_and_miners_have_twice_their_time() -> None:
    block_s = chosen(TWO_CORES)
    assert 120 < (RUN.timing.first_block + 6 * RUN.timing.length) * block_s < 180
    assert WINDOW * block_s > 2 * sum(DEFAULT.steps) * TWO_CORES.step_s / TWO_CORES.cores
    assert "6 rounds about 2.5 minutes" in in_words(block_s, RUN, 6)


def test_a_slower_or_a_busy_machine_gets_longer_blocks_and_a_fast_one_the_shortest() -> None:
    usual = chosen(TWO_CORES)
    assert chosen(Machine(0.12, 2.0, 4.0)) == pytest.approx(2 * usual, abs=0.02)
    assert chosen(Machine(0.06, 1.0, 4.0)) == pytest.approx(2 * usual, abs=0.02)
    assert chosen(Machine(0.015, 7.0, 1.0)) == MIN_BLOCK_S
    assert chosen(Machine(60.0, 1.0, 4.0)) == MAX_BLOCK_S  # miners then do what the time allows
    many = Work((1,) * 12, 3, False, 1000)
    assert chosen(Machine(1e-4, 1.0, 1.0), many) >= 16 * 0.05  # following the chain is work too


def test_there_is_room_for_many_steps_and_for_one_fast_miner() -> None:
    for steps in ((200,) * 4, (5, 5, 10, 200)):
        room_s = WINDOW * chosen(TWO_CORES, Work(steps, 2, False, COORDS))
        assert room_s > 1.5 * sum(steps) * TWO_CORES.step_s / TWO_CORES.cores
    alone = Work((200, 1), 1, False, COORDS)  # a miner takes its steps one after the other, whatever is free
    assert WINDOW * chosen(Machine(0.2, 16.0, 4.0), alone) >= 1.5 * 200 * 0.2
    large = Work((1, 1, 1, 1), 2, False, 200_000_000)
    assert chosen(TWO_CORES, large) > 4 * chosen(TWO_CORES)  # so many bytes take their time too


def test_steps_that_cannot_be_done_are_refused_with_a_number_that_can() -> None:
    slow = Machine(step_s=1.0, cores=2.0, start_s=4.0)
    work = Work((200, 400), 1, False, COORDS)
    with pytest.raises(
        ConfigError, match=r"argument --steps: 200 steps need blocks of .* expected at most --steps "
    ) as e:
        chosen(slow, work, exact=200)
    most = int(str(e.value).partition("at most --steps ")[2].split(",")[0])
    assert "\n" not in str(e.value) and 1 < most < 200
    assert chosen(slow, Work((most, 2 * most), 1, False, COORDS), exact=most) <= MAX_BLOCK_S
    with pytest.raises(ConfigError, match="expected a smaller --model"):
        chosen(Machine(1000.0, 2.0, 4.0), work, exact=200)


def test_a_node_that_starts_again_is_there_before_the_next_but_one_round_begins() -> None:
    slow_start = Machine(step_s=0.02, cores=2.0, start_s=6.0)
    work = Work((5, 5, 5, 5), 2, True, COORDS)
    assert RUN.timing.length * chosen(slow_start, work) >= RESTART_AFTER_S + slow_start.start_s * 7 / 2
    assert chosen(slow_start, work) > chosen(slow_start)


def test_replays_are_counted_as_the_rule_draws_them() -> None:
    assert replayed(RUN, 1, 0.5) == replayed(RUN, 0, 0.5) + 1 == 1
    assert 2.2 < replayed(RUN, 5, 0.5) < 2.4 and 6 < replayed(RUN, 20, 0.5) < 6.7
    assert round_steps(RUN, DEFAULT) == pytest.approx(80 + 8 * replayed(RUN, 20, 0.5) + 64)
    assert needed_block_s(TWO_CORES, RUN, DEFAULT) == pytest.approx(1.5 * round_steps(RUN, DEFAULT) * 0.03 / WINDOW)


def test_what_is_measured_of_the_cores_is_what_so_many_processes_get() -> None:
    assert 0 < free_cores(2) < 2.2
