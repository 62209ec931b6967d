"""Work records of the newest rounds, checked once: n slices that include n senders take n checks and n downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from distributed_training.averaging.contribution import check_work
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Verify
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Candidate, WorkRecord
from distributed_training.protocol.wire import SIGNATURE_BYTES, decode_signed

_KEPT_ROUNDS = 2

_Key = tuple[bytes, bytes]  # public key and record hash: anybody can commit to the hash of somebody else's record


def _key(candidate: Candidate) -> _Key:
    return candidate.public_key, candidate.record_hash


class WorkBook:
    """What this node knows of its peers' work records, as the chain names them. One per node, for one event loop."""

    def __init__(self, manifest: RunManifest, verify: Verify, store: RoundStore) -> None:
        self._manifest, self._verify, self._store = manifest, verify, store
        # (round, state root) -> whose -> record and its signed bytes; None: not in the store, or damaged there
        self._rounds: dict[tuple[int, bytes], dict[_Key, tuple[WorkRecord, bytes] | None]] = {}
        self._asked: dict[_Key, asyncio.Event] = {}  # set when the stream that asked has ended

    def get(self, plan: RoundPlan, candidate: Candidate) -> WorkRecord | None:
        """The checked record, from memory or from our own disk."""
        known = self._known(plan)
        if _key(candidate) not in known:
            known[_key(candidate)] = self._load(plan, candidate)
        found = known[_key(candidate)]
        return None if found is None else found[0]

    def take(self, plan: RoundPlan, candidate: Candidate, signed: bytes) -> WorkRecord:
        """Check a record that a peer sent, keep it, and serve it to others. Raises WireError with the reason.

        A body that was checked is known by its bytes, under whatever signature it comes again: fresh signatures cost
        who makes them, not us.
        """
        held = self._known(plan).get(_key(candidate))
        if held is not None and held[1][SIGNATURE_BYTES:] == signed[SIGNATURE_BYTES:]:
            return held[0]
        record = check_work(decode_signed(signed), candidate, plan, self._manifest, self._verify)
        self._store.put_work(plan.round.index, candidate.record_hash, signed)
        self._known(plan)[_key(candidate)] = record, signed
        return record

    def lacking(self, plan: RoundPlan, members: Iterable[Candidate]) -> list[Candidate]:
        """Those whose records we do not hold."""
        return [c for c in members if self.get(plan, c) is None]

    # --- one question at a time ---------------------------------------------------------------------

    def claim(self, wanted: Iterable[Candidate]) -> list[Candidate]:
        """Those that nobody is being asked for; from now on we are asking. `release` them afterwards."""
        mine = [c for c in wanted if _key(c) not in self._asked]
        self._asked |= {_key(c): asyncio.Event() for c in mine}
        return mine

    def release(self, asked: Collection[Candidate]) -> None:
        """Whether they came or not: wake whoever waits for them."""
        for candidate in asked:
            self._asked.pop(_key(candidate)).set()

    async def others(self, wanted: Iterable[Candidate], timeout_s: float) -> None:
        """Until the streams that ask for these have ended, or the time is over."""
        events = [self._asked[_key(c)] for c in wanted if _key(c) in self._asked]
        try:
            async with asyncio.timeout(timeout_s):
                for event in events:
                    await event.wait()
        except TimeoutError:
            pass

    def _known(self, plan: RoundPlan) -> dict[_Key, tuple[WorkRecord, bytes] | None]:
        key = (plan.round.index, plan.state_root)
        if key not in self._rounds:
            self._rounds[key] = {}
            while len(self._rounds) > _KEPT_ROUNDS:
                del self._rounds[next(k for k in self._rounds if k != key)]
        return self._rounds[key]

    def _load(self, plan: RoundPlan, candidate: Candidate) -> tuple[WorkRecord, bytes] | None:
        signed = self._store.work(plan.round.index, candidate.record_hash)
        if signed is None:
            return None
        try:
            return check_work(decode_signed(signed), candidate, plan, self._manifest, self._verify), signed
        except WireError:
            return None
