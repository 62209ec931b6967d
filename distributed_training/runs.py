"""What a chain offers to train: `python -m distributed_training.runs --help`. Needs no wallet and writes nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distributed_training.settings.arguments import Parser, chain_arguments, whole
from distributed_training.settings.entry import run_main

if TYPE_CHECKING:  # it loads bittensor, and a wrong flag should not wait for that
    from distributed_training.chain.subnet import SubnetFacts
    from distributed_training.finding.choice import SeenRun

    Offer = tuple[SubnetFacts, tuple[SeenRun, ...]]

DESCRIPTION = """\
List the runs that hotkeys announce on a chain, by subnet: who announced them and where their files lie, who is in them,
when they last said something; and whether the subnet pays, and what a place on it costs.
"""
EXAMPLES = """\
  python -m distributed_training.runs --netuid 38
  python neurons/miner.py --netuid 38 --run DIGITS ...
                          joins one; without --run that of most validator stake
"""


def parser() -> Parser:
    made = Parser(prog="python -m distributed_training.runs", description=DESCRIPTION, examples=EXAMPLES)
    subnet = "only this subnet, whether it has runs or not (default: all that have)"
    made.add_argument("--netuid", type=whole(1, 65535, "a subnet"), metavar="N", help=subnet)
    chain_arguments(made, "finney")
    return made


async def look(network: str, endpoint: str | None, netuid: int | None) -> list[Offer]:
    """Raises ConfigError for a subnet that is not there, ChainUnreachable."""
    from distributed_training.chain.subnet import WHOLE_CHAIN_S, subnet_facts, talking
    from distributed_training.finding.choice import seen_runs
    from distributed_training.operator.asking import asked

    async with asked(network, endpoint, netuid or 0) as chain:
        netuids = [netuid] if netuid else await chain.ask(talking, WHOLE_CHAIN_S)
    offers: list[Offer] = []
    for number in netuids:
        async with asked(network, endpoint, number) as chain:
            facts = await chain.ask(lambda client, number=number: subnet_facts(client, number))
            runs = seen_runs(await chain.roster(facts.block), facts.owner_hotkey)
            offers.append((facts, runs))
    return offers


def show(offers: Sequence[Offer]) -> None:
    """What is long comes last in a row; of those who announce a run the subnet's owner first."""
    row = "  {:<17} {:>6} {:>10} {:>11}  {:<24} {}".format
    for facts, runs in offers:
        print(f"subnet {facts.netuid} ({facts.name}), owner {facts.owner_hotkey}: {facts.pays}")
        print(f"  a place costs {facts.price}; {facts.num_uids} of {facts.max_uids} are taken")
        if runs:
            print(row("run", "miners", "validators", "their stake", "last word", "announced by, files at"))
        for run in runs:
            by = sorted(run.announced, key=lambda a: (a.neuron.hotkey != facts.owner_hotkey, a.neuron.uid))
            who = ", ".join(f"uid {a.neuron.uid}" for a in by) + (" (the owner)" if run.by_subnet_owner else "")
            place = next((a.place for a in by if a.place), "its nodes")
            blocks = max(0, facts.block - max(neuron.commitment_block or 0 for neuron, _ in run.members))
            ago = f"{blocks * facts.block_s / 60:.0f} min, {blocks} blocks ago"
            name, stake = (by[0].digest if by else run.tag).hex()[:16], f"{run.stake:,.0f}"
            print(row(name, run.miners, run.validators, stake, ago, f"{who or 'nobody'}, {place}"))
    if not any(runs for _, runs in offers):
        print("no hotkey there announces a run or is in one")


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    show(asyncio.run(look(options.network, options.endpoint, options.netuid)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
