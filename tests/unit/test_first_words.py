"""What a node says on chain before anything else: which run it is in, and an owner which manifest and where."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from samples import RUN, commitment, key, neuron, roster

from distributed_training.chain.base import Head
from distributed_training.errors import ChainUnreachable
from distributed_training.protocol.commitments import decode_commitment, place_of
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Commitment, Field, Role, Roster
from distributed_training.roles.announcing import announce
from distributed_training.roles.parts import Parts

PUBLIC = RunManifest.model_validate(
    RUN.model_dump() | {"public": {"run_key": "", "checkpoints": "hub:org/model", "pages": ""}}
)


class Chain:
    def __init__(self, present: Commitment | None) -> None:
        self.present, self.said = present, list[Commitment | None]()

    async def head(self) -> Head:
        return Head(900, 898)

    async def roster(self, block: int) -> Roster:
        return roster(neuron(1, commitment=self.present), block=block)

    async def commit(self, fields: Sequence[Field]) -> int:
        self.said.append(decode_commitment(fields))
        return 901


async def words(
    role: Role, present: Commitment | None, manifest: RunManifest, make: type[Chain] = Chain
) -> list[Commitment | None]:
    chain = make(present)
    signer = SimpleNamespace(public_key=key(1), hotkey="5hot1")
    parts = SimpleNamespace(chain=chain, signer=signer, peer_key=key(1, "peer"), manifest=manifest)
    parts.params, parts.clock = SimpleNamespace(owner_hotkey="5hot1"), SimpleNamespace(block_s=0.01)
    await announce(cast(Parts, cast(Any, parts)), role, False, None)
    return chain.said


async def test_an_owner_announces_its_run_before_there_is_a_checkpoint() -> None:
    (said,) = await words(Role.OWNER, None, PUBLIC)
    assert said is not None and (said.first, said.run, said.place) == (PUBLIC.digest, PUBLIC.tag, "hub:org/model")
    assert said.second is None
    assert await words(Role.OWNER, said, PUBLIC) == []
    (other,) = await words(Role.OWNER, said, RUN)  # another run from the same hotkey
    assert other is not None and (other.first, other.place) == (RUN.digest, "")


async def test_a_word_that_nobody_answered_is_not_said_again_where_it_was_heard() -> None:
    class Cut(Chain):
        async def commit(self, fields: Sequence[Field]) -> int:
            self.present = decode_commitment(fields)
            if await super().commit(fields) and len(self.said) == 1:
                raise ChainUnreachable("cut")
            return 901

    (said,) = await words(Role.MINER, None, RUN, Cut)
    assert said is not None and said.run == RUN.tag


async def test_a_hotkey_that_was_in_another_run_says_so_at_once() -> None:
    before = commitment(1, Role.MINER, reduces=False, run=bytes(8))
    (said,) = await words(Role.MINER, before, RUN)
    assert said is not None and said.run == RUN.tag and said.first is None
    assert await words(Role.MINER, commitment(1, Role.MINER, reduces=False), RUN) == []


@pytest.mark.parametrize("text", ["", "hub:" + "o" * 40 + "/" + "n" * 40, "https://example.org/pages", "hub:org"])
def test_what_a_commitment_cannot_hold_is_no_place(text: str) -> None:
    assert place_of(text) == ""
