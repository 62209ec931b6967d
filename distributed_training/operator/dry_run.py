"""`neurons/validator.py --dry-run`: the weights that a validator's own journal gives now. Reads only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from distributed_training.access import connect
from distributed_training.journal import Journal
from distributed_training.preflight import run_manifest
from distributed_training.roles.auditing.examiner import scored
from distributed_training.roles.auditing.permit import permit_lacks
from distributed_training.settings.config import NodeConfig


async def print_weights(config: NodeConfig) -> int:
    """Print one line per scored uid; works beside the running validator, whose journal it reads. Exit code 0."""
    async with AsyncExitStack() as stack:
        manifest = run_manifest(config)
        chain, _, me = await connect(config, stack)
        roster = await chain.roster((await chain.head()).finalized)
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
        shown, weights = scored(cards, last, roster, manifest.scoring)
        sys.stdout.write(table(me.uid, last, shown, weights))
    return 0


def table(uid: int, round_index: int, shown: Mapping[int, Mapping[str, Any]], weights: Mapping[int, float]) -> str:
    lines = [f"validator uid {uid} would set these weights after round {round_index} (dry run, nothing is written):"]
    lines.append("  uid  weight       S      G      I      B  why")
    for target in sorted(shown):
        t = shown[target]
        terms = f"{t['S']:7.4f} {t['G']:6.3f} {t['I']:6.3f} {t['B']:6.3f}"
        lines.append(f"  {target:3d}  {weights.get(target, 0.0):6.4f} {terms}  {t['reason'] or t['note']}")
    return "\n".join(lines) + "\n"
