"""What validators ask for after a round, as fuzz targets, both ends: the vector at whose end a training began, `began`,
and what senders sent to reducers, `sent`. Inputs as in `fuzz_rpc`."""

from __future__ import annotations

from dataclasses import replace

import fuzz_world as world
import samples
from fuzz_engine import ACCEPTED, Target
from fuzz_rpc import FITTING, JUDGE, KNOWN, LAYOUT, LOG, SEALED, SIGNED, cut, pack, rpc
from fuzz_world import HOSTILE, MANIFEST, NUMBER, PLAN, ROSTER, SENDERS, SIGNATURE, US, Node, Script, committed, signed

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.inbox import Inbox
from distributed_training.errors import WireError
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.rules.audit_plan import SAMPLE
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.wire import decode_work, encode_request, encode_work
from distributed_training.roles.began import BeganReader, BeganService
from distributed_training.roles.service import HeldWork, MinerService

VOTER = samples.key(world.VALIDATOR)
AUDITED = replace(PLAN, voters=voters(MANIFEST, ROSTER))
INDEX = PLAN.round.index.to_bytes(4, "little")
OURS, THEIRS = SENDERS.made[US], SENDERS.made[HOSTILE.public_key]


def asker(data: bytes) -> tuple[bytes, bytes]:
    """Public key and peer key of who asks: the voter, or a miner where the flags say so."""
    return (HOSTILE.public_key, HOSTILE.peer_key) if data and data[0] & SEALED else (VOTER, JUDGE)


# --- began ---------------------------------------------------------------------------------------


def _beginning() -> tuple[Node, MinerService]:
    """A miner whose training of the round went on from its vector of the round before."""
    node, former = Node(), replace(SENDERS.works[US], round=PLAN.round.index - 1)
    service = MinerService(MANIFEST, node.peers, node.chain, node.clock, node.store)
    BeganService(service, node.peers, 5.0)
    for record in (former, replace(SENDERS.works[US], began_at=former.wire_root)):
        service.hold(HeldWork(record, OwnWork(OURS, SIGNATURE + encode_work(record)), LOG))
    world.run(service.attend(AUDITED))
    return node, service


BEGINNING = _beginning()
ASK_BEGAN = [encode_request(VOTER, world.BINDING, INDEX + US), b"ok"]
WHOLE = [b"".join(OURS.digests), *OURS.chunks]


def check_serve_began(data: bytes) -> str:
    key, peer_key = asker(data)
    node, service = BEGINNING
    node.forget()
    service._answered.clear()
    stream = Script(peer_key, cut(data, key)[1])
    end = node.answer("began", stream)
    assert stream.sent[1:] in ([], WHOLE) and (not stream.sent or peer_key == JUDGE)
    return "answered, then " + end if stream.sent and end != ACCEPTED else end


def fitted(frames: list[bytes]) -> list[bytes]:
    """The digests of the chunks that are given, and their root in the record."""
    digests = [digest(data) for data in frames[2 : 2 + LAYOUT.num_chunks]]
    record = replace(decode_work(frames[0][64:]), wire_root=merkle_root(digests))
    return [frames[0][:64] + encode_work(record), b"".join(digests), *frames[2:]]


def check_fetch_began(data: bytes) -> str:
    """A hostile miner gives the vector at whose end its training began."""
    flags, frames = cut(data, None, 0)
    if flags & FITTING and len(frames) > 1:
        try:
            frames = fitted(frames)
        except WireError:
            pass  # the record is broken: refused below
    plan = committed(PLAN, HOSTILE.public_key, frames[0][64:]) if flags & SEALED and frames else PLAN
    node = ASKING.forget()
    node.door.next = Script(HOSTILE.peer_key, frames)
    reader = BeganReader(MANIFEST, node.peers, world.verify, 5.0)
    origin = world.run(reader.ask(plan, HOSTILE, None))
    assert not origin.chunks or origin.record is not None
    if origin.record is not None and origin.record.wire_root == THEIRS.wire_root:
        assert all(THEIRS.chunks[c] == chunk for c, chunk in origin.chunks.items())
    if origin.record is None or len(origin.chunks) < LAYOUT.num_chunks:
        return f"refused after {min(3, len(origin.chunks))} chunks, {'a' if origin.record else 'no'} record"
    assert merkle_root([digest(origin.chunks[c]) for c in range(LAYOUT.num_chunks)]) == origin.record.wire_root
    return ACCEPTED


# --- sent ----------------------------------------------------------------------------------------

SPEC = PLAN.slices[0]  # ours
PLACES = range(SPEC.first_chunk, SPEC.last_chunk)
BITS = (len(PLACES) + 7) // 8
EVERY = ((1 << len(PLACES)) - 1).to_bytes(BITS, "little")


def _reduced() -> Node:
    """A reducer that has kept what came for its slice, but the last chunk of one sender."""
    node = Node(store=world.RoundStore(world.FOLDER / "sent"))
    inbox = Inbox(AUDITED, SPEC, frozenset(c.public_key for c in PLAN.candidates))

    async def keep() -> None:
        for key, made in SENDERS.made.items():
            came = PLACES if key == HOSTILE.public_key else PLACES[:-1]
            parsed = {c: PLAN.uplink.parse(made.chunks[c], LAYOUT, c) for c in came}
            inbox.put(key, SENDERS.works[key], parsed)
            inbox.shown[key] = made.show(PLACES)
        await node.butterfly.sent.keep(inbox)

    world.run(keep())
    return node


REDUCED, ASKING = _reduced(), Node()


def ask_sent(sender: bytes, *, onward: bool = False) -> list[bytes]:
    payload = INDEX + SPEC.index.to_bytes(2, "little") + sender + bytes([onward])
    return [encode_request(VOTER, world.BINDING, payload), EVERY]


def check_serve_sent(data: bytes) -> str:
    key, peer_key = asker(data)
    node = REDUCED.forget()
    node.butterfly.sent._asks.clear()
    stream = Script(peer_key, cut(data, key)[1])
    end = node.answer("sent", stream)
    given, known = [f for f in stream.sent[1:] if f], {c for made in SENDERS.made.values() for c in made.chunks}
    assert all(chunk in known for chunk in given) and len(stream.sent) <= 1 + len(PLACES)
    assert not given or peer_key == JUDGE
    return f"answered with {min(len(given), SAMPLE)}, then {end}" if stream.sent and end != ACCEPTED else end


def check_fetch_sent(data: bytes) -> str:
    """A hostile reducer answers for somebody's chunks: what we believe is what that sender committed."""
    _, frames = cut(data, None)
    spec = next(s for s in PLAN.slices if s.reducer == HOSTILE.public_key)
    sender = next(c for c in PLAN.candidates if c.public_key not in (US, HOSTILE.public_key))
    wanted, made = range(spec.first_chunk, spec.last_chunk), SENDERS.made[sender.public_key]
    node = ASKING.forget()
    node.door.next = Script(HOSTILE.peer_key, frames)
    found = world.run(node.butterfly.sent.fetch(PLAN, sender, SENDERS.works[sender.public_key], wanted))
    assert all(c in wanted and made.chunks[c] == chunk for c, chunk in found.items())
    return ACCEPTED if len(found) == len(wanted) else f"refused after {min(3, len(found))} chunks"


def _answers() -> list[bytes]:
    """What an honest reducer says to `check_fetch_sent`."""
    spec = next(s for s in PLAN.slices if s.reducer == HOSTILE.public_key)
    sender = next(c for c in PLAN.candidates if c.public_key not in (US, HOSTILE.public_key))
    made, places = SENDERS.made[sender.public_key], range(spec.first_chunk, spec.last_chunk)
    return [made.show(places), *(made.chunks[c] for c in places)]


GIVEN = [signed(NUMBER), b"".join(THEIRS.digests), *THEIRS.chunks]
OTHERS = [key for key in SENDERS.made if key != US]
ASKED: tuple[Target, ...] = (
    rpc("serve_began", tuple(pack(f, ASK_BEGAN) for f in (0, KNOWN, KNOWN | SEALED)), check_serve_began),
    rpc("fetch_began", tuple(pack(f, GIVEN) for f in (0, SIGNED, SIGNED | SEALED, 15)), check_fetch_began),
    rpc("serve_sent", tuple(pack(f, ask_sent(key)) for f in (0, KNOWN, KNOWN | SEALED) for key in OTHERS),
        check_serve_sent),
    rpc("fetch_sent", (pack(0, _answers()),), check_fetch_sent),
)  # fmt: skip
