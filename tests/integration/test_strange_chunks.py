"""Chunks under a true wire root that no reducer takes: of a codec that the run does not have, or larger than may be."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ring import Ring, play

from distributed_training.averaging.codecs.base import HEAD_BYTES, Codec, Layout, Vector
from distributed_training.averaging.feedback import Encoded, FeedbackFiles, encode_vector
from distributed_training.averaging.reducing import Reduction
from distributed_training.errors import WireError
from distributed_training.protocol.merkle import digest

LIES = {
    "codec": ((99).to_bytes(HEAD_BYTES, "little"), 0, "chunk 0: of codec 99, 1 (int8) expected"),
    "bound": (np.float32(3e38).tobytes(), HEAD_BYTES, "chunk 0: a scale is negative, too small, too large"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_no_reducer_takes_is_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lie: str
) -> None:
    """Its digests are those it committed, so only what the chunks say is wrong."""
    caplog.set_level(logging.DEBUG, "distributed_training")
    data, at, named = LIES[lie]

    def encode(files: FeedbackFiles, delta: Vector, layout: Layout, codec: Codec, start: bytes) -> Encoded:
        honest = encode_vector(files, delta, layout, codec, start)
        chunks = tuple(chunk[:at] + data + chunk[at + len(data) :] for chunk in honest.contribution.chunks)
        contribution = replace(honest.contribution, chunks=chunks, digests=tuple(map(digest, chunks)))
        return replace(honest, contribution=contribution)

    honest_put = Reduction.put_own

    async def put_own(self: Reduction, *own: Any) -> None:
        with suppress(WireError):  # who lies takes its own chunks no more than others do, and sends them all the same
            await honest_put(self, *own)

    monkeypatch.setattr(Reduction, "put_own", put_own)
    names: list[str] = []

    async def story(ring: Ring) -> None:
        names.append(ring.order[1])
        object.__setattr__(ring.nodes[names[0]].parts, "encode", encode)
        await ring.settled(0, *(n for n in ring.nodes if n != names[0]))

    ring = play(tmp_path, story)
    others = [node.rounds[0] for name, node in ring.nodes.items() if name != names[0]]
    assert len({event["state_root"] for event in others}) == 1
    uid = str(ring.nodes[names[0]].uid)
    event = others[0]
    assert event["applied"] and event["credit"][uid] == 0.0
    assert [share for who, share in event["credit"].items() if who != uid] == [1.0] * 3
    refused = [r.getMessage() for r in caplog.records if "refused a stream" in r.getMessage()]
    assert any(named in line for line in refused), refused
