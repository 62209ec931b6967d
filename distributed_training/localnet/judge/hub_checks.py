"""Checks of a run with --hub: pure functions from the summary, like those of checks.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed_training.localnet.layout import NEWCOMER
from distributed_training.localnet.names import called

LOSS_TOLERANCE = 1e-4
MIN_NEWCOMER_ROUNDS = 2

Summary = Mapping[str, Any]
Outcome = tuple[bool, str]


def newcomer_from_hub(summary: Summary) -> Outcome:
    """It started from a published checkpoint, ended cleanly, and `same_state_root` compared its rounds."""
    newcomer = summary["joined"].get(NEWCOMER)
    if newcomer is None:
        return False, "it was never ready"
    ok = newcomer["source"] == "checkpoint" and newcomer["start_round"] > 0 and newcomer["exit_code"] == 0
    said = f"from {newcomer['source']} of round {newcomer['start_round']}, {len(newcomer['rounds'])} rounds settled"
    return ok and len(newcomer["rounds"]) >= MIN_NEWCOMER_ROUNDS, f"{said}, exit code {newcomer['exit_code']}"


def published_model(summary: Summary) -> Outcome:
    """Plain transformers gets the loss that the run measured of the same state."""
    published, checkpoints = summary["hub"]["published"], summary["checkpoints"]
    if published is None or not checkpoints:
        return False, "it could not be loaded"
    index = max(c["round"] for c in checkpoints)
    told = next((r["heldout_loss"] for r in summary["rounds"] if r["index"] == index - 1), None)
    if told is None:
        return False, f"the run measured no loss after round {index - 1}"
    loss = published["heldout_loss"]
    shown = f"{published['repository']} at {published['revision']}: {loss:.6f}, the run measured {told:.6f}"
    return abs(loss - told) <= LOSS_TOLERANCE, shown


def published_verified(summary: Summary) -> Outcome:
    """scripts/verify_checkpoint.py proved files, numbers, and the owner's word on chain."""
    code = summary["hub"]["verify_exit_code"]
    return code == 0, "verified.txt says what was proven" if code == 0 else f"exit code {code}: see verified.txt"


def miner_copies(summary: Summary) -> Outcome:
    """Validators looked at what miners published of the state, and found the state root in all of it."""
    copies = summary["hub"]["miner_copies"]
    wrong = [c for c in copies if not c["ok"]]
    if wrong:
        return False, f"round {wrong[0]['round']}, {called(summary, [wrong[0]['target']])}: {wrong[0]['said']}"
    uids = sorted({c["target"] for c in copies})
    return bool(copies), f"{len(copies)} looks at what was published of the state by {called(summary, uids)}"


def pages_over_hub(summary: Summary) -> Outcome:
    """Every byte of text that was trained on came over the wire: no node had a folder of pages."""
    found = summary["hub"]["page_requests"]
    return bool(found), f"{found or 0} range requests for pages, {summary['hub']['bytes_served'] or 0} bytes served"
