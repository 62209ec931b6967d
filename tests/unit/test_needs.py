"""What a run asks of a machine, in numbers and in the three lines that are shown before anything is downloaded."""

from __future__ import annotations

import tiny_training

from distributed_training.averaging.codecs.base import wire_bytes
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.disk import required_bytes
from distributed_training.averaging.needs import caps_too_low, needs, needs_lines
from distributed_training.averaging.plan import layout_of

RUN = tiny_training.manifest(tiny_training.GPT2)
BLOCK_S, SIZE = 12.0, 124_000_000


def test_a_round_and_what_travels_in_it() -> None:
    found, timing = needs(RUN, SIZE, BLOCK_S), RUN.timing
    one_way = wire_bytes(INT8, layout_of(RUN, SIZE))
    assert found.round_s == timing.length * BLOCK_S and found.training_s < found.round_s
    assert found.round_bytes == 2 * one_way and found.state_bytes == 8 * SIZE
    windows = (timing.output - timing.reduce_margin - timing.commit, timing.map - timing.output)
    assert found.bits_per_s >= 8 * one_way / (max(windows) * BLOCK_S)  # in time, whichever is shorter
    assert found.disk_bytes == required_bytes(RUN, SIZE)


def test_a_cap_that_is_too_low_is_said_with_the_number_that_is_needed() -> None:
    found = needs(RUN, SIZE, BLOCK_S)
    enough, mbit = found.bits_per_s / 1e6, f"{found.bits_per_s / 1e6:.3g}"
    assert caps_too_low(found, None, None, sends=True, reduces=True) is None
    assert caps_too_low(found, enough, enough, sends=True, reduces=True) is None
    low = caps_too_low(found, enough * 0.99, None, sends=True, reduces=True)
    assert low is not None and "--network.up_mbit" in low and f"{mbit} Mbit/s" in low and "down" not in low
    both = caps_too_low(found, 0.1, 0.1, sends=True, reduces=True)
    assert both is not None and "--network.up_mbit 0.1" in both and "--network.down_mbit 0.1" in both
    assert caps_too_low(found, 0.1, None, sends=False, reduces=False) is None, "what a validator sends can wait"
    assert caps_too_low(found, None, 0.1, sends=False, reduces=False) is not None, "and it has to gather"
    outward = found.scatter_bits_per_s / 1e6
    assert caps_too_low(found, outward, None, sends=True, reduces=False) is None, "its own chunks are all it sends"


def test_three_lines_and_no_promise_that_was_not_measured() -> None:
    found = needs(RUN, SIZE, BLOCK_S)
    model, round_, work = needs_lines(RUN, found)
    assert RUN.sha256[:16] in model and "gpt2, 124 M parameters" in model
    assert "10.8 minutes" in round_ and "MB in it" in round_ and "Mbit/s" in round_ and "992 MB" in round_
    assert "GiB of disk" in work and "this device" not in work
    measured = needs_lines(RUN, found, flop_per_s=found.step_flop / found.training_s * 7.5)[2]
    assert f"at most 7 steps, {7 * RUN.tokens_per_step:,} tokens a round on this device" in measured
    fast = needs_lines(RUN, found, flop_per_s=1e30)[2]
    assert f"at most {RUN.inner.max_steps} steps" in fast  # the manifest allows no more
