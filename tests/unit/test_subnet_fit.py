"""A run against the subnet it is made for: what cannot be is refused, the rest is told; and whose name it has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from samples import RUN

from distributed_training.chain.subnet import SubnetFacts
from distributed_training.errors import ConfigError
from distributed_training.recipes.naming import default_name, name_problem
from distributed_training.recipes.subnet_fit import check_start, check_subnet, pay_blocks, rounds_paid, subnet_notes

T = RUN.timing
FACTS = SubnetFacts(
    netuid=RUN.netuid, block=0, block_s=12.0, name="mine", owner_hotkey="5F", owner_coldkey="5C", tempo=360,
    num_uids=3, max_uids=RUN.max_uids, commitment_bytes=1 << 20, weights_rate_limit=1, immunity_blocks=4096,
    commit_reveal=False, reveal_epochs=1, emission_enabled=True, started=True, registration_open=True,
    registered_block=None, start_delay=None,
    price_rao=10**9, lock_share=0.0, drain_ratio=None, spec_version=461, timestamp_s=None, collateral=None,
)  # fmt: skip
EARLY = T.first_block - T.roster_lead


def test_a_run_that_fits_is_taken_and_told() -> None:
    check_subnet(RUN, replace(FACTS, block=10**6))
    check_start(RUN, replace(FACTS, block=EARLY - 1))
    with pytest.raises(ConfigError, match=rf"first_block {T.first_block} is too early: the chain is at block {EARLY}"):
        check_start(RUN, replace(FACTS, block=EARLY))
    notes = subnet_notes(RUN, FACTS)
    assert notes[0] == f"subnet {RUN.netuid} (mine), at block 0: it pays"
    assert notes[1] == f"a registration costs 1 TAO, all of it burned; 3 of {RUN.max_uids} uids are taken"
    assert len(notes) == 4 and "protected for 4096 blocks" in notes[3]
    assert notes[2] == (
        f"who registers waits at most {9 * T.length + T.map + 360} blocks, 3.0 hours, for its first pay beside miners "
        "who have been there for long"
    )
    assert "weights may be set every 999 blocks only" in subnet_notes(RUN, replace(FACTS, weights_rate_limit=999))[3]
    closed = subnet_notes(RUN, replace(FACTS, registration_open=False, started=False))[0]
    assert closed.endswith("it pays NOBODY: its owner's start call is not done, its registration is closed")
    young = replace(FACTS, block=1000, started=False, registered_block=600, start_delay=50_400)
    assert young.pays.endswith("call is not done (accepted from block 51000 on, in 6.9 days)")
    assert replace(young, block=60_000).pays.endswith("is not done (accepted from block 51000 on, so by now)")
    assert subnet_notes(RUN, replace(FACTS, started=None))[0].endswith("whether it pays, this chain does not tell")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (replace(FACTS, max_uids=RUN.max_uids + 1), rf"max_uids {RUN.max_uids} is too small: the subnet has"),
        (replace(FACTS, commitment_bytes=100), "commitment bytes per epoch of 360 blocks; the chain allows 100$"),
        (replace(FACTS, tempo=50_000, commitment_bytes=None), "per epoch of 50000 blocks; the chain allows 3100$"),
        (
            replace(FACTS, immunity_blocks=100),
            r"too long: a newcomer may wait \d+ blocks .* for 100$",
        ),
    ],
)
def test_a_run_that_could_not_be_there_is_refused_in_a_line(facts: SubnetFacts, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_subnet(RUN, facts)
    assert "\n" not in str(caught.value)


def test_what_an_old_runtime_does_not_tell_refuses_nothing() -> None:
    check_subnet(RUN, replace(FACTS, immunity_blocks=None, commitment_bytes=1 << 20))
    sealed = replace(FACTS, commit_reveal=True, reveal_epochs=3)
    assert pay_blocks(RUN, sealed, 1) == pay_blocks(RUN, FACTS, 1) + 3 * FACTS.tempo
    assert pay_blocks(RUN, FACTS, 1) == 2 * T.length + T.map + FACTS.tempo


def test_immunity_is_held_against_how_long_work_takes_to_count_in_full() -> None:
    """Rounds of 125 blocks and a reveal fit the default of 4,096 blocks; half as long again, they do not."""
    sealed = replace(FACTS, commit_reveal=True)
    for length, fits in ((125, True), (180, False)):
        run = RUN.model_copy(update={"timing": T.model_copy(update={"length": length})})
        note = subnet_notes(run, sealed)[-1]
        assert (rounds_paid(run, sealed, 4096) >= run.scoring.vesting_rounds) is fits
        assert note.startswith("a newcomer's place is protected for 4096 blocks") and "\n" not in note
        assert ("TOO SHORT, an honest equal stands at" in note) is not fits
        needed = pay_blocks(run, sealed, run.scoring.vesting_rounds)
        assert ("TOO SHORT" in subnet_notes(run, replace(sealed, immunity_blocks=needed - 1))[-1]) is True
        assert ("TOO SHORT" in subnet_notes(run, replace(sealed, immunity_blocks=needed))[-1]) is False


@pytest.mark.parametrize(
    ("name", "model_type", "parameters", "problem"),
    [
        ("gpt2-124m", "gpt2", 124_439_808, None),
        ("llama-1b", "llama", 1_235_814_400, None),
        ("my-Qwen2.5-0.5B", "qwen2", 494_032_768, None),
        ("books", "gpt2", 900_000, None),
        ("local-7", "gpt2", 900_000, None),
        ("gpt2-124m", "gpt2", 354_823_168, "it says 124m, the model has 354,823,168 parameters"),
        ("gpt2-124m", "llama", 124_439_808, "it names gpt, the model is llama"),
        ("Llama-3-mine", "qwen2", 1, "it names llama, the model is qwen2"),
    ],
)
def test_a_name_that_is_another_models(name: str, model_type: str, parameters: int, problem: str | None) -> None:
    found = name_problem(name, model_type, parameters)
    assert found == (None if problem is None else f"name {name}: {problem}")
    made = default_name(model_type, parameters)
    assert parameters < 10**6 or name_problem(made, model_type, parameters) is None
