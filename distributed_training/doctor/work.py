"""What this machine can do of a round, and what that may earn: an estimate, with what it rests on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_training.averaging.needs import Needs, needs
from distributed_training.doctor.base import Finding, Unmet, in_thread, in_time
from distributed_training.doctor.run import own_key
from distributed_training.journal import JOURNAL
from distributed_training.operator.history import read_only
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.duty import NO_REDUCER_DUTY
from distributed_training.protocol.types import Role, Roster

if TYPE_CHECKING:
    from distributed_training.doctor.subject import Subject

STEPS, PAY = "steps per round", "pay to expect"
ROUNDS = 5  # of the journal, that a mean is taken of
FEW = 0.1  # of the nominal steps: less is hardly seen in the average
LONGEST_S = 15.0
BLOCK_S = 12.0  # of the main network, where no chain is asked


async def check_work(subject: Subject) -> list[Finding]:
    if subject.role is Role.OWNER:
        return [Finding(STEPS, "skipped", "an owner does not train")]
    size = asyncio.create_task(subject.num_coords.get())  # it loads torch while the chain is asked
    try:
        async with in_time(LONGEST_S, "the run's model was not known"):
            config, manifest = await subject.found.get()
            roster, block_s = await _subnet(subject)
            needed = needs(manifest, await size, block_s)
    finally:
        size.cancel()
    most = manifest.inner.max_steps if config.steps_per_round is None else config.steps_per_round
    done = await in_thread(lambda: steps_done(config.node_dir / JOURNAL)) if subject.role is Role.MINER else []
    if done:
        steps, whence = round(sum(done) / len(done)), f"the mean of the last {len(done)} rounds in its journal"
    elif (flop := (device := await subject.device.get()).flop_per_s) is None:
        return [Finding(STEPS, "skipped", "not measured beside the running node, whose journal has no round yet")]
    else:
        steps = min(most, int(needed.training_s * flop / needed.step_flop))
        whence = f"an upper bound: products on {device.name} reach {flop / 1e12:.3g} TFLOP/s, real steps are slower"
    return told(subject, manifest, needed, steps, whence, roster, await own_key(subject))


async def _subnet(subject: Subject) -> tuple[Roster | None, float]:
    """(who is there, seconds of a block)"""
    try:
        subnet = await subject.subnet.get()
    except Unmet:
        return None, BLOCK_S
    return subnet.roster, subnet.facts.block_s


def told(
    subject: Subject, manifest: RunManifest, needed: Needs, steps: int, whence: str, roster: Roster | None, own: bytes
) -> list[Finding]:
    nominal, each = manifest.inner.nominal_steps, manifest.tokens_per_step
    line = f"{steps:,} in {needed.training_s:.0f} s, {steps * each:,} tokens ({whence}); nominal are {nominal:,}"
    if subject.role is Role.VALIDATOR:
        return [Finding(STEPS, "ok" if steps >= 1 else "warn", f"to replay: {line}", "" if steps else _faster())]
    if steps < 1:
        line = f"not one is done in the {needed.training_s:.0f} s of a round ({whence})"
        return [Finding(STEPS, "fail", line, _faster())]
    few = steps < FEW * nominal
    found = [Finding(STEPS, "warn" if few else "ok", line, _faster() if few else "")]
    if roster is not None:
        found.append(pay(manifest, roster, steps * each, own, outbound_only=subject.config.axon.outbound_only))
    return found


def _faster() -> str:
    return "use a faster device (--device cuda where a GPU is), or a run of a smaller model"


def steps_done(journal: Path) -> list[int]:
    """Of the newest rounds in a miner's journal, which another process may be writing; none where it cannot be read."""
    if not journal.is_file():
        return []
    try:
        with closing(read_only(journal)) as db:
            rows = db.execute("SELECT doc FROM rounds ORDER BY round DESC LIMIT ?", (ROUNDS,)).fetchall()
        return [int(steps) for (doc,) in rows if (steps := json.loads(doc).get("steps"))]
    except (sqlite3.Error, ValueError, TypeError, AttributeError, OSError):
        return []


def pay(manifest: RunManifest, roster: Roster, tokens: int, own: bytes, *, outbound_only: bool) -> Finding:
    """A share of what miners are paid. The others' S is not on chain: that of the best is taken to be 1, which it is
    at most, and those of others by what they are paid beside it. Pure."""
    scoring, cap = manifest.scoring, manifest.average.token_cap
    steps_score = min(tokens, cap) / cap
    mine = steps_score * (NO_REDUCER_DUTY if outbound_only else 1.0)
    paid = [
        n.incentive
        for n in roster.neurons
        if n.incentive > 0 and n.public_key != own and (c := n.commitment) is not None and c.run == manifest.tag
    ]
    whole = f"all of it after {scoring.vesting_rounds} rounds"
    rests = f"S {steps_score:.2f} of the token cap {cap:,}, passed audits, G B I near 1; {whole}"
    if not paid:
        return Finding(PAY, "ok", f"estimate: S {steps_score:.2f}; nobody of the run is paid yet, so no share is known")
    others = fsum(paid) / max(paid)
    share = mine / (mine + others) * (1.0 - scoring.burn_share)
    line = (
        f"estimate: {share:.1%} of the miners' pay beside {len(paid)} who are paid now (the best at the cap); {rests}"
    )
    return Finding(PAY, "ok", line)
