"""Checks of what was learned: pure functions from the summary, like those of checks.py.

Alone and on all tokens, one worker trains with the run's own optimiser and keeps its moments (baselines.py). Measured
with the demo's own model, pages and optimiser, one seed each, in one process:

Four equal miners, six rounds of five steps of eight sequences: together was ahead of alone after every round, by 0.06
to 0.29 nats, and 4 to 5 % behind one worker that takes all steps in a row. Six rounds of 20 steps of two sequences, the
default: 3.4 % behind it in a whole demo (2.667 against 2.580), 0.7 % ahead in one process with products in bfloat16
(2.460 against 2.478). Speeds 1,1,2,4: 10 % behind it (2.348 against 2.129). So that worker is shown and checks nothing.
Three rounds of many steps are few averages: three
miners with a model of 29 k parameters ended 0.04 behind the mean of those alone after three rounds of 40 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import Any

from distributed_training.localnet.names import many

Summary = Mapping[str, Any]
Outcome = tuple[bool | None, str]
MIN_MINERS = 3
RAMP_STEPS = 4  # of the local preset
MIN_ROUNDS = 3
MIN_STEPS = 25  # inner steps of a miner in all
NEAR = 0.01  # of the loss


def loss_below_solo_mean(summary: Summary) -> Outcome:
    """None when the run was too short or too small to tell."""
    solo = [v for v in summary["solo_heldout_loss"].values() if v is not None]
    final = summary["final_heldout_loss"]
    if not solo or final is None:
        return False, "not measured"
    mean = fsum(solo) / len(solo)
    numbers = f"together {final:.4f}, alone {mean:.4f} on average, {min(solo):.4f} at best"
    why = too_short(summary)
    return (final < mean, numbers) if why is None else (None, f"not compared: {why}; {numbers}")


def too_short(summary: Summary) -> str | None:
    """Why training together cannot be expected to show yet; None when it can."""
    miners = [n for n, node in summary["nodes"].items() if node["role"] == "miner" and node["adversary"] is None]
    if len(miners) < MIN_MINERS:
        return f"too few miners ({len(miners)}; at least {MIN_MINERS})"
    rounds = [r for r in summary["rounds"] if r["applied"]]
    done = fsum((r["nodes"].get(name) or {}).get("steps") or 0 for r in rounds for name in miners) / len(miners)
    if len(rounds) < MIN_ROUNDS:
        return f"too short ({many(len(rounds), 'round')}; at least {MIN_ROUNDS})"
    if done < MIN_STEPS:
        return f"too short ({done:.0f} steps a miner; at least {MIN_STEPS})"
    if done <= RAMP_STEPS * len(rounds):
        return (
            f"rounds too short ({done / len(rounds):.0f} steps; at least {RAMP_STEPS + 1}, after the ramp of a round)"
        )
    return None


def loss_fell(summary: Summary) -> Outcome:
    first, final = summary["initial_heldout_loss"], summary["final_heldout_loss"]
    if first is None or final is None:
        return False, "not measured"
    return final < first, f"{first:.4f} to {final:.4f}"
