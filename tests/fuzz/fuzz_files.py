"""The exchange of a run's files as fuzz targets: whoever asks is a stranger, and so is whoever answers."""

from __future__ import annotations

import hashlib
from typing import Any

import fuzz_world as world
from fuzz_engine import ACCEPTED, Target, stage
from fuzz_pack import cut_frames, pack_frames
from fuzz_world import HOSTILE, PEER_ERRORS, Node, Script

from distributed_training.finding.content import Wanted
from distributed_training.finding.serving import _NUMBER, METHOD, FileService, PeerSource

FILE = bytes(range(256)) * 40
SHA256 = hashlib.sha256(FILE).digest()
WANTED = Wanted("pages.bin", SHA256, 2 * len(FILE))
HOLDER, ASKER = Node(), Node()


async def _serve() -> FileService:
    return FileService(HOLDER.peers, {SHA256: memoryview(FILE)})


SERVICE = world.run(_serve())


def check_serve_file(data: bytes) -> str:
    stream = Script(HOSTILE.peer_key, cut_frames(data))
    end = HOLDER.answer(METHOD, stream)
    if len(stream.sent) > 1:
        assert FILE.endswith(b"".join(stream.sent[1:])), "something else than the rest of the file was given"
    return "not held" if end == ACCEPTED and not any(stream.sent[0]) else end


def check_fetch_file(data: bytes) -> str:
    ASKER.door.next = Script(HOSTILE.peer_key, cut_frames(data))
    source: Any = PeerSource(ASKER.door, HOSTILE.peer_key, "uid 1")  # type: ignore[arg-type]

    async def read() -> int:
        return sum([len(piece) async for piece in source.pieces(WANTED, 0)])

    try:
        assert world.run(read()) <= WANTED.max_bytes
    except PEER_ERRORS as error:
        return stage(error)
    return ACCEPTED


ASKED = [_NUMBER.pack(at) + SHA256[:size] for at in (0, 10_000, 1 << 40) for size in (8, 32)]
GIVEN = [_NUMBER.pack(len(FILE)), FILE[:5_000], FILE[5_000:]]
FILES = (
    Target("serve_file", tuple(pack_frames([asked]) for asked in ASKED), check_serve_file, (), 100, 64 * 1024),
    Target("fetch_file", (pack_frames(GIVEN), pack_frames([GIVEN[0]])), check_fetch_file, (), 100, 64 * 1024),
)
