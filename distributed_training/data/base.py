"""The data seam: pages of documents by index, each checked against its content digest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray


class Tokens(NamedTuple):
    """A page's documents in order, each followed by EOS, as ids of one tokeniser."""

    tokenizer: str  # its sha256, hex
    ids: NDArray[Any]  # [n], uint16 or uint32


@dataclass(frozen=True, slots=True)
class Page:
    """One page: whole documents in order. `digest` is blake3 over the length-prefixed UTF-8 documents.

    A source that tokenises gives `tokens` in place of the documents.
    """

    index: int
    documents: tuple[str, ...]
    digest: bytes
    tokens: Tokens | None = field(default=None, compare=False)


class PageFacts(NamedTuple):
    """What the page manifest says of a page, so that nobody has to read it for that."""

    digest: bytes | None  # of its documents; None: nobody has said
    text_bytes: int  # of all its documents, UTF-8; 0: not known
    rows: int  # documents


class PageSource(Protocol):
    """Read access to the run's pages. Methods block (run them in a thread); they are thread-safe and idempotent.

    `fetch` raises DataUnavailable when a page cannot be read or does not match the page manifest. There are no
    substitutes (protocol section 4).
    """

    @property
    def num_pages(self) -> int: ...

    @property
    def sha256(self) -> str:
        """sha256 of the page manifest, hex: must equal the run manifest's."""
        ...

    def fetch(self, index: int) -> Page: ...

    def facts(self, index: int) -> PageFacts:
        """Reads nothing. Raises IndexError for an index outside [0, num_pages)."""
        ...

    def heldout(self) -> tuple[str, ...]:
        """Documents of the held-out set, in order; disjoint from all pages."""
        ...


class PinnedPages(PageSource, Protocol):
    """A source that knows its page manifest."""

    @property
    def missing_digests(self) -> int:
        """How many pages have no digest in the page manifest: they are believed for the data set's commit."""
        ...
