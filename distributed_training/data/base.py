"""The data seam: pages of documents by index, each checked against its content digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Page:
    """One page: whole documents in order. `digest` is blake3 over the length-prefixed UTF-8 documents."""

    index: int
    documents: tuple[str, ...]
    digest: bytes


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

    def heldout(self) -> tuple[str, ...]:
        """Documents of the held-out set, in order; disjoint from all pages."""
        ...
