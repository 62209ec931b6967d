"""What final blocks said about rounds, kept: a node that starts again needs no state that others have dropped."""

from __future__ import annotations

import json
import logging
import zlib
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from distributed_training.chain.base import Chain, Head
from distributed_training.chain.patient import PatientChain
from distributed_training.errors import ChainFault, ChainReplaced, LocalFault
from distributed_training.journal import Journal
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.commitments import decode_commitment, encode_commitment
from distributed_training.protocol.sections import TimingSection
from distributed_training.protocol.types import BlockRef, Field, Neuron, Roster

KEPT_ROUNDS = 8

log = logging.getLogger(__name__)


class JournalledChain(PatientChain):
    """PatientChain that asks nobody again for the named blocks of a round once they are final. Make it with `begin`."""

    def __init__(self, chain: Chain, block_s: float, journal: Journal, timing: TimingSection) -> None:
        super().__init__(chain, block_s)
        self._journal, self._timing, self._final = journal, timing, -1
        self._unkept = Ongoing(log, "blocks are not kept in the journal", "blocks are kept in the journal again")

    @classmethod
    async def begin(cls, chain: Chain, block_s: float, journal: Journal, timing: TimingSection) -> JournalledChain:
        """Raises ChainReplaced when the chain is not the one of which the journal tells."""
        made = cls(chain, block_s, journal, timing)
        hashes = journal.final_hashes()
        if 1 not in hashes:
            with suppress(LocalFault):  # a later start does it
                journal.save_final(1, await PatientChain.block_hash(made, 1), b"", oldest=0)
        for block, known in sorted(hashes.items()):
            with suppress(ChainFault):  # it is not there (yet), or dropped: that says nothing
                if (found := await PatientChain.block_hash(made, block)) != known:
                    raise ChainReplaced(
                        f"this is not the chain of this node's journal: block {block} had the hash 0x{known.hex()[:12]}"
                        f", here it is 0x{found.hex()[:12]}; use the chain of before (--subtensor.chain_endpoint), or "
                        "a new --run-dir for this one"
                    )
        return made

    async def head(self) -> Head:
        head = await super().head()
        self._final = head.finalized
        return head

    async def block_hash(self, number: int) -> bytes:
        kept = self._journal.load_final(number)
        if kept is not None:
            return kept[0]
        final, found = self._final, await super().block_hash(number)
        self._keep(final, number, found, b"")
        return found

    async def roster(self, block: int) -> Roster:
        kept = self._journal.load_final(block)
        if kept is not None and kept[1]:
            return Roster(BlockRef(block, kept[0]), tuple(map(_neuron, json.loads(zlib.decompress(kept[1])))))
        final, roster = self._final, await super().roster(block)
        said = zlib.compress(json.dumps([_row(n) for n in roster.neurons]).encode())
        self._keep(final, block, roster.block.hash, said)
        return roster

    def _keep(self, final: int, block: int, hash_: bytes, roster: bytes) -> None:
        """final: as known before the block was asked for; an answer under way may be of a fork that is gone by now."""
        t = self._timing
        named = {-t.roster_lead, t.commit, t.output, t.output + t.roster_lead, t.map}
        if block > final or (block - t.first_block) % t.length not in {offset % t.length for offset in named}:
            return
        try:
            self._journal.save_final(block, hash_, roster, oldest=block - KEPT_ROUNDS * t.length)
            self._unkept.end()
        except LocalFault as fault:
            self._unkept.begin(fault)


def _row(neuron: Neuron) -> dict[str, Any]:
    fields = [] if neuron.commitment is None else encode_commitment(neuron.commitment)
    said = [[field.kind, field.data.hex()] for field in fields]
    keys = {"public_key": neuron.public_key.hex(), "coldkey": neuron.coldkey.hex()}
    return {**asdict(neuron), **keys, "commitment": said}


def _neuron(row: dict[str, Any]) -> Neuron:
    fields = [Field(kind, bytes.fromhex(data)) for kind, data in row["commitment"]]
    address = None if row["address"] is None else (row["address"][0], row["address"][1])
    keys = {name: bytes.fromhex(row[name]) for name in ("public_key", "coldkey")}
    return Neuron(**{**row, **keys, "address": address, "commitment": decode_commitment(fields)})
