from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.data.base import Page, PageFacts, PageSource
from distributed_training.data.loader import BatchStream, heldout_sequences, pages_used
from distributed_training.data.pages import page_digest
from distributed_training.data.tokenised import TokenisedPages
from distributed_training.data.tokens import ByteTokenizer, load_tokenizer, pack, packed
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

    def facts(self, index: int) -> PageFacts:
        return PageFacts(page_digest(self.pages[index]), 0, len(self.pages[index]))

    def heldout(self) -> tuple[str, ...]:
        return tuple(f"held out {index}" for index in range(40))


def open_stream(
    source: PageSource,
    *,
    max_uids: int = 4,
    uid: int = 1,
    batch: int = 2,
    length: int = 8,
    readers: int = 2,
    ahead: int = 1_000,
    first: int = 0,
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
        first_batch=first,
        readers=readers,
        ahead_bytes=ahead,
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
    readers=st.integers(1, 4),
    ahead=st.integers(1, 300),
    tokenised=st.booleans(),
)
def test_batches_are_the_packed_stream_cut_in_order(
    pages: list[list[str]], batch: int, length: int, max_uids: int, readers: int, ahead: int, tokenised: bool
) -> None:
    source = ListPages(pages)
    given = TokenisedPages(source, TOKENIZER, max_bytes=200) if tokenised else source
    shape = {"batch": batch, "length": length}
    for uid in range(max_uids):
        expected = pack([d for page in order(source, max_uids, uid) for d in source.pages[page]], TOKENIZER)
        with open_stream(given, max_uids=max_uids, uid=uid, readers=readers, ahead=ahead, **shape) as stream:
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
    with open_stream(source) as miner, open_stream(source, readers=1, ahead=1) as auditor:
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


@settings(deadline=None, max_examples=60)
@given(first=st.integers(0, 40), readers=st.integers(1, 4), batch=st.integers(1, 3), length=st.integers(1, 9))
def test_a_stream_that_goes_on_at_a_batch_gives_what_the_whole_one_gives(
    first: int, readers: int, batch: int, length: int
) -> None:
    source = letters(24, documents=2)
    with open_stream(source, batch=batch, length=length) as stream:
        whole = [(data, stream.page_digests) for data in stream]
    with open_stream(source, batch=batch, length=length, first=first, readers=readers) as later:
        rest = [(data, later.page_digests) for data in later]
        assert isinstance(later.fault, DataUnavailable)
    assert len(rest) == max(0, len(whole) - first)
    for (data, digests), (expected, expected_digests) in zip(rest, whole[first:], strict=True):
        assert np.array_equal(data, expected)
        assert digests == expected_digests


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_stay_within_their_bounds_and_end_at_close(readers: int) -> None:
    source = letters(400)
    page = 2 * len(pack(source.pages[0], TOKENIZER))  # bytes of a page's tokens, a few more in some
    stream = open_stream(source, readers=readers, ahead=2 * page)
    next(stream)
    stream.close()
    assert 1 <= len(source.fetched) <= 1 + 2 + readers  # in use, waiting, being read
    assert not [thread for thread in threading.enumerate() if thread.name == "page-reader"]
    assert list(stream) == []
    assert stream.fault is None
    stream.close()


def test_pages_are_fetched_at_once_and_used_in_order() -> None:
    class Meeting(ListPages):
        """A page comes when three are asked for."""

        def fetch(self, index: int) -> Page:
            barrier.wait(10)
            return super().fetch(index)

    barrier = threading.Barrier(3)
    source = Meeting([[f"page {p}" * 5] for p in range(36)])
    with open_stream(source, readers=3, ahead=10_000) as stream:
        batches = list(stream)
    expected = pack([d for page in order(source, 4, 1) for d in source.pages[page]], TOKENIZER)
    assert np.array_equal(np.concatenate(batches).ravel(), expected[: len(batches) * 16])


def test_waiting_is_counted() -> None:
    class Slow(ListPages):
        def fetch(self, index: int) -> Page:
            time.sleep(0.05)
            return super().fetch(index)

    with open_stream(Slow([["a" * 100]] * 40), readers=1) as stream:
        list(zip(range(20), stream, strict=False))
        assert 0.1 < stream.stall_s < 5.0
    with open_stream(letters(40), ahead=100_000) as stream:
        next(stream)
        time.sleep(0.05)
        before = stream.stall_s
        next(stream)
        assert stream.stall_s - before < 0.05


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


def test_a_page_is_read_and_tokenised_once_however_many_ask() -> None:
    class Counting(ListPages):
        def fetch(self, index: int) -> Page:
            time.sleep(0.02)
            return super().fetch(index)

    source = Counting([[f"page {p}", "and more"] for p in range(10)], missing=frozenset({9}))
    pages = TokenisedPages(source, TOKENIZER)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(pages.fetch, [3, 4] * 20))
    assert sorted(source.fetched) == [3, 4]
    for page, index in zip(read, [3, 4] * 20, strict=True):
        assert (page.index, page.digest, page.documents) == (index, page_digest(source.pages[index]), ())
        assert page.tokens is not None
        assert page.tokens.ids.dtype == np.uint16
        assert np.array_equal(page.tokens.ids, pack(source.pages[index], TOKENIZER))
        assert not page.tokens.ids.flags.writeable
    with ThreadPoolExecutor(4) as pool:
        for outcome in [pool.submit(pages.fetch, 9) for _ in range(4)]:
            with pytest.raises(DataUnavailable, match="page 9 is missing"):
                outcome.result()
    source.missing = frozenset()
    assert pages.fetch(9).index == 9, "a failure is not kept"
    assert (pages.num_pages, pages.sha256, pages.heldout()) == (10, source.sha256, source.heldout())


def test_tokens_are_kept_up_to_a_bound_those_used_last() -> None:
    source = ListPages([["x" * 99] for _ in range(10)])  # 200 bytes of tokens each
    pages = TokenisedPages(source, TOKENIZER, max_bytes=700)
    for index in (0, 1, 2, 0, 3, 0, 4):
        pages.fetch(index)
    assert source.fetched == [0, 1, 2, 3, 4]
    pages.fetch(0)
    assert source.fetched == [0, 1, 2, 3, 4]
    pages.fetch(1)
    assert source.fetched == [0, 1, 2, 3, 4, 1]
    small = TokenisedPages(source, TOKENIZER, max_bytes=100)
    assert small.fetch(0) == small.fetch(0)
    assert source.fetched[-2:] == [0, 0]


def test_packing_is_the_same_in_few_bits_and_another_tokenizer_is_refused() -> None:
    documents = ["one document", "", "caf\u00e9 \U0001f600"]
    for tokenizer in (TOKENIZER, load_tokenizer("gpt2")):
        plain = [i for text in documents for i in (*tokenizer.encode(text), tokenizer.eos)]
        assert packed(documents, tokenizer).tolist() == pack(documents, tokenizer).tolist() == plain
        assert packed(documents, tokenizer).dtype == np.uint16
    assert packed([], TOKENIZER).tolist() == []

    class Wide(ByteTokenizer):
        vocab_size = 70_000

    assert packed(documents, Wide()).dtype == np.uint32
    with open_stream(TokenisedPages(letters(8), load_tokenizer("gpt2"))) as stream:
        with pytest.raises(ConfigError, match="another tokenizer"):
            next(stream)
