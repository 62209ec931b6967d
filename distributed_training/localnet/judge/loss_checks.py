"""Checks of what was learned: pure functions from the summary, like those of checks.py.

When training together beats training alone was measured (the demo's own model and a Llama of its size, 2 to 4 miners,
the same steps): it loses at first, since every round starts AdamW afresh with a ramp while those that train alone keep
their moments, and the warm-up of 20 steps is no time to gain by averaging. By the mean of those alone it was between
0.17 nats ahead and 0.54 behind after 10 and 15 steps, between 0.26 ahead and 0.11 behind after 20, and with three or
four miners 0.14 or more ahead from 25 on. Two miners average too little: after 25 to 40 steps they were between 0.41
ahead and 0.02 behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import Any

from distributed_training.protocol.rules.schedules import RAMP_STEPS

Summary = Mapping[str, Any]
Outcome = tuple[bool | None, str]
MIN_MINERS = 3
MIN_STEPS = 25  # inner steps of a miner in all


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
