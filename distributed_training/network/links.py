"""A model of the links between the peers of a MemorySwitch: bandwidth, latency, loss, partitions, freezes, crashes.

Every node has one uplink and one downlink that serve bytes first come, first served. Streams stay reliable and in
order, as over TCP: a lost segment costs a retransmission, what cannot pass now waits until it can. Everything follows
from the seed and the order of the calls, on the running loop's clock.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from distributed_training.errors import DeadlineMissed
from distributed_training.network.memory import Pipe

SEGMENT_BYTES = 16 * 1024
WINDOW_BYTES = 1024 * 1024  # of one stream: so much may be under way before its writer waits
DIAL_TRIPS = 1.5  # round trips until the first byte of a new stream may leave
_Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """What the links of a swarm are drawn from, uniformly; bytes/s and seconds."""

    up_bytes_s: _Range = (2.5e6, 12.5e6)  # 20 to 100 Mbit/s
    down_bytes_s: _Range = (6.25e6, 25e6)  # 50 to 200 Mbit/s
    latency_s: _Range = (0.005, 0.06)  # of one node; a pair has the sum of both, one way
    loss: float = 0.0  # chance that a segment has to be sent again
    breaks: float = 0.0  # chance that a segment takes its connection down
    retransmit_s: float = 0.25
    segment_bytes: int = SEGMENT_BYTES
    window_bytes: int = WINDOW_BYTES


@dataclass(slots=True)
class Nic:
    up_bytes_s: float
    down_bytes_s: float
    latency_s: float
    up_free: float = 0.0  # when the last byte given to it will have passed
    down_free: float = 0.0


@dataclass(frozen=True, slots=True)
class _Item:
    """Something on its way: bytes, an end of stream, a reset. `arrive` is called at the other end."""

    source: bytes
    target: bytes
    size: int
    arrive: Callable[[], None]


class Links:
    """The `Wire` of a MemorySwitch. Peers are named by their keys; who is unknown gets a link at its first use."""

    def __init__(self, seed: int, profile: LinkProfile) -> None:
        self.profile = profile
        self._seed = seed
        self._random = random.Random(f"links/{seed}")
        self._nics: dict[bytes, Nic] = {}
        self._side: dict[bytes, int] = {}  # in which part of a partitioned network a peer is; not there: 0
        self._frozen: set[bytes] = set()
        self._held: list[_Item] = []
        self._pipes: dict[LinkPipe, None] = {}  # in the order in which they were made

    # --- the Wire -----------------------------------------------------------------------------------

    async def dial(self, source: bytes, target: bytes, timeout_s: float) -> None:
        """What opening a stream takes. DeadlineMissed when it takes too long, or the target cannot be reached."""
        began = asyncio.get_running_loop().time()
        trip_s = 2 * self.latency(source, target) * DIAL_TRIPS
        if trip_s < timeout_s:
            await asyncio.sleep(trip_s)
        if trip_s >= timeout_s or self.blocked(source, target):
            await asyncio.sleep(max(0.0, began + timeout_s - asyncio.get_running_loop().time()))
            raise DeadlineMissed(f"opening a stream to {target.hex()[:12]} took longer than {timeout_s:.3g} s")

    def pipe(self, source: bytes, target: bytes) -> LinkPipe:
        made = LinkPipe(self, source, target)
        self._pipes[made] = None
        return made

    # --- what happens to the network ------------------------------------------------------------------

    def partition(self, *sides: Collection[bytes]) -> None:
        """Cut the sides off from each other and from everybody else, until `heal`."""
        self._side = {key: number for number, side in enumerate(sides, 1) for key in side}

    def heal(self) -> None:
        self._side = {}
        self._release()

    def freeze(self, peer_key: bytes) -> None:
        """Nothing moves to or from the peer, and its streams stay open, until `thaw`."""
        self._frozen.add(peer_key)

    def thaw(self, peer_key: bytes) -> None:
        self._frozen.discard(peer_key)
        self._release()

    def crash(self, peer_key: bytes) -> None:
        """Every stream of the peer breaks at once; what was under way is lost. The others learn it a latency later."""
        self._frozen.discard(peer_key)
        for pipe in [p for p in self._pipes if peer_key in (p.source, p.target)]:
            pipe.lose()

    def blocked(self, source: bytes, target: bytes) -> bool:
        cut = self._side.get(source, 0) != self._side.get(target, 0)
        return cut or source in self._frozen or target in self._frozen

    # --- moving ---------------------------------------------------------------------------------------

    def latency(self, one: bytes, other: bytes) -> float:
        """Seconds one way."""
        return self.nic(one).latency_s + self.nic(other).latency_s

    def nic(self, peer_key: bytes) -> Nic:
        """The link of a peer: a function of seed and key, whoever asks first."""
        if peer_key not in self._nics:
            key = blake2b(peer_key + self._seed.to_bytes(8, "big", signed=True), digest_size=8).digest()
            draw, p = random.Random(int.from_bytes(key, "big")), self.profile
            self._nics[peer_key] = Nic(draw.uniform(*p.up_bytes_s), draw.uniform(*p.down_bytes_s),
                                        draw.uniform(*p.latency_s))  # fmt: skip
        return self._nics[peer_key]

    def send(self, item: _Item, not_before: float) -> float:
        """Put bytes on the source's uplink. Returns when they arrive, not before `not_before`."""
        loop, p = asyncio.get_running_loop(), self.profile
        up, down = self.nic(item.source), self.nic(item.target)
        left = up.up_free = max(loop.time(), up.up_free) + item.size / up.up_bytes_s
        arrives = left + self.latency(item.source, item.target) + item.size / down.down_bytes_s
        while p.loss and self._random.random() < p.loss:
            arrives += p.retransmit_s
        arrives = max(arrives, not_before)
        loop.call_at(arrives, self._arrive, item)
        return arrives

    def tell(self, source: bytes, target: bytes, arrive: Callable[[], None]) -> None:
        """A message of no size, such as a reset: a latency later, or when it can pass."""
        item = _Item(source, target, 0, arrive)
        asyncio.get_running_loop().call_later(self.latency(source, target), self._arrive, item)

    def breaks(self) -> bool:
        return self.profile.breaks > 0 and self._random.random() < self.profile.breaks

    def forget(self, pipe: LinkPipe) -> None:
        self._pipes.pop(pipe, None)

    def _arrive(self, item: _Item) -> None:
        """At the target's downlink, which the arrival time counts as idle: wait if it is not."""
        if self.blocked(item.source, item.target):
            self._held.append(item)
            return
        loop, nic = asyncio.get_running_loop(), self.nic(item.target)
        seconds = item.size / nic.down_bytes_s
        free = max(nic.down_free, loop.time() - seconds) + seconds
        nic.down_free = max(nic.down_free, free)
        if free <= loop.time() + 1e-9:
            item.arrive()
        else:
            loop.call_at(free, item.arrive)

    def _release(self) -> None:
        held, self._held = self._held, []
        for item in held:
            self._arrive(item)


class LinkPipe(Pipe):
    """One direction of a stream over the model."""

    def __init__(self, links: Links, source: bytes, target: bytes) -> None:
        super().__init__()
        self.source, self.target = source, target
        self._links = links
        self._last = 0.0  # when the newest bytes arrive
        self._order: deque[bytes | None] = deque()  # under way
        self._under_way = 0  # bytes
        self._window = asyncio.Event()
        self._ended = False  # the end of the stream is under way
        self._lost = False

    def write(self, data: bytes | memoryview) -> None:
        if self.closed or self._ended:
            raise ConnectionResetError("closed by the peer")
        if self._links.breaks():
            self.lose()
            raise ConnectionResetError("the connection broke")
        view, size = memoryview(data), self._links.profile.segment_bytes
        for first in range(0, len(view), size):
            self._send(bytes(view[first : first + size]))

    async def drain(self) -> None:
        """While more than a window of bytes is under way, or the reader has had enough."""
        while self._under_way > self._links.profile.window_bytes and not self.closed:
            self._window.clear()
            await self._window.wait()
        await super().drain()

    def close(self) -> None:
        """By the writer: the end follows what was written."""
        if not self.closed and not self._ended:
            self._ended = True
            self._send(None)

    def hang_up(self) -> None:
        """By the reader, who sees the end at once; the writer learns it a latency later."""
        if not self.closed:
            self.reader.feed_eof()
            self._links.tell(self.target, self.source, self._finish)
            self._lost = True

    def lose(self) -> None:
        """The connection is gone, with all that was under way; both ends learn it a latency later."""
        self._lost = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._links.latency(self.source, self.target), self._finish)

    def _send(self, segment: bytes | None) -> None:
        """None: the end of the stream."""
        size = 0 if segment is None else len(segment)
        self._order.append(segment)
        self._under_way += size
        self._last = self._links.send(_Item(self.source, self.target, size, self._arrive), self._last)

    def _arrive(self) -> None:
        """Something of ours has arrived: the oldest, since timers of one moment come in any order."""
        segment = self._order.popleft()
        if segment is None:
            self._finish()
            return
        self._under_way -= len(segment)
        self._window.set()
        if not self._lost and not self.closed:
            self.reader.feed_data(segment)

    def _finish(self) -> None:
        self._links.forget(self)
        self._window.set()
        super().close()


def sides(keys: Sequence[bytes], share: float, draw: random.Random) -> tuple[list[bytes], list[bytes]]:
    """Two sides of a partition; the second has about this share of the peers, at least one."""
    count = max(1, round(share * len(keys)))
    chosen = set(draw.sample(list(keys), count))
    return [k for k in keys if k not in chosen], [k for k in keys if k in chosen]
