"""Pages between peers: compressed chunks that a node has on its disk, for those whom no other place gives them.

Who asks knows the page's digest and checks it, so a peer can refuse or waste a little time, but not lie.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

from distributed_training.data.reading import TablePages
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.budgets import Repeats
from distributed_training.network.peers import PeerBook
from distributed_training.network.places import Places

PAGE_METHOD = "page"
MAX_STREAMS, MAX_STREAMS_PER_PEER = 4, 2  # at a time; each holds one page in memory
MAX_PEERS = 4  # asked for one page
PIECE_BYTES = 1 << 20
CONTROL_TIMEOUT_S = 10.0
PAGE_TIMEOUT_S = 30.0  # one page from one peer, all in all
_REQUEST = struct.Struct("<32sI")  # sha256 of the page manifest, page
_LENGTH = struct.Struct("<I")  # of the chunk that follows in pieces; 0: not held, or busy


def share_pages(peers: PeerBook, pages: TablePages, run: bytes, run_key: str) -> None:
    """Give peers the pages that are on this machine, and ask them for those that no place gives. In the peers' loop."""
    PageService(peers, pages.sha256, pages.table.num_pieces, pages.kept)
    loop = asyncio.get_running_loop()
    length_of: Callable[[int], int] = lambda index: pages.table.piece(index).length  # noqa: E731
    pages.last_resort = PeerPages(peers, loop, pages.sha256, length_of, run, run_key)


class PageService:
    """Answers registered peers with what `kept(page)` gives: a chunk that is on this machine, never a fetched one."""

    def __init__(self, peers: PeerBook, sha256: str, num_pages: int, kept: Callable[[int], bytes | None]) -> None:
        self._peers, self._sha256, self._num_pages, self._kept = peers, bytes.fromhex(sha256), num_pages, kept
        self._places, self._repeats = Places(MAX_STREAMS, MAX_STREAMS_PER_PEER), Repeats()
        peers.transport.serve(PAGE_METHOD, self._on_page)

    async def _on_page(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        if len(payload) != _REQUEST.size:
            raise WireError("page: malformed request")
        sha256, index = _REQUEST.unpack(payload)
        if sha256 != self._sha256 or index >= self._num_pages:
            raise PeerFault(f"uid {neuron.uid} asks for a page of another manifest")
        async with (
            self._places.place(neuron.public_key) as free,
            deadline(PAGE_TIMEOUT_S, f"page {index} to uid {neuron.uid}"),
        ):
            chunk = (await asyncio.to_thread(self._kept, index) if free else None) or b""
            if chunk:
                self._repeats.take(neuron.public_key, index)
            await stream.write(_LENGTH.pack(len(chunk)), CONTROL_TIMEOUT_S)
            for start in range(0, len(chunk), PIECE_BYTES):
                await self._peers.uplink.give(stream, chunk[start : start + PIECE_BYTES], PAGE_TIMEOUT_S)


class PeerPages:
    """Asks peers for a page's chunk; made to be the `last_resort` of a page source, so it is called in its threads."""

    def __init__(
        self,
        peers: PeerBook,
        loop: asyncio.AbstractEventLoop,
        sha256: str,
        length_of: Callable[[int], int],
        run: bytes,
        run_key: str = "",
        timeout_s: float = PAGE_TIMEOUT_S,
    ) -> None:
        """`loop`: the one that `peers` live in. `length_of(page)`: bytes of its chunk, the only length that is read."""
        self._peers, self._loop, self._sha256 = peers, loop, bytes.fromhex(sha256)
        self._length_of, self._timeout_s, self._run, self._run_key = length_of, timeout_s, run, run_key

    def __call__(self, index: int) -> Iterator[bytes]:
        """What up to MAX_PEERS peers give, one after the other. Blocks."""
        for key in self._keys(index):
            asking = self._ask(key, index)
            try:
                asked = asyncio.run_coroutine_threadsafe(asking, self._loop)
            except RuntimeError:  # the loop has closed: the node ends
                asking.close()
                return
            try:
                answer = asked.result(self._timeout_s + 1.0)
            except (NetworkFault, PeerFault, TimeoutError):
                asked.cancel()
            except CancelledError:  # of concurrent.futures: the loop ends everything it does
                return
            else:
                yield answer

    def _keys(self, index: int) -> list[bytes]:
        """Nodes of the run, another page asks others first; last the run key's, which has all pages from the start."""
        people = sorted(self._peers.neurons, key=lambda neuron: neuron.uid)
        ours = [(n, n.commitment) for n in people if n.commitment is not None and n.commitment.run == self._run]
        ours = [(n.public_key.hex(), c.peer_key) for n, c in ours if c.peer_key != self._peers.transport.peer_key]
        speaker = [peer for key, peer in ours if key == self._run_key]
        others = [peer for key, peer in ours if key != self._run_key]
        first = index % max(1, len(others))
        return [*others[first:], *others[:first]][: MAX_PEERS - len(speaker)] + speaker

    async def _ask(self, peer_key: bytes, index: int) -> bytes:
        """Raises NetworkFault, DeadlineMissed, WireError; PeerFault when the peer does not hold the page."""
        expected, request = self._length_of(index), _REQUEST.pack(self._sha256, index)
        async with (
            deadline(self._timeout_s, f"page {index}"),
            closing(self._peers.open(peer_key, PAGE_METHOD, request, CONTROL_TIMEOUT_S)) as stream,
        ):
            answer = await stream.read(_LENGTH.size, CONTROL_TIMEOUT_S)
            if answer != _LENGTH.pack(expected):
                raise PeerFault(f"page {index} is not held")
            parts = [
                await stream.read(min(PIECE_BYTES, expected - start), self._timeout_s)
                for start in range(0, expected, PIECE_BYTES)
            ]
        return b"".join(parts)
