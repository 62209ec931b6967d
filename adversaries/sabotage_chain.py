"""A chain client that strikes, or lies, at a commitment. Reads and everything else are the real one's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sabotage import Sabotage

from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.chain.base import Chain, Head, Signer
from distributed_training.protocol.commitments import decode_commitment, encode_commitment
from distributed_training.protocol.types import Commitment, Field, Role, Signed
from distributed_training.protocol.wire import (
    decode_output,
    decode_signed,
    encode_output,
    encode_signed,
    record_hash,
    signing_message,
)

OTHER_BYTES = hashlib.sha256(b"other bytes").digest()


class SaboteurChain:
    """`chain.base.Chain` around another. `folder` is the node's own: its kept outputs are where a false one goes."""

    def __init__(self, inner: Chain, sabotage: Sabotage, signer: Signer, folder: Path) -> None:
        self._inner, self._sabotage, self._signer, self._folder = inner, sabotage, signer, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def head(self) -> Head:
        head = await self._inner.head()
        self._sabotage.block = head.number
        return head

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        commitment = decode_commitment(fields)
        if commitment is None or commitment.role is Role.OWNER:
            return await self._inner.commit(fields, until)
        if commitment.role is Role.VALIDATOR:
            return await self._commit_map(commitment, until)
        if commitment.second_round is None:
            self._sabotage.reach("before-commit", commitment.first_round)
            return await self._inner.commit(fields, until)
        return await self._commit_output(commitment, until)

    async def _commit_map(self, commitment: Commitment, until: int | None) -> int:
        self._sabotage.reach("before-map", commitment.second_round)
        if self._sabotage.lies("before-map", commitment.second_round):
            commitment = replace(commitment, second=b"\xff" * 32)
        return await self._inner.commit(encode_commitment(commitment), until)

    async def _commit_output(self, commitment: Commitment, until: int | None) -> int:
        round_index = commitment.second_round
        if self._sabotage.lies("reducing", round_index):
            commitment = replace(commitment, second=self._false_output(commitment))
        self._sabotage.reach("before-output", round_index)
        if self._sabotage.lies("before-output", round_index):
            commitment = replace(commitment, second=OTHER_BYTES)
        block = await self._inner.commit(encode_commitment(commitment), until)
        self._sabotage.reach("after-output", round_index)
        return block

    def _false_output(self, commitment: Commitment) -> bytes:
        """A signed output record that names a stranger among its senders, kept where it will be served from."""
        store, round_index = RoundStore(self._folder), commitment.second_round
        assert round_index is not None and commitment.second is not None
        stored = store.output(round_index, commitment.second)
        assert stored is not None, "a miner keeps its output before it commits the hash"
        record = decode_output(decode_signed(stored.record).body)
        senders = (hashlib.sha256(b"a stranger").digest(), *record.senders[1:])
        body = encode_output(replace(record, senders=senders))
        signed = encode_signed(Signed(body, self._signer.sign(signing_message(body))))
        store.put_output(round_index, record_hash(body), StoredOutput(signed, stored.chunks))
        return record_hash(body)
