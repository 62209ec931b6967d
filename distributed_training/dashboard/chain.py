"""What the chain says of the subnet, looked at now and then. A local chain's file is copied first and never touched.

Nothing is asked of any chain but one that the run directory holds or the user named.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distributed_training.addresses import FILE
from distributed_training.dashboard.about import changed
from distributed_training.dashboard.page import NO_VERDICT, ChainSeen
from distributed_training.dashboard.site import Site
from distributed_training.errors import ChainFault, ConfigError, LocalFault, named, said
from distributed_training.operator import safety
from distributed_training.operator.standing import standings, told, word
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Roster
from distributed_training.stillness import clocks

if TYPE_CHECKING:
    from distributed_training.chain.client import BittensorChain
    from distributed_training.chain.subnet import SubnetFacts  # both load bittensor

LOCAL_S, REMOTE_S = 3.0, 60.0  # between two looks
SHARES_ROUNDS = 100  # newest rounds whose weights and incentive are kept

log = logging.getLogger(__name__)
Shares = dict[int, tuple[dict[int, dict[int, float]], dict[int, float]]]


class ChainWatch:
    """Tells a site what the chain says, in a thread of its own. What cannot be asked is asked again the next time."""

    def __init__(self, site: Site, netuid: int | None, network: str, endpoint: str | None, file: Path | None) -> None:
        """file: of a local chain, which may be the endpoint too; netuid None: that of the run's manifest."""
        if endpoint is not None and endpoint.startswith(FILE):
            file = Path(endpoint.removeprefix(FILE))
        self._site, self._netuid, self._network, self._endpoint, self._file = site, netuid, network, endpoint, file
        self._shares: Shares = {}
        self._rounds: safety.Rounds = ()
        self._looked: tuple[int, ...] | None = None
        self.trouble = ""

    def start(self) -> None:
        threading.Thread(target=lambda: asyncio.run(self._run()), name="chain", daemon=True).start()

    async def _run(self) -> None:
        await asyncio.to_thread(self._site.ready.wait)
        while not self._site.stopped:
            await self.look()
            await asyncio.to_thread(self._site.wait, REMOTE_S if self._file is None else LOCAL_S)

    async def look(self) -> None:
        """Once. What goes wrong is said in the log when it is new, and the page shows what was seen before."""
        try:
            if self._file is None:
                await self._look_at(self._endpoint)
            elif (stamp := changed(self._file, self._file.with_name(self._file.name + "-wal"))) != self._looked:
                with TemporaryDirectory(prefix="page-") as folder:
                    copy = Path(folder) / "chain.sqlite"
                    if await asyncio.to_thread(self._copy, self._file, copy):
                        await self._look_at(f"{FILE}{copy}")
                self._looked = stamp
            self.trouble = ""
        except (LocalFault, ConfigError, sqlite3.Error, OSError) as error:
            self.tell_trouble(said(error))
        except Exception as error:  # the edge: a file half made, a runtime of tomorrow; the next look may be better
            self.tell_trouble(named(error))

    @staticmethod
    def _copy(file: Path, copy: Path) -> bool:
        from distributed_training.operator.asking import local_copy  # late: it loads bittensor

        return local_copy(file, copy) is not None

    def tell_trouble(self, text: str) -> None:
        """Once in the log, and in the page."""
        if text != self.trouble:
            log.warning("the chain cannot be read: %s", text)
        self.trouble = text
        self._site.tell_chain(None, self._shares, text)

    async def _look_at(self, endpoint: str | None) -> None:
        from distributed_training.chain.subnet import subnet_facts  # late: it loads bittensor
        from distributed_training.operator.asking import asked

        manifest = self._site.about.manifest
        netuid = self._netuid if self._netuid is not None else None if manifest is None else manifest.netuid
        if netuid is None:
            return
        async with asked(self._network, endpoint, netuid) as chain:
            if manifest is not None and manifest.netuid == netuid:
                seen = await safety.look(chain, chain, manifest, self._rounds)
                facts, roster, self._rounds = seen.facts, seen.roster, seen.rounds
                judged = {"word": seen.verdict.word, "reasons": list(seen.verdict.reasons)}
                await self._look_back(chain, manifest, seen.head.finalized)
            else:
                facts = await chain.ask(lambda client: subnet_facts(client, netuid))
                roster, judged = await chain.roster(facts.block), NO_VERDICT
            weights = await chain.weights(roster.block.number)
        self._site.tell_chain(chain_seen(facts, roster, weights, judged), self._shares)

    async def _look_back(self, chain: BittensorChain, manifest: RunManifest, final: int) -> None:
        """Weights and incentive when a round was settled, of the newest rounds that the chain's node still knows."""
        timing = manifest.timing
        newest = (final - timing.map - timing.finality - timing.first_block) // timing.length
        for index in range(max(0, newest - SHARES_ROUNDS + 1), newest + 1):
            if index not in self._shares and (self._file is not None or index == newest):
                block = manifest.round(index).map_block + timing.finality
                try:
                    weights, roster = await asyncio.gather(chain.weights(block), chain.roster(block))
                except ChainFault:
                    continue
                rows = {uid: row for uid, row in weights.items() if row}
                self._shares[index] = rows, {n.uid: n.incentive for n in roster.neurons}
        self._shares = {index: row for index, row in self._shares.items() if index > newest - SHARES_ROUNDS}


def chain_seen(
    facts: SubnetFacts, roster: Roster, weights: dict[int, dict[int, float]], judged: dict[str, Any]
) -> ChainSeen:
    neurons, places = roster.neurons, standings(facts, roster)
    rows = [
        {"uid": n.uid, "stake": n.stake, "incentive": n.incentive, "dividends": n.dividends,
         "immune_blocks": places[n.uid].immune_blocks, "last_update": n.last_update, "permit": n.may_validate}
        for n in neurons
    ]  # fmt: skip
    document = {"block": roster.block.number, "price": next((s.price_tao for s in places.values()), None)}
    return ChainSeen(
        netuid=facts.netuid,
        name=facts.name,
        block=roster.block.number,
        document=document | {"uids": rows, "verdict": judged},
        verdict=judged,
        safe={uid: asdict(s) | {"word": word(s), "said": told(uid, s, facts)} for uid, s in places.items()},
        stakes={n.uid: n.stake for n in neurons},
        incentive={n.uid: n.incentive for n in neurons},
        weights={uid: row for uid, row in sorted(weights.items()) if row},
        roles={n.uid: n.commitment.role.name.lower() for n in neurons if n.commitment is not None},
        hotkeys={n.uid: n.hotkey for n in neurons},
        read_at=clocks()[0],
    )
