"""Batches of one miner in one round, made from its pages; an auditor that replays them makes the same ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distributed_training.data.base import PageSource
from distributed_training.data.tokens import Tokenizer, cut, pack, packed
from distributed_training.errors import ConfigError, DataUnavailable
from distributed_training.protocol.rules.assignment import Permutation, page_index

READERS = 4  # pages that are fetched and tokenised at once
AHEAD_BYTES = 16 << 20  # of tokens that wait to be used: 8 million of GPT-2's


class PagesExhausted(DataUnavailable):
    """The uid has no further page in this round: nobody's trouble, and no more steps than its pages hold."""


@dataclass(frozen=True, slots=True)
class _TokenPage:
    digest: bytes
    tokens: NDArray[Any]  # [n], uint16 or uint32


class BatchStream:
    """Iterator of int64 batches [batch_size, sequence_length]: batch t holds sequences [t*BS, (t+1)*BS) of the packed
    stream of pages `page_index(permutation, max_uids, uid, 0..)` of `source` (protocol section 4).

    A pure function of its arguments, whatever is read ahead. With `first_batch` k it begins at batch k, as if the
    earlier ones had been taken. Ends when the next batch cannot be filled: `fault` then says why. With `num_batches` it
    ends after so many, and no page is read that they do not need.

    Use as a context manager or call `close`: up to `readers` threads read and tokenise pages ahead, until `ahead_bytes`
    of tokens wait. Not thread-safe itself. Raises ConfigError when `permutation` is not over the pages of `source`.
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
        first_batch: int = 0,
        num_batches: int | None = None,
        readers: int = READERS,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        if min(batch_size, sequence_length, readers, ahead_bytes) < 1 or first_batch < 0:
            raise ValueError("batch_size, sequence_length, readers and ahead_bytes must be positive")
        self._shape = (batch_size, sequence_length)
        self._skip = first_batch * batch_size * sequence_length  # tokens
        self._left = num_batches
        wanted = None if num_batches is None else self._skip + num_batches * batch_size * sequence_length
        self._buffer: NDArray[Any] = np.empty(0, dtype=np.uint16)
        self._taken: list[bytes] = []
        self._page_digests: tuple[bytes, ...] = ()
        self._fault: DataUnavailable | None = None
        self._ended = False
        self._stall_s = 0.0
        read = _read_page(source, tokenizer, permutation, max_uids, uid)
        # Only who reads one page after the other knows before the next one whether it is needed.
        self._reader = _Ahead(read, readers if wanted is None else 1, ahead_bytes, wanted)

    @property
    def page_digests(self) -> tuple[bytes, ...]:
        """Digests of the pages that the batches yielded so far were cut from, in order: `pages_used` of that many."""
        return self._page_digests

    @property
    def stall_s(self) -> float:
        """Seconds that batches were waited for, the wait for the first page included."""
        return self._stall_s

    @property
    def fault(self) -> DataUnavailable | None:
        """Why iteration stopped; None while it has not, or when it was closed."""
        return self._fault

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NDArray[np.int64]:
        if self._left == 0:
            raise StopIteration
        size = self._shape[0] * self._shape[1]
        while len(self._buffer) < size:
            self._add_page()
        batch = self._buffer[:size].astype(np.int64).reshape(self._shape)
        self._buffer = self._buffer[size:]
        self._page_digests = tuple(self._taken)
        self._left = None if self._left is None else self._left - 1
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
        began = time.monotonic()
        try:
            page = self._reader.get()
        except DataUnavailable as fault:
            self._ended, self._fault = True, fault
            raise StopIteration from None
        finally:
            self._stall_s += time.monotonic() - began
        skipped = min(self._skip, len(page.tokens))
        self._skip -= skipped
        self._buffer = np.concatenate([self._buffer, page.tokens[skipped:]])
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
    reader = _Ahead(_read_page(source, tokenizer, permutation, max_uids, uid), READERS, ahead_bytes=1)
    try:
        while left > 0:
            page = reader.get()
            digests.append(page.digest)
            left -= len(page.tokens)
    finally:
        reader.close()
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


def _read_page(
    source: PageSource, tokenizer: Tokenizer, permutation: Permutation, max_uids: int, uid: int
) -> Callable[[int], _TokenPage]:
    """Reads the uid's page number 0, 1, ...: raises DataUnavailable when it is missing, or there is none further."""
    if permutation.size != source.num_pages:
        raise ConfigError(f"the run has {permutation.size} pages, the page source {source.num_pages}")

    def read(number: int) -> _TokenPage:
        index = page_index(permutation, max_uids, uid, number)
        if index is None:
            raise PagesExhausted(f"uid {uid} has used all its {number} pages of {permutation.size}")
        page = source.fetch(index)
        if page.tokens is None:
            return _TokenPage(page.digest, packed(page.documents, tokenizer))
        if page.tokens.tokenizer != tokenizer.sha256:
            raise ConfigError("the page source tokenises with another tokenizer than the one that is asked for")
        return _TokenPage(page.digest, page.tokens.ids)

    return read


class _Ahead:
    """Calls `read(0)`, `read(1)`, ... in `readers` threads while fewer than `ahead_bytes` wait, until `wanted` tokens
    are read. `get` returns pages in order and raises what reading one raised; none after it is begun."""

    def __init__(
        self, read: Callable[[int], _TokenPage], readers: int, ahead_bytes: int, wanted: int | None = None
    ) -> None:
        self._read, self._ahead_bytes, self._wanted = read, ahead_bytes, wanted
        self._changed = Condition()
        self._begun = self._given = self._waiting_bytes = 0
        self._done: dict[int, _TokenPage | Exception] = {}
        self._stop = False
        self._threads = [Thread(target=self._run, name="page-reader", daemon=True) for _ in range(readers)]
        for thread in self._threads:
            thread.start()

    def get(self) -> _TokenPage:
        with self._changed:
            self._changed.wait_for(lambda: self._given in self._done)
            item = self._done[self._given]
            if isinstance(item, Exception):
                raise item  # it stays: whoever asks again gets the same answer
            del self._done[self._given]
            self._given += 1
            self._waiting_bytes -= item.tokens.nbytes
            self._changed.notify_all()
        return item

    def close(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stop or self._waiting_bytes < self._ahead_bytes)
                if self._stop or self._wanted == 0:
                    return
                number = self._begun
                self._begun += 1
            try:
                item: _TokenPage | Exception = self._read(number)
            except Exception as error:  # handed over: `get` raises it in the thread that uses the pages
                item = error
            with self._changed:
                self._done[number] = item
                if isinstance(item, Exception):
                    self._stop = True
                else:
                    self._waiting_bytes += item.tokens.nbytes
                    if self._wanted is not None:
                        self._wanted = max(0, self._wanted - len(item.tokens))
                self._changed.notify_all()
