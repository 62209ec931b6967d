"""Only the exact word says that a peer has all that it asked for."""

from __future__ import annotations

import pytest
import samples
from fuzz_asked import ASK_BEGAN, BEGINNING
from fuzz_rpc import JUDGE, MINING, PROBE
from fuzz_world import PLAN, VALIDATOR, Node, Script

from distributed_training.roles.service import MinerService


@pytest.mark.parametrize("word", [b"ok", b"", b"o", b"no", b"OK"])
@pytest.mark.parametrize(("method", "asking", "miner"), [("chunks", PROBE, MINING), ("began", ASK_BEGAN, BEGINNING)])
def test_another_word_than_ok_is_none(
    method: str, asking: list[bytes], miner: tuple[Node, MinerService], word: bytes
) -> None:
    node, service = miner
    node.forget()
    service._answered.clear()
    service._served.clear()
    stream = Script(JUDGE, [asking[0], word])
    end = node.answer(method, stream)
    taken = (method, PLAN.round.index, samples.key(VALIDATOR)) in service._served
    assert taken == (word == b"ok") == (end == "accepted"), end
    assert len(stream.sent) > 1, "all that it asked for was given"
