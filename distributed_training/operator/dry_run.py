"""`neurons/validator.py --dry-run`: the weights that a validator's own journal gives now. Reads only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from distributed_training.access import connect
from distributed_training.journal import Journal
from distributed_training.preflight import run_manifest
from distributed_training.protocol.rules.weights import burn_price, row_to_send
from distributed_training.roles.auditing.examiner import score_table
from distributed_training.roles.auditing.permit import permit_lacks
from distributed_training.settings.config import NodeConfig


async def print_weights(config: NodeConfig) -> int:
    """Print one line per scored uid; works beside the running validator, whose journal it reads. Exit code 0."""
    async with AsyncExitStack() as stack:
        manifest = run_manifest(config)
        chain, _, me = await connect(config, stack)
        roster, params = await chain.roster((await chain.head()).number), await chain.params()
        here = roster.by_public_key(me.public_key)
        if here is not None and (lacks := permit_lacks(roster, here)) is not None:
            sys.stdout.write(f"{lacks}\n")
        path = config.node_dir / "journal.sqlite"
        if not path.is_file():
            sys.stdout.write(f"nothing scored yet: {path} does not exist; the running validator writes it\n")
            return 0
        journal = Journal(path)
        stack.callback(journal.close)
        last, cards = journal.load_cards()
        if last is None:
            sys.stdout.write("nothing scored yet: no round of this run was audited\n")
            return 0
        row, reason = row_to_send(cards, last, roster, params, manifest)
        for line in (burn_price(manifest.scoring.burn_share), reason and f"nothing would be sent: {reason}"):
            sys.stdout.write(f"{line}\n" if line else "")
        sys.stdout.write(table(me.uid, last, score_table(cards, last, manifest), row))
    return 0


def table(uid: int, round_index: int, shown: Mapping[int, Mapping[str, Any]], row: Mapping[int, int]) -> str:
    """row: u16 as the chain would store it; the owner's uid may be in it without a score."""
    lines = [f"validator uid {uid} would set these weights after round {round_index} (dry run, nothing is written):"]
    lines.append("  uid  weight    u16       S      G      I      B  why")
    total = sum(row.values()) or 1
    for target in sorted({*shown, *row}):
        t = shown.get(target)
        terms = "" if t is None else f"{t['S']:7.4f} {t['G']:6.3f} {t['I']:6.3f} {t['B']:6.3f}"
        why = "burn share" if t is None else t["reason"] or t["note"]
        lines.append(f"  {target:3d}  {row.get(target, 0) / total:6.4f}  {row.get(target, 0):5d} {terms:28s}  {why}")
    return "\n".join(lines) + "\n"
