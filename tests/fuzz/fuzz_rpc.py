"""Every exchange between nodes as a fuzz target: hostile askers at our services, hostile answers to our questions.

An input is one byte of flags and the frames that the hostile side says. The flags let it do what a registered liar
can: put the hash of its own bytes on chain, sign them, and make digests and roots fit the chunks it sends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fuzz_world as world
import numpy as np
import samples
from fuzz_engine import ACCEPTED, Target, stage
from fuzz_pack import cut_frames, pack_frames
from fuzz_world import HOSTILE, MANIFEST, NUMBER, PLAN, ROSTER, SENDERS, SIGNATURE, US, Node, Script, committed, signed

from distributed_training.averaging import scatter
from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.codecs.int8 import INT8, parse_chunk
from distributed_training.averaging.combine import reduce_slice
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import StoredOutput
from distributed_training.errors import WireError
from distributed_training.network.base import Traffic
from distributed_training.network.frames import FrameStream
from distributed_training.protocol.merkle import Tree, digest, merkle_root
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.wire import (
    decode_output,
    decode_signed,
    decode_work,
    encode_log,
    encode_output,
    encode_request,
    encode_work,
    record_hash,
)
from distributed_training.roles.auditing.probe import Prober
from distributed_training.roles.chunks import drawn_chunks
from distributed_training.roles.service import HeldWork, LogService, MinerService, push_log

# Flags: its hash is on chain; digests, roots and norms fit the chunks; it says who it is; its record is signed.
SEALED, FITTING, KNOWN, SIGNED = 1, 2, 4, 8
SPEC = PLAN.slices[0]
LAYOUT = PLAN.layout


class _Recorder(Script):
    """Keeps what our own side says, and answers what it waits for."""

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        return b"ok"


def said_by(work: Any) -> list[bytes]:
    """The frames that one of our own clients writes; `work` gets the peer book to speak through."""
    node, stream = Node(), _Recorder(HOSTILE.peer_key, ())
    node.peers.public_key, node.peers._binding = HOSTILE.public_key, world.BINDING
    node.door.next = stream
    world.run(work(node.peers))
    return list(stream.sent)


def pack(flags: int, frames: list[bytes]) -> bytes:
    return bytes([flags]) + pack_frames(frames)


def cut(data: bytes, asker: bytes | None = HOSTILE.public_key, record: int = 1) -> tuple[int, list[bytes]]:
    """Flags and frames. `asker`: whose request the first frame is, None: an answer; `record`: which frame is signed."""
    flags, frames = (data[0] if data else 0), cut_frames(data[1:])
    if flags & KNOWN and frames and asker is not None:
        frames[0] = encode_request(asker, world.BINDING, frames[0][96:])
    if flags & SIGNED and len(frames) > record:
        frames[record] = SIGNATURE + frames[record][64:]
    return flags, frames


# --- scatter -------------------------------------------------------------------------------------

OWN = OwnWork(SENDERS.made[HOSTILE.public_key], signed(NUMBER))
SCATTER = said_by(lambda peers: scatter.send_slice(peers, HOSTILE, SPEC, PLAN, OWN, 1.0, 5.0))


def fitted(frames: list[bytes]) -> list[bytes]:
    """Digests of the chunks that are sent, their root in the record, and their norms where they have one."""
    places = range(SPEC.first_chunk, SPEC.last_chunk)
    record, digests = decode_work(frames[1][64:]), list(OWN.contribution.digests)
    norms = list(record.chunk_norms)
    for c, data in zip(places, frames[3:], strict=False):
        digests[c] = digest(data)
        if c < len(norms):
            try:
                norms[c] = parse_chunk(data, LAYOUT, c).norm()
            except WireError:
                pass
    tree = Tree(digests)
    record = replace(record, wire_root=tree.root, chunk_norms=tuple(norms))
    return [frames[0], frames[1][:64] + encode_work(record), tree.show(places), *frames[3:]]


REDUCER = Node()
REDUCER.open_reduction()


def check_scatter(data: bytes) -> str:
    flags, frames = cut(data)
    if flags & FITTING and len(frames) > 2:
        try:
            frames = fitted(frames)
        except WireError:
            pass  # the record is broken: refused below
    plan = committed(PLAN, HOSTILE.public_key, frames[1][64:]) if flags & SEALED and len(frames) > 1 else PLAN
    reduction: Any = REDUCER.forget(plan).butterfly._reduction
    end = REDUCER.answer(scatter.METHOD, Script(HOSTILE.peer_key, frames))
    _check_inbox(plan, reduction.own)
    return end


def _check_inbox(plan: RoundPlan, inbox: Any) -> None:
    """Whatever was taken is what was declared, and can be reduced."""
    for key, chunks in inbox.chunks.items():
        for chunk, body in chunks.items():
            assert np.isfinite(body.decode()).all()
            assert body.norm() == inbox.works[key].chunk_norms[chunk]
    if HOSTILE.public_key in inbox.chunks:
        output = reduce_slice(plan, SPEC, inbox.chunks, dict(inbox.works), MANIFEST)
        assert all(np.isfinite(chunk.decode()).all() for chunk in output.chunks)


# --- slice ---------------------------------------------------------------------------------------


def _slices() -> Any:
    return samples.reduced(SENDERS)


OUTPUT = _slices()[0]
BODY = encode_output(OUTPUT.record)
STORED = StoredOutput(SIGNATURE + BODY, tuple(chunk.data for chunk in OUTPUT.chunks))
OUTPUT_HASH = record_hash(BODY)


def holder() -> Node:
    """A node that keeps slice 0 with its work records, on disk."""
    node = Node(store=world.RoundStore(world.FOLDER / "holder"))
    for candidate in PLAN.candidates:
        node.store.put_work(PLAN.round.index, candidate.record_hash, signed(candidate.public_key[0]))
    node.store.put_output(PLAN.round.index, OUTPUT_HASH, STORED)
    return node


HOLDER, ASKER = holder(), Node()
ASKED = encode_request(
    HOSTILE.public_key, world.BINDING, PLAN.round.index.to_bytes(4, "little") + OUTPUT_HASH
)  # as gather asks
EVERYTHING = b"\1" + bytes([(1 << len(PLAN.candidates)) - 1])
HELD = Script(HOSTILE.peer_key, [ASKED, EVERYTHING])
HOLDER.answer("slice", HELD)
ANSWERS = list(HELD.sent)


def check_serve_slice(data: bytes) -> str:
    _, frames = cut(data)
    stream = Script(HOSTILE.peer_key, frames)
    end = HOLDER.forget().answer("slice", stream)
    return "answered, then " + end if stream.sent and end != ACCEPTED else end


def check_fetch_slice(data: bytes) -> str:
    """A hostile holder, who is the reducer as well when the flags say so: its own bytes are on chain."""
    flags, frames = cut(data, None, 0)
    if flags & FITTING and len(frames) >= 2:
        frames = _fitting_output(frames)
    body = frames[0][64:] if flags & SEALED and frames else BODY
    node = ASKER.forget()
    node.door.next = Script(HOSTILE.peer_key, frames)
    output = world.run(node.butterfly.slices.fetch(HOSTILE.peer_key, PLAN, SPEC.index, SPEC.reducer, record_hash(body)))
    assert all(np.isfinite(chunk.decode()).all() for chunk in output.chunks)
    assert encode_output(output.record) == body
    return ACCEPTED


def _fitting_output(frames: list[bytes]) -> list[bytes]:
    """The record's root over the chunks that come with it."""
    try:
        record = decode_output(frames[0][64:])
    except WireError:
        return frames
    pieces = b"".join(frames[1 + len(PLAN.candidates) :])
    chunks, at = [], 0
    for c in range(SPEC.first_chunk, SPEC.last_chunk):
        chunks.append(pieces[at : at + INT8.chunk_bytes(LAYOUT, c)])
        at += INT8.chunk_bytes(LAYOUT, c)
    record = replace(record, output_root=merkle_root([digest(c) for c in chunks]))
    return [frames[0][:64] + encode_output(record), *frames[1:]]


def check_send_slice(data: bytes) -> str:
    """A hostile reducer: what it says while we send, and after."""
    _, frames = cut(data, None)
    node = ASKER.forget()
    node.door.next = Script(HOSTILE.peer_key, frames)

    async def deliver() -> bool:
        stream = await scatter.send_slice(node.peers, HOSTILE, SPEC, PLAN, OWN, 1.0, 5.0)
        return await scatter.until_done(stream, 1.0, lambda: 5.0)

    return ACCEPTED if world.run(deliver()) else "not done"


# --- logs and probes -----------------------------------------------------------------------------

LOG = encode_log((samples.key(1),), samples.STEPS)
PUSHED = said_by(lambda peers: push_log(peers, HOSTILE.peer_key, PLAN.round.index, signed(NUMBER), LOG, 5.0))
PROBE = [
    encode_request(samples.key(world.VALIDATOR), world.BINDING, PLAN.round.index.to_bytes(4, "little") + US),
    b"ok",
]
JUDGE = samples.key(world.VALIDATOR, "peer")


def _judging() -> tuple[Node, LogService]:
    node = Node()
    return node, LogService(MANIFEST, node.peers, node.clock, 2)


def _mining() -> tuple[Node, MinerService]:
    node = Node()
    service = MinerService(MANIFEST, node.peers, node.chain, node.clock, node.store)
    service.hold(HeldWork(SENDERS.works[US], OwnWork(SENDERS.made[US], signed(US[0])), LOG))
    world.run(service.attend(replace(PLAN, voters=voters(MANIFEST, ROSTER))))
    return node, service


JUDGING, MINING = _judging(), _mining()


def check_log(data: bytes) -> str:
    flags, frames = cut(data)
    plan = committed(PLAN, HOSTILE.public_key, frames[1][64:]) if flags & SEALED and len(frames) > 1 else PLAN
    node, service = JUDGING
    node.forget()
    service._logs.clear()
    world.run(service.open_round(plan))
    end = node.answer("log", Script(HOSTILE.peer_key, frames))
    for pushed in service.logs().values():
        assert len(pushed.read()) <= service.most_bytes(decode_work(decode_signed(pushed.signed_record).body))
    return end


def check_chunks(data: bytes) -> str:
    flags, frames = cut(data, HOSTILE.public_key if data and data[0] & SEALED else samples.key(world.VALIDATOR))
    node, service = MINING
    node.forget()
    service._answered.clear()
    stream = Script(HOSTILE.peer_key if flags & SEALED else JUDGE, frames)
    end = node.answer("chunks", stream)
    return "answered, then " + end if stream.sent and end != ACCEPTED else end


def check_push_log(data: bytes) -> str:
    _, frames = cut(data, None)
    node = ASKER.forget()
    node.door.next = Script(JUDGE, frames)
    world.run(push_log(node.peers, JUDGE, PLAN.round.index, signed(NUMBER), LOG, 5.0))
    return ACCEPTED


def check_probe(data: bytes) -> str:
    """A hostile miner answers our probe: what we believe is what it committed."""
    _, frames = cut(data, None)
    node = ASKER.forget()
    node.door.next = Script(HOSTILE.peer_key, frames)
    prober = Prober(MANIFEST, node.peers, node.clock, US, 5.0)
    probe = world.run(prober._ask(PLAN, HOSTILE, SENDERS.works[HOSTILE.public_key], bytes(32), 5.0, looked=False))
    made = SENDERS.made[HOSTILE.public_key].chunks
    assert all(made[c] == chunk for c, chunk in probe.chunks.items())
    assert math.isfinite(probe.goodput_bytes_per_s) and probe.goodput_bytes_per_s >= 0
    return ACCEPTED if probe.goodput_bytes_per_s else f"refused after {len(probe.chunks)} chunks"


def _probed() -> list[bytes]:
    """The digests of the chunks that the beacon draws for us, then those."""
    made, record = SENDERS.made[HOSTILE.public_key], SENDERS.works[HOSTILE.public_key]
    drawn = drawn_chunks(bytes(32), US, record, MANIFEST, 1.0)
    return [made.show(drawn), *(made.chunks[c] for c in drawn)]


# --- frames --------------------------------------------------------------------------------------


class _NoWriter:
    def write(self, data: bytes | memoryview) -> None: ...

    async def drain(self) -> None: ...

    def close(self) -> None: ...


def check_frames(data: bytes) -> str:
    """Two bytes: the limit, and where the bytes are split; then what arrives, cut there over and over."""
    limit, split, body = (data[0] if data else 0) * 8, (data[1] if len(data) > 1 else 0) + 1, data[2:]

    async def feed(reader: asyncio.StreamReader) -> None:
        for at in range(0, len(body), max(split, len(body) // 64)):
            if reader.at_eof():  # the stream gave up
                return
            reader.feed_data(body[at : at + max(split, len(body) // 64)])
            await asyncio.sleep(0)
        reader.feed_eof()

    async def read() -> str:
        reader = asyncio.StreamReader()
        stream = FrameStream(bytes(32), reader, _NoWriter(), reader.feed_eof, traffic)
        feeding, found = asyncio.create_task(feed(reader)), 0
        try:
            while True:
                frame = await stream.read(limit, 3.0)
                assert len(frame) <= limit
                found += 1
        except world.PEER_ERRORS as error:
            end = stage(error)
        finally:
            feeding.cancel()
        return ACCEPTED if found and "closed the stream" in end else f"{min(found, 3)} frames, then {end}"

    traffic = Traffic()
    end = world.run(read())
    assert traffic.received <= len(body)
    return end


FRAMES = tuple(
    bytes([limit, split]) + b"".join(len(f).to_bytes(4, "big") + f for f in frames)
    for limit, split in ((8, 0), (8, 3), (255, 40))
    for frames in ((b"echo", b"", b"x" * 60), (b"\xff" * 4,))
)
ERRORS = world.PEER_ERRORS
SCATTERS = tuple(pack(f, SCATTER) for f in (0, KNOWN, KNOWN | SIGNED, KNOWN | SIGNED | SEALED, 15))
SERVED = (pack(0, [ASKED, EVERYTHING]), pack(0, [ASKED]), pack(KNOWN, [ASKED, EVERYTHING]))
LOGS = tuple(pack(f, PUSHED) for f in (0, KNOWN, KNOWN | SEALED))
PROBES = tuple(pack(f, PROBE) for f in (0, KNOWN, KNOWN | SEALED))
FETCHES = tuple(pack(f, ANSWERS) for f in (0, SIGNED, SIGNED | SEALED, SIGNED | SEALED | FITTING))


def rpc(name: str, seeds: tuple[bytes, ...], check: Callable[[bytes], str], *errors: type[Exception]) -> Target:
    return Target(name, seeds, check, errors, 200, 512 * 1024)


RPCS = (
    rpc("serve_scatter", SCATTERS, check_scatter),
    rpc("serve_slice", SERVED, check_serve_slice),
    rpc("serve_log", LOGS, check_log),
    rpc("serve_chunks", PROBES, check_chunks),
    rpc("fetch_slice", FETCHES, check_fetch_slice, *ERRORS),
    rpc("send_slice", (pack(0, [b"", b"ok", b"", b"done"]), pack(0, [b"ok", b"no"])), check_send_slice, *ERRORS),
    rpc("push_log", (pack(0, [b"ok"]), pack(0, [b"no"])), check_push_log, *ERRORS),
    rpc("probe", (pack(0, _probed()),), check_probe),
    rpc("frames", FRAMES, check_frames),
)
