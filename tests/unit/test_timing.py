"""The rule for the length of a round: as short as links, device and chain allow, and refused where it cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import RUN

from distributed_training.data.tokens import load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest, check
from distributed_training.protocol.quota import quota_problem
from distributed_training.protocol.rules.clock import bulk_timeout_s, stall_timeout_s
from distributed_training.recipes.build import draft_manifest, model_size
from distributed_training.recipes.reading import preset_names, read_preset
from distributed_training.recipes.timing import (
    Asked,
    Expect,
    Where,
    Work,
    choose,
    overhead,
    scatter_blocks,
    utilisation,
)

GPT2 = Work(
    num_coords=124_475_904,
    uplink_bytes=125_448_372,
    output_bytes=125_448_372,
    tokens_per_step=131_072,
    log_bytes=16_592,
)
HOME = Expect(down_mbit=50.0, up_mbit=20.0, tflops=50.0, fastest_tflops=400.0, miners=16, reducers=12, validators=4)
MAINNET = Where(block_s=12.0, finality=3, least_length=45)
MAINNET_PRESETS = [name for name in preset_names() if name != "local"]


def with_timing(offsets: dict[str, int]) -> RunManifest:
    timing = RUN.timing.model_copy(update={**offsets, "first_block": 1 << 20})
    return RUN.model_copy(update={"timing": timing})


speeds = st.floats(5, 5000)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1000, 2 * 10**9), down=speeds, up=speeds, tflops=st.floats(1, 1000), block_s=st.floats(1, 30),
    finality=st.integers(1, 20), miners=st.integers(1, 256), steps=st.none() | st.integers(1, 2000),
    overlap=st.booleans(),
)  # fmt: skip
def test_whatever_is_chosen_is_a_round_of_the_protocol_that_bears_it(
    size: int, down: float, up: float, tflops: float, block_s: float, finality: int, miners: int, steps: int | None,
    overlap: bool,
) -> None:  # fmt: skip
    work = Work(size, size + size // 128, size + size // 128, 8192, 16_592)
    expect = Expect(
        down_mbit=down, up_mbit=up, tflops=tflops, fastest_tflops=400.0, miners=miners, reducers=max(1, miners // 2),
        validators=3,
    )  # fmt: skip
    where = Where(block_s, finality, 45)
    found = choose(work, where, expect, Asked(steps=steps, overlap=overlap))
    timing, inner = with_timing(found["timing"]).timing, found["inner"]
    assert check(with_timing(found["timing"])) == [] and timing.length >= 45
    training_s = (timing.commit - timing.commit_margin) * block_s
    step_s = 6 * size * 8192 / (tflops * 1e12)
    assert inner["nominal_steps"] == (steps or max(1, int(training_s / step_s)))
    assert training_s >= min(1, inner["nominal_steps"]) * block_s and training_s >= (steps or 0) * step_s - 1e-6
    assert inner["max_steps"] >= inner["nominal_steps"]
    assert found["average"]["token_cap"] == inner["max_steps"] * 8192
    vector_s = 8e-6 * work.uplink_bytes / up
    assert 3 * stall_timeout_s(timing, block_s) >= 2 * vector_s and bulk_timeout_s(timing, block_s) >= vector_s * 0.999
    assert timing.transfer * block_s >= 1.5 * 8e-6 * work.output_bytes / down
    assert bulk_timeout_s(timing, block_s) >= 8e-6 * work.output_bytes / down * 0.999
    beside = overhead(work, where, expect, step_s, overlap=overlap)
    assert steps is not None or timing.length in (beside.shortest, beside.wanted(int(1500 / block_s)) + beside.total)
    assert with_timing(beside.offsets(1)).timing.length == beside.total + 1
    if overlap:  # settled, and the outer step taken, before the next training ends; its pages known when this one ends
        assert timing.map + finality + beside.outer < timing.length + timing.commit - timing.commit_margin
        assert timing.length - timing.roster_lead <= timing.commit - timing.commit_margin
    else:
        assert timing.map + finality + beside.outer <= timing.length


def test_the_length_that_was_asked_for_or_one_line_with_the_smallest_that_would() -> None:
    beside = overhead(GPT2, MAINNET, HOME, 1.96)
    found = choose(GPT2, MAINNET, HOME, Asked(round_s=20 * 60, steps=100))
    assert found["timing"]["length"] == 100 and found["inner"]["nominal_steps"] == 100
    with pytest.raises(ConfigError) as caught:
        choose(GPT2, MAINNET, HOME, Asked(round_s=6 * 60))
    line = str(caught.value)
    assert "\n" not in line and f"{beside.total} blocks of 12 s beside training (commit " in line
    least = float(re.findall(r"at least ([\d.]+) minutes", line)[0])
    assert choose(GPT2, MAINNET, HOME, Asked(round_s=least * 60))["timing"]["length"] * 12 <= least * 60
    with pytest.raises(ConfigError, match="too short"):
        choose(GPT2, MAINNET, HOME, Asked(round_s=least * 60 - 13))
    with pytest.raises(
        ConfigError, match=r"and 1000 steps of 1.96 s; expected at least [\d.]+ minutes, or at most"
    ) as c:
        choose(GPT2, MAINNET, HOME, Asked(round_s=20 * 60, steps=1000))
    fewer = int(re.findall(r"at most --steps (\d+)", str(c.value))[0])
    assert choose(GPT2, MAINNET, HOME, Asked(round_s=20 * 60, steps=fewer))["timing"]["length"] == 100


def test_faster_links_and_devices_make_rounds_shorter() -> None:
    def minutes(steps: int | None = None, **changes: float) -> float:
        expect = HOME.model_copy(update=changes)
        return choose(GPT2, MAINNET, expect, Asked(steps=steps))["timing"]["length"] * 12 / 60

    assert minutes(down_mbit=1000.0, up_mbit=1000.0) < minutes(down_mbit=100.0, up_mbit=40.0) < minutes()
    fast = {"down_mbit": 1000.0, "up_mbit": 1000.0}
    assert minutes(500, tflops=400.0, **fast) < minutes(2500, tflops=400.0, **fast) < minutes(2500, tflops=50.0, **fast)
    assert minutes(1, tflops=400.0, **fast) == 9.0, "the chain's quota allows none below 45 blocks"


def test_the_most_steps_follow_the_fastest_device_up_to_the_size_of_a_log() -> None:
    most = {
        fastest: choose(GPT2, MAINNET, HOME.model_copy(update={"fastest_tflops": fastest}), Asked())["inner"][
            "max_steps"
        ]
        for fastest in (50.0, 400.0, 4e6)
    }
    assert most[50.0] < most[400.0] < most[4e6] == (64 << 20) // GPT2.log_bytes


@pytest.mark.parametrize("name", MAINNET_PRESETS)
def test_a_preset_of_the_mainnet_has_the_round_that_its_expectations_give(name: str) -> None:
    preset = read_preset(name)
    run = draft_manifest(preset, preset.model, load_tokenizer("bytes"), {"netuid": 1})
    t, expect, size = run.timing, preset.expect, model_size(preset.model)
    assert quota_problem(t.length, preset.tempo) is None
    wire_bits = 8 * size * (1 + 4 / run.average.block_coords)
    scatter_s = (t.output - t.reduce_margin - t.commit) * preset.block_s
    assert scatter_s >= 2e-6 * wire_bits / expect.up_mbit > scatter_s - preset.block_s
    training_s = (t.commit - t.commit_margin) * preset.block_s
    assert run.inner.nominal_steps == int(training_s * expect.tflops * 1e12 / (6 * size * run.tokens_per_step))
    ratio = run.inner.max_steps / run.inner.nominal_steps
    assert expect.fastest_tflops / expect.tflops <= ratio <= 1.2 * expect.fastest_tflops / expect.tflops
    share = f"{100 * (t.commit - t.commit_margin) / t.length:.0f} %"
    assert utilisation(t).startswith(
        f"training takes {t.commit - t.commit_margin} of a round's {t.length} blocks ({share})"
    )
    told = (Path(__file__).parents[2] / "docs" / "launch.md").read_text()
    training, minutes = t.commit - t.commit_margin, t.length * preset.block_s / 60
    assert (
        f"| `{name}` | {expect.down_mbit:g}/{expect.up_mbit:g} Mbit/s, {expect.tflops:g} TFLOP/s | {t.length} blocks, "
        f"{minutes:.1f} minutes | {training} blocks, {share} | {scatter_blocks(t)}, {t.transfer} | "
        f"{run.inner.nominal_steps}, {run.inner.max_steps:,} |"
    ) in told


def test_what_somebody_set_stays() -> None:
    preset = read_preset("gpt2-124m")
    fields = {"netuid": 1, "timing": {"length": 200, "map": 160}, "inner": {"max_steps": 7, "nominal_steps": 6}}
    run = draft_manifest(preset, preset.model, load_tokenizer("bytes"), fields)
    assert (run.timing.length, run.timing.map, run.inner.max_steps, run.inner.nominal_steps) == (200, 160, 7, 6)


def test_a_round_of_its_own_can_be_asked_for_where_the_preset_has_offsets_for_overlap() -> None:
    preset = read_preset("local")
    fields = {"netuid": 1, "timing": {"overlap": True}}
    run = draft_manifest(preset, preset.model, load_tokenizer("bytes"), fields, asked=Asked(round_s=180.0))
    assert (run.timing.length, run.timing.commit, run.timing.overlap) == (180, 180, True)
    assert (
        preset.overlap["timing"]["commit"]
        == 54
        == draft_manifest(preset, preset.model, load_tokenizer("bytes"), fields).timing.length
    )
