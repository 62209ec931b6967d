"""What the chain that was named says of the subnet, and of who speaks for the run."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distributed_training.protocol.manifest import RunManifest

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts

# What loads bittensor is imported where it is used: a wrong flag should not wait for that.


@dataclass(frozen=True, slots=True)
class Answer:
    facts: SubnetFacts
    speaker: str

    def lines(self, manifest: RunManifest) -> list[str]:
        from distributed_training.recipes.subnet_fit import subnet_notes

        return [*subnet_notes(manifest, self.facts), self.speaker]


def ask_chain(args: argparse.Namespace, netuid: int, run_key: str | None) -> Answer | None:
    """None: no chain was named. Raises ConfigError, ChainFault."""
    if args.network is None and args.endpoint is None:
        return None
    from distributed_training.chain.keys import hotkey_address
    from distributed_training.chain.subnet import subnet_facts
    from distributed_training.operator.asking import asked

    address = hotkey_address(bytes.fromhex(run_key)) if run_key else ""

    async def ask() -> tuple[SubnetFacts, int | None]:
        async with asked(args.network or "local", args.endpoint, netuid) as chain:
            facts = await chain.ask(lambda client: subnet_facts(client, netuid))
            if not address:
                return facts, None
            return facts, await chain.ask(lambda client: client.neurons.uid(hotkey_ss58=address, netuid=netuid))

    facts, uid = asyncio.run(ask())
    if not address:
        return Answer(
            facts, "nobody speaks for this run: give --wallet.hotkey, the owner's, or nobody finds checkpoints"
        )
    owner = "the" if address == facts.owner_hotkey else "NOT the"
    place = f"uid {uid}" if uid is not None else f"NOT registered on subnet {netuid}, so it can announce nothing yet"
    return Answer(facts, f"the run key {address} is {owner} hotkey of the subnet's owner, {place}")
