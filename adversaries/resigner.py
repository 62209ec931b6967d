"""Miner: sends one record under ever new signatures.

It should not harm: a record whose hash is known is not verified and written again.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from attack import Attack, Bent
from stage import run

from distributed_training.assembly import Adapters
from distributed_training.averaging.scatter import METHOD
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.network.base import Stream
from distributed_training.protocol.types import Signed
from distributed_training.protocol.wire import decode_signed, encode_signed, signing_message

CLASS = "harm"
EVIDENCE = "none"


class _Repeated(Bent):
    """Before the first true record, as many others as wanted, each on a stream of its own."""

    def __init__(self, inner: Stream, doors: Adapters, peer_key: bytes, streams: int) -> None:
        super().__init__(inner)
        self._doors, self._peer_key, self._streams, self._request = doors, peer_key, streams, b""

    async def write(self, frame: bytes, timeout_s: float) -> None:
        if self.written == 0:
            self._request = frame
        elif self.written == 1:
            for _ in range(self._streams):
                with suppress(NetworkFault, PeerFault):
                    await self._again(frame, timeout_s)
        await super().write(frame, timeout_s)

    async def _again(self, signed: bytes, timeout_s: float) -> None:
        body = decode_signed(signed).body
        fresh = encode_signed(Signed(body, self._doors.signer.sign(signing_message(body))))
        stream = await self._doors.transport.open(self._peer_key, METHOD, timeout_s)
        try:
            await stream.write(self._request, timeout_s)
            await stream.write(fresh, timeout_s)
        finally:
            await stream.close()


@dataclass(kw_only=True, eq=False)
class Resigner(Attack):
    streams: int = 20  # to each reducer, beside the honest one

    async def open(self, peer_key: bytes, method: str, timeout_s: float, doors: Adapters) -> Stream:
        stream = await super().open(peer_key, method, timeout_s, doors)
        return cast(Stream, _Repeated(stream, doors, peer_key, self.streams)) if method == METHOD else stream


if __name__ == "__main__":
    sys.exit(run(Resigner))
