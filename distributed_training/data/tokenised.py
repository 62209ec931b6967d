"""Pages as tokens, kept in memory: a page is read and tokenised once a node, whoever asks for it how often."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future

from distributed_training.data.base import Page, PageFacts, PageSource, Tokens
from distributed_training.data.tokens import Tokenizer, packed

MAX_BYTES = 256 << 20  # of tokens: 134 million of GPT-2's, the pages of half an H200's round


class TokenisedPages:
    """A PageSource over another: its pages carry their tokens instead of their documents.

    The pages used last are kept, `max_bytes` of tokens. Several readers of one page wait for one read, and share its
    error.
    """

    def __init__(self, source: PageSource, tokenizer: Tokenizer, max_bytes: int = MAX_BYTES) -> None:
        self.source, self._tokenizer, self._max_bytes = source, tokenizer, max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, tuple[Page, int]] = OrderedDict()
        self._kept_bytes = 0
        self._reading: dict[int, Future[Page]] = {}

    @property
    def num_pages(self) -> int:
        return self.source.num_pages

    @property
    def sha256(self) -> str:
        return self.source.sha256

    def facts(self, index: int) -> PageFacts:
        return self.source.facts(index)

    def heldout(self) -> tuple[str, ...]:
        return self.source.heldout()

    def fetch(self, index: int) -> Page:
        """The page with `tokens` and without documents. Raises what the source raises."""
        with self._lock:
            kept = self._kept.get(index)
            if kept is not None:
                self._kept.move_to_end(index)
                return kept[0]
            reading = self._reading.get(index)
            own = Future[Page]() if reading is None else None
            if own is not None:
                self._reading[index] = own
        if reading is not None:
            return reading.result()
        assert own is not None
        return self._read(index, own)

    def _read(self, index: int, promised: Future[Page]) -> Page:
        try:
            read = self.source.fetch(index)
            ids = packed(read.documents, self._tokenizer)
            ids.flags.writeable = False
            page = Page(index, (), read.digest, Tokens(self._tokenizer.sha256, ids))
        except BaseException as error:  # whoever waits must learn of it
            with self._lock:
                del self._reading[index]
            promised.set_exception(error)
            raise
        with self._lock:
            del self._reading[index]
            self._keep(page, ids.nbytes)
        promised.set_result(page)
        return page

    def _keep(self, page: Page, size: int) -> None:
        self._kept[page.index] = page, size
        self._kept_bytes += size
        while self._kept_bytes > self._max_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self._kept_bytes -= gone
