"""Work records of the newest rounds, checked once: n slices that include n senders take n checks and n downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress

from distributed_training.averaging.contribution import check_work
from distributed_training.averaging.members import Included
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


@dataclass(frozen=True, slots=True)
class _Round:
    """Under one state root."""

    # Whose -> record and its signed bytes; None: not in the store, or damaged there.
    records: dict[_Key, tuple[WorkRecord, bytes] | None] = field(default_factory=dict)
    whole: dict[tuple[bytes, Included], Mapping[bytes, WorkRecord]] = field(default_factory=dict)  # by plan and senders


class WorkBook:
    """What this node knows of its peers' work records, as the chain names them. One per node, for one event loop."""

    def __init__(self, manifest: RunManifest, verify: Verify, store: RoundStore) -> None:
        self._manifest, self._verify, self._store = manifest, verify, store
        self._rounds: dict[tuple[int, bytes], _Round] = {}  # by round and state root
        self._asked: dict[_Key, asyncio.Event] = {}  # set when the stream that asked has ended

    def get(self, plan: RoundPlan, candidate: Candidate) -> WorkRecord | None:
        """The checked record, from memory or from our own disk."""
        known, key = self._known(plan).records, _key(candidate)
        if key not in known:
            known[key] = self._load(plan, candidate)
        found = known[key]
        return None if found is None else found[0]

    def take(self, plan: RoundPlan, candidate: Candidate, signed: bytes) -> WorkRecord:
        """Check a record that a peer sent, keep it, and serve it to others. Raises WireError with the reason.

        A body that was checked is known by its bytes, under whatever signature it comes again: fresh signatures cost
        who makes them, not us.
        """
        known, key = self._known(plan).records, _key(candidate)
        held = known.get(key)
        if held is not None and held[1][SIGNATURE_BYTES:] == signed[SIGNATURE_BYTES:]:
            return held[0]
        record = check_work(decode_signed(signed), candidate, plan, self._manifest, self._verify)
        self._store.put_work(plan.round.index, candidate.record_hash, signed)
        known[key] = record, signed
        return record

    def lacking(self, plan: RoundPlan, included: Included) -> list[Candidate]:
        """Those of these senders whose records we do not hold."""
        if (plan.tag, included) in self._known(plan).whole:
            return []
        return [c for c in compress(plan.candidates, included) if self.get(plan, c) is None]

    def of(self, plan: RoundPlan, included: Included) -> Mapping[bytes, WorkRecord]:
        """The records of these senders, by public key, as far as we hold them. Nearly all slices of a round include the
        same ones: they share one mapping, and nobody looks for each record of each slice."""
        known = self._known(plan)
        if (found := known.whole.get((plan.tag, included))) is not None:
            return found
        members = tuple(compress(plan.candidates, included))
        works = {c.public_key: work for c in members if (work := self.get(plan, c)) is not None}
        if len(works) == len(members):
            known.whole[plan.tag, included] = works
        return works

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

    def _known(self, plan: RoundPlan) -> _Round:
        key = (plan.round.index, plan.state_root)
        if key not in self._rounds:
            self._rounds[key] = _Round()
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
