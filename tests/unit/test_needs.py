"""What a run asks of a machine, in numbers and in the three lines that are shown before anything is downloaded."""

from __future__ import annotations

import tiny_training

from distributed_training.averaging.disk import required_bytes
from distributed_training.averaging.needs import needs, needs_lines
from distributed_training.averaging.plan import layout_of

RUN = tiny_training.manifest(tiny_training.GPT2)
BLOCK_S, SIZE = 12.0, 124_000_000


def test_a_round_and_what_travels_in_it() -> None:
    found, timing = needs(RUN, SIZE, BLOCK_S), RUN.timing
    wire_bytes = layout_of(RUN, SIZE).wire_bytes
    assert found.round_s == timing.length * BLOCK_S and found.training_s < found.round_s
    assert found.round_bytes == 2 * wire_bytes and found.state_bytes == 8 * SIZE
    windows = (timing.output - timing.reduce_margin - timing.commit - timing.finality, timing.map - timing.output)
    assert found.bits_per_s >= 8 * wire_bytes / (max(windows) * BLOCK_S)  # in time, whichever is shorter
    assert found.disk_bytes == required_bytes(RUN, SIZE)


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
