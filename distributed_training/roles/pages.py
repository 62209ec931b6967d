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
from distributed_training.network.base import Stream, deadline
from distributed_training.network.peers import PeerBook

PAGE_METHOD = "page"
MAX_STREAMS = 4  # at a time; each holds one page in memory
MAX_PEERS = 4  # asked for one page
PIECE_BYTES = 1 << 20
CONTROL_TIMEOUT_S = 10.0
PAGE_TIMEOUT_S = 30.0  # one page from one peer, all in all
_REQUEST = struct.Struct("<32sI")  # sha256 of the page manifest, page
_LENGTH = struct.Struct("<I")  # of the chunk that follows in pieces; 0: not held, or busy


def share_pages(peers: PeerBook, pages: TablePages) -> None:
    """Give peers the pages that are on this machine, and ask them for those that no place gives. In the peers' loop."""
    PageService(peers, pages.sha256, pages.num_pages, pages.kept)
    loop = asyncio.get_running_loop()
    pages.last_resort = PeerPages(peers, loop, pages.sha256, lambda index: pages.table.entry(index).length)


class PageService:
    """Answers registered peers with what `kept(page)` gives: a chunk that is on this machine, never a fetched one."""

    def __init__(self, peers: PeerBook, sha256: str, num_pages: int, kept: Callable[[int], bytes | None]) -> None:
        self._peers, self._sha256, self._num_pages, self._kept = peers, bytes.fromhex(sha256), num_pages, kept
        self._streams = 0
        peers.transport.serve(PAGE_METHOD, self._on_page)

    async def _on_page(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        if len(payload) != _REQUEST.size:
            raise WireError("page: malformed request")
        sha256, index = _REQUEST.unpack(payload)
        if sha256 != self._sha256 or index >= self._num_pages:
            raise PeerFault(f"uid {neuron.uid} asks for a page of another manifest")
        if self._streams >= MAX_STREAMS:
            await stream.write(_LENGTH.pack(0), CONTROL_TIMEOUT_S)
            return
        self._streams += 1
        try:
            async with deadline(PAGE_TIMEOUT_S, f"page {index} to uid {neuron.uid}"):
                chunk = await asyncio.to_thread(self._kept, index) or b""
                await stream.write(_LENGTH.pack(len(chunk)), CONTROL_TIMEOUT_S)
                for start in range(0, len(chunk), PIECE_BYTES):
                    await stream.write(chunk[start : start + PIECE_BYTES], PAGE_TIMEOUT_S)
        finally:
            self._streams -= 1


class PeerPages:
    """Asks peers for a page's chunk; made to be the `last_resort` of a page source, so it is called in its threads."""

    def __init__(
        self,
        peers: PeerBook,
        loop: asyncio.AbstractEventLoop,
        sha256: str,
        length_of: Callable[[int], int],
        timeout_s: float = PAGE_TIMEOUT_S,
    ) -> None:
        """`loop`: the one that `peers` live in. `length_of(page)`: bytes of its chunk, the only length that is read."""
        self._peers, self._loop, self._sha256 = peers, loop, bytes.fromhex(sha256)
        self._length_of, self._timeout_s = length_of, timeout_s

    def __call__(self, index: int) -> Iterator[bytes]:
        """What up to MAX_PEERS peers give, one after the other; another page asks others first. Blocks."""
        keys = self._keys()
        for number in range(min(MAX_PEERS, len(keys))):
            asking = self._ask(keys[(index + number) % len(keys)], index)
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

    def _keys(self) -> list[bytes]:
        own = self._peers.transport.peer_key
        claims = [neuron.commitment for neuron in sorted(self._peers.neurons, key=lambda neuron: neuron.uid)]
        return [claim.peer_key for claim in claims if claim is not None and claim.peer_key != own]

    async def _ask(self, peer_key: bytes, index: int) -> bytes:
        """Raises NetworkFault, DeadlineMissed, WireError; PeerFault when the peer does not hold the page."""
        expected, request = self._length_of(index), _REQUEST.pack(self._sha256, index)
        async with deadline(self._timeout_s, f"page {index}"):
            stream = await self._peers.open(peer_key, PAGE_METHOD, request, CONTROL_TIMEOUT_S)
            try:
                answer = await stream.read(_LENGTH.size, CONTROL_TIMEOUT_S)
                if answer != _LENGTH.pack(expected):
                    raise PeerFault(f"page {index} is not held")
                parts = [
                    await stream.read(min(PIECE_BYTES, expected - start), self._timeout_s)
                    for start in range(0, expected, PIECE_BYTES)
                ]
            finally:
                await stream.close()
        return b"".join(parts)
