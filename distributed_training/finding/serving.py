"""A run's files between peers: manifest, page manifest and tokeniser, by sha256, for whoever is about to join.

    asker                                            holder
    "file": u64 offset, sha256 or its first bytes ->
                                                  <- u64 bytes of the whole file, 0: not held
                                                  <- pieces from the offset on, until the file ends or the budget does

Who asks checks the whole; who answers need not know who asks. Peers of the roster have their own budget; everybody
else, and whoever is about to join is one, shares a small one: it answers with less, and another node gives the rest.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import numpy as np

from distributed_training.errors import WireError
from distributed_training.finding.content import Absent, Wanted
from distributed_training.network.base import Stream, Transport, closing, deadline
from distributed_training.network.budgets import Bucket
from distributed_training.network.peers import PeerBook
from distributed_training.network.places import Places
from distributed_training.protocol.manifest import RunManifest

METHOD = "file"
PIECE_BYTES = 256 << 10
MAX_STREAMS, MAX_STREAMS_PER_PEER = 4, 2  # at a time; each holds one piece in memory
CONTROL_S, PIECE_S, STREAM_S = 10.0, 30.0, 60.0  # a stream is one turn of its asker, who comes back for the rest
# Half of what the transport grants to strangers (`network.budgets`): the other half is for saying who one is.
STRANGERS_BYTES, STRANGERS_BYTES_PER_S = 2 << 20, 128 << 10
_STRANGERS = b""  # peer keys cost nothing: who is on no roster shares the places of one peer
_NUMBER = struct.Struct("<Q")
_PREFIX_BYTES = range(8, 33)


class FileService:
    """Gives `files` (by sha256) to whoever asks. Make it in the transport's loop."""

    def __init__(self, peers: PeerBook, files: Mapping[bytes, memoryview]) -> None:
        self._peers, self._files = peers, dict(files)
        self._strangers = Bucket(STRANGERS_BYTES, STRANGERS_BYTES_PER_S)
        self._places = Places(MAX_STREAMS, MAX_STREAMS_PER_PEER)
        peers.transport.serve(METHOD, self._on_file)

    async def _on_file(self, stream: Stream) -> None:
        request = await stream.read(_NUMBER.size + 32, CONTROL_S)
        prefix = request[_NUMBER.size :]
        if len(prefix) not in _PREFIX_BYTES:
            raise WireError("file: malformed request")
        (offset,) = _NUMBER.unpack_from(request)
        held = next((held for sha256, held in self._files.items() if sha256.startswith(prefix)), None)
        if held is None:
            await stream.write(_NUMBER.pack(0), CONTROL_S)
            return
        who = stream.peer_key if self._peers.knows(stream.peer_key) else _STRANGERS
        async with self._places.place(who) as free, deadline(STREAM_S, "file"):
            if free:  # else the stream is closed without a word
                await self._give(stream, held, offset)

    async def _give(self, stream: Stream, held: memoryview, offset: int) -> None:
        await stream.write(_NUMBER.pack(len(held)), CONTROL_S)
        for start in range(offset, len(held), PIECE_BYTES):
            piece = bytes(held[start : start + PIECE_BYTES])
            if not self._peers.knows(stream.peer_key) and not self._strangers.take(len(piece)):
                return  # others give the rest, or we do, later
            await self._peers.uplink.give(stream, piece, PIECE_S)


def run_files(manifest: RunManifest, pages: Path, tokenizer: Path) -> dict[bytes, memoryview]:
    """What a node of the run can give. The two files stay as they are while it runs; they are mapped, not read."""
    data, files = manifest.data, {manifest.digest: memoryview(manifest.canonical())}
    files[bytes.fromhex(data.pages_sha256)] = np.memmap(pages, mode="r").data
    if data.tokenizer == "file":
        files[bytes.fromhex(data.tokenizer_sha256)] = np.memmap(tokenizer, mode="r").data
    return files


class PeerSource:
    """`content.Source`: one node of the run."""

    def __init__(self, transport: Transport, peer_key: bytes, name: str) -> None:
        """The transport has learnt where the peer listens."""
        self._transport, self._peer_key, self.name = transport, peer_key, name

    async def pieces(self, wanted: Wanted, offset: int) -> AsyncGenerator[bytes]:
        async with closing(self._transport.open(self._peer_key, METHOD, CONTROL_S)) as stream:
            await stream.write(_NUMBER.pack(offset) + wanted.prefix, CONTROL_S)
            answer = await stream.read(_NUMBER.size, CONTROL_S)
            if len(answer) != _NUMBER.size:
                raise WireError("answers what nobody answers")
            (size,) = _NUMBER.unpack(answer)
            if size == 0:
                raise Absent("does not have it")
            if size > wanted.max_bytes:
                raise WireError(f"has {size:,} bytes under that name, at most {wanted.max_bytes:,} are possible")
            while offset < size:
                piece = await stream.read(min(PIECE_BYTES, size - offset), PIECE_S)
                if not piece:
                    raise WireError("sends pieces without bytes")
                offset += len(piece)
                yield piece
