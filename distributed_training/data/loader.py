"""Batches of one miner in one round, made from its pages; an auditor that replays them makes the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distributed_training.data.base import PageSource
from distributed_training.data.tokens import Tokenizer, cut, pack
from distributed_training.errors import ConfigError, DataUnavailable
from distributed_training.protocol.rules.assignment import Permutation, page_index


class PagesExhausted(DataUnavailable):
    """The uid has no further page in this round: nobody's trouble, and no more steps than its pages hold."""


@dataclass(frozen=True, slots=True)
class _TokenPage:
    digest: bytes
    tokens: NDArray[np.int64]


class BatchStream:
    """Iterator of int64 batches [batch_size, sequence_length]: batch t holds sequences [t*BS, (t+1)*BS) of the packed
    stream of pages `page_index(permutation, max_uids, uid, 0..)` of `source` (protocol section 4).

    A pure function of its arguments, whatever the prefetch. Ends when the next batch cannot be filled: `fault` then
    says why. Use as a context manager or call `close`: a thread reads and tokenises up to `prefetch_pages` ahead.
    Not thread-safe itself. Raises ConfigError when `permutation` is not over the pages of `source`.
    """

    def __init__(
        self,
        source: PageSource,
        tokenizer: Tokenizer,
        permutation: Permutation,
        *,
        max_uids: int,
        uid: int,
        batch_size: int,
        sequence_length: int,
        prefetch_pages: int = 2,
    ) -> None:
        if min(batch_size, sequence_length, prefetch_pages) < 1:
            raise ValueError("batch_size, sequence_length and prefetch_pages must be positive")
        self._shape = (batch_size, sequence_length)
        self._buffer = np.empty(0, dtype=np.int64)
        self._taken: list[bytes] = []
        self._page_digests: tuple[bytes, ...] = ()
        self._fault: DataUnavailable | None = None
        self._ended = False
        pages = _token_pages(source, tokenizer, permutation, max_uids, uid)
        self._reader = _Prefetch(pages, prefetch_pages)

    @property
    def page_digests(self) -> tuple[bytes, ...]:
        """Digests of the pages that the batches yielded so far were cut from, in order: `pages_used` of that many."""
        return self._page_digests

    @property
    def fault(self) -> DataUnavailable | None:
        """Why iteration stopped; None while it has not, or when it was closed."""
        return self._fault

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NDArray[np.int64]:
        size = self._shape[0] * self._shape[1]
        while len(self._buffer) < size:
            self._add_page()
        batch = self._buffer[:size].reshape(self._shape).copy()
        self._buffer = self._buffer[size:]
        self._page_digests = tuple(self._taken)
        return batch

    def close(self) -> None:
        """Stop the reader and wait for the page it is at. Iteration ends. May be called twice."""
        self._ended = True
        self._buffer = self._buffer[:0]
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add_page(self) -> None:
        if self._ended:
            raise StopIteration
        try:
            page = self._reader.get()
        except DataUnavailable as fault:
            self._ended, self._fault = True, fault
            raise StopIteration from None
        self._buffer = np.concatenate([self._buffer, page.tokens])
        self._taken.append(page.digest)


def pages_used(
    source: PageSource,
    tokenizer: Tokenizer,
    permutation: Permutation,
    *,
    max_uids: int,
    uid: int,
    batch_size: int,
    sequence_length: int,
    num_steps: int,
) -> tuple[bytes, ...]:
    """Digests of the pages that `num_steps` steps of `uid` use: its shortest list of pages whose tokens fill as many
    batches. Raises DataUnavailable when a page cannot be read or the pages do not suffice."""
    left = num_steps * batch_size * sequence_length
    digests: list[bytes] = []
    pages = _token_pages(source, tokenizer, permutation, max_uids, uid)
    while left > 0:
        page = next(pages)
        digests.append(page.digest)
        left -= len(page.tokens)
    return tuple(digests)


def heldout_sequences(source: PageSource, tokenizer: Tokenizer, sequence_length: int, count: int) -> NDArray[np.int64]:
    """int64 [count, sequence_length], spread evenly over the packed held-out stream.

    Raises DataUnavailable when it cannot be read, ConfigError when it is too short.
    """
    sequences, _ = cut(pack(source.heldout(), tokenizer), sequence_length)
    if not 1 <= count <= len(sequences):
        raise ConfigError(
            f"heldout_sequences is {count}, expected 1 to {len(sequences)} ({sequence_length} tokens each)"
        )
    return sequences[[index * len(sequences) // count for index in range(count)]]


def _token_pages(
    source: PageSource, tokenizer: Tokenizer, permutation: Permutation, max_uids: int, uid: int
) -> Iterator[_TokenPage]:
    """The uid's pages in order, packed. Never ends: raises DataUnavailable at a missing page or past the last one."""
    if permutation.size != source.num_pages:
        raise ConfigError(f"the run has {permutation.size} pages, the page source {source.num_pages}")
    return _read_pages(source, tokenizer, permutation, max_uids, uid)


def _read_pages(
    source: PageSource, tokenizer: Tokenizer, permutation: Permutation, max_uids: int, uid: int
) -> Iterator[_TokenPage]:
    count = 0
    while (index := page_index(permutation, max_uids, uid, count)) is not None:
        page = source.fetch(index)
        yield _TokenPage(page.digest, pack(page.documents, tokenizer))
        count += 1
    raise PagesExhausted(f"uid {uid} has used all its {count} pages of {permutation.size}")


class _Prefetch:
    """Runs an iterator in a thread, at most `depth` items ahead; `get` returns items in order and raises its error."""

    def __init__(self, items: Iterator[_TokenPage], depth: int) -> None:
        self._items = items
        self._slots = Semaphore(depth)
        self._queue: SimpleQueue[_TokenPage | Exception] = SimpleQueue()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="page-reader", daemon=True)
        self._thread.start()

    def get(self) -> _TokenPage:
        item = self._queue.get()
        if isinstance(item, Exception):
            self._queue.put(item)  # whoever asks again gets the same answer
            raise item
        self._slots.release()
        return item

    def close(self) -> None:
        self._stop.set()
        self._slots.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._slots.acquire() and not self._stop.is_set():
                self._queue.put(next(self._items))
        except Exception as error:  # handed over: `get` raises it in the thread that uses the pages
            self._queue.put(error)
