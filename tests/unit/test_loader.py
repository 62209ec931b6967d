from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.data.base import Page
from distributed_training.data.loader import BatchStream, heldout_sequences, pages_used
from distributed_training.data.pages import page_digest
from distributed_training.data.tokens import ByteTokenizer, pack
from distributed_training.errors import ConfigError, DataUnavailable
from distributed_training.protocol.rules.assignment import Permutation, page_index

TOKENIZER = ByteTokenizer()
KEY = bytes(32)


class ListPages:
    """A page source over a list; pages in `missing` cannot be read."""

    sha256 = "00" * 32

    def __init__(self, pages: list[list[str]], missing: frozenset[int] = frozenset()) -> None:
        self.pages = [tuple(page) for page in pages]
        self.missing = missing
        self.num_pages = len(pages)
        self.fetched: list[int] = []

    def fetch(self, index: int) -> Page:
        self.fetched.append(index)
        if index in self.missing:
            raise DataUnavailable(f"page {index} is missing")
        return Page(index, self.pages[index], page_digest(self.pages[index]))

    def heldout(self) -> tuple[str, ...]:
        return tuple(f"held out {index}" for index in range(40))


def open_stream(
    source: ListPages, *, max_uids: int = 4, uid: int = 1, batch: int = 2, length: int = 8, prefetch: int = 2
) -> BatchStream:
    permutation = Permutation(KEY, source.num_pages)
    return BatchStream(
        source,
        TOKENIZER,
        permutation,
        max_uids=max_uids,
        uid=uid,
        batch_size=batch,
        sequence_length=length,
        prefetch_pages=prefetch,
    )


def used(source: ListPages, steps: int, *, max_uids: int = 4, uid: int = 1, batch: int = 2, length: int = 8) -> tuple:
    permutation = Permutation(KEY, source.num_pages)
    return pages_used(
        source,
        TOKENIZER,
        permutation,
        max_uids=max_uids,
        uid=uid,
        batch_size=batch,
        sequence_length=length,
        num_steps=steps,
    )


def order(source: ListPages, max_uids: int, uid: int) -> list[int]:
    permutation = Permutation(KEY, source.num_pages)
    pages = [page_index(permutation, max_uids, uid, i) for i in range(source.num_pages)]
    return [page for page in pages if page is not None]


def letters(num_pages: int, documents: int = 5) -> ListPages:
    return ListPages([[f"page {p} document {d}" for d in range(documents)] for p in range(num_pages)])


@settings(deadline=None, max_examples=60)
@given(
    pages=st.lists(st.lists(st.text("abc\u00e9", max_size=30), max_size=4), min_size=1, max_size=12),
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    max_uids=st.integers(1, 3),
    prefetch=st.integers(1, 4),
)
def test_batches_are_the_packed_stream_cut_in_order(
    pages: list[list[str]], batch: int, length: int, max_uids: int, prefetch: int
) -> None:
    source = ListPages(pages)
    for uid in range(max_uids):
        expected = pack([d for page in order(source, max_uids, uid) for d in source.pages[page]], TOKENIZER)
        with open_stream(source, max_uids=max_uids, uid=uid, batch=batch, length=length, prefetch=prefetch) as stream:
            batches = []
            for step, data in enumerate(stream):
                batches.append(data)
                assert stream.page_digests == used(
                    source, step + 1, max_uids=max_uids, uid=uid, batch=batch, length=length
                )
        count = len(expected) // (batch * length)
        assert len(batches) == count
        whole = expected[: count * batch * length].reshape(count, batch, length)
        assert all(np.array_equal(got, want) for got, want in zip(batches, whole, strict=True))
        assert isinstance(stream.fault, DataUnavailable)


def test_a_prefix_replay_makes_the_same_batches_and_pages() -> None:
    source = letters(40)
    with open_stream(source) as miner, open_stream(source, prefetch=1) as auditor:
        trained = [(batch, miner.page_digests) for batch, _ in zip(miner, range(30), strict=False)]
        replayed = [(batch, auditor.page_digests) for batch, _ in zip(auditor, range(7), strict=False)]
    assert len(trained) == 30
    assert trained[0][0].shape == (2, 8)
    assert trained[0][0].dtype == np.int64
    for (batch, digests), (again, digests_again) in zip(trained, replayed, strict=False):
        assert np.array_equal(batch, again)
        assert digests == digests_again
    assert trained[-1][1] == used(source, 30)
    assert replayed[-1][1] == trained[-1][1][: len(replayed[-1][1])]


def test_batches_are_the_callers_own() -> None:
    source = letters(8)
    with open_stream(source) as stream, open_stream(source) as other:
        next(stream)[:] = -1
        next(other)
        assert np.array_equal(next(stream), next(other))


def test_a_missing_page_ends_the_stream_with_the_batches_it_has() -> None:
    whole = letters(40)
    third = order(whole, 4, 1)[2]
    source = ListPages([list(page) for page in whole.pages], missing=frozenset({third}))
    with open_stream(source) as stream:
        assert stream.fault is None
        batches = list(stream)
        assert str(stream.fault) == f"page {third} is missing"
        assert list(stream) == []
    tokens = sum(len(pack(whole.pages[page], TOKENIZER)) for page in order(whole, 4, 1)[:2])
    assert len(batches) == tokens // 16
    assert len(stream.page_digests) == 2
    assert stream.page_digests == used(source, len(batches))
    with pytest.raises(DataUnavailable, match=f"page {third} is missing"):
        used(source, len(batches) + 1)


def test_pages_without_a_batch_are_not_counted() -> None:
    source = letters(4, documents=1)  # one page each, smaller than a batch of 32 tokens
    with open_stream(source, batch=4) as stream:
        assert list(stream) == []
        assert stream.page_digests == ()
        assert "used all its 1 pages of 4" in str(stream.fault)
    assert used(source, 0) == ()


def test_the_reader_stays_within_its_prefetch_and_ends_at_close() -> None:
    source = letters(80)
    stream = open_stream(source, prefetch=2)
    next(stream)
    stream.close()
    assert 1 <= len(source.fetched) <= 4  # one in use, two ahead, one being read as it closes
    assert not [thread for thread in threading.enumerate() if thread.name == "page-reader"]
    assert list(stream) == []
    assert stream.fault is None
    stream.close()


def test_a_bug_in_a_source_is_raised_not_swallowed() -> None:
    class Broken(ListPages):
        def fetch(self, index: int) -> Page:
            raise RuntimeError("broken source")

    with open_stream(Broken([["a"]] * 8)) as stream:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broken source"):
                next(stream)
        assert stream.fault is None


def test_a_permutation_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 pages, the page source 8"):
        pages_used(
            letters(8),
            TOKENIZER,
            Permutation(KEY, 3),
            max_uids=1,
            uid=0,
            batch_size=1,
            sequence_length=1,
            num_steps=1,
        )


def test_heldout_sequences_spread_over_the_stream() -> None:
    source = letters(1)
    stream = pack(source.heldout(), TOKENIZER)
    total = len(stream) // 10
    every = heldout_sequences(source, TOKENIZER, 10, total)
    assert np.array_equal(every.ravel(), stream[: total * 10])
    some = heldout_sequences(source, TOKENIZER, 10, 4)
    assert some.shape == (4, 10)
    assert some.dtype == np.int64
    assert np.array_equal(some, every[[0, total // 4, total * 2 // 4, total * 3 // 4]])
    for bad in (0, total + 1):
        with pytest.raises(ConfigError, match=f"1 to {total}"):
            heldout_sequences(source, TOKENIZER, 10, bad)
