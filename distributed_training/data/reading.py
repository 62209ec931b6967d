"""From a page manifest and places that hold its files to pages: each in turn, each checked, no substitutes."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from distributed_training.data.base import Page, PageFacts
from distributed_training.data.chunks import decode
from distributed_training.data.page_file import PageTable
from distributed_training.data.pages import PageEntry, page_digest
from distributed_training.data.places.base import Directory, Place
from distributed_training.data.places.cache import HELDOUT, ChunkCache
from distributed_training.errors import DataUnavailable
from distributed_training.ongoing import Ongoing

log = logging.getLogger(__name__)

Documents = tuple[str, ...]


class TablePages:
    """A PageSource. Places are asked in order; what none can give is DataUnavailable that names what each said.
    A page without a digest is taken only from places that vouch for its file.

    When no place gives a page that has a digest, `last_resort(index)` may yield chunks that could be it: of peers, for
    example. It may be set later. The pieces of the held-out set follow the pages: piece i is asked for as page n + i.
    """

    def __init__(
        self,
        table: PageTable,
        places: Sequence[Place],
        cache: ChunkCache | None = None,
        last_resort: Callable[[int], Iterable[bytes]] | None = None,
    ) -> None:
        self.table = table
        self._places, self._cache, self.last_resort = tuple(places), cache, last_resort
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._troubles: dict[str, Ongoing] = {}

    @property
    def num_pages(self) -> int:
        return self.table.num_pages

    @property
    def sha256(self) -> str:
        return self.table.sha256

    @property
    def missing_digests(self) -> int:
        return self.table.missing_digests

    @property
    def counts(self) -> dict[str, int]:
        """So far: how many pages each place gave (the cache is `cache`), and `PLACE failed`."""
        with self._lock:
            return dict(self._counts)

    def fetch(self, index: int) -> Page:
        """Raises DataUnavailable (see the seam); IndexError for an index outside [0, num_pages)."""
        entry, expected = self.table.entry(index), self.table.digest(index)
        what = f"page {index} in {self.table.header.files[entry.file].name}"
        return Page(index, *self._read(index, entry, expected, what))

    def facts(self, index: int) -> PageFacts:
        entry = self.table.entry(index)
        return PageFacts(self.table.digest(index), entry.text_bytes, entry.rows)

    def kept(self, index: int) -> bytes | None:
        """The compressed chunk of a page if it is on this machine's disk, for others: they check it themselves."""
        chunk = None if self._cache is None else self._cache.get(self._key(index))
        entry = self.table.piece(index)
        for place in self._places:
            if chunk is None and isinstance(place, Directory):
                with suppress(DataUnavailable):
                    chunk = place.read(self.table.header.files[entry.file].name, entry.offset, entry.length)
        return chunk

    def heldout(self) -> Documents:
        documents: list[str] = []
        for number, piece in enumerate(self.table.header.heldout):
            what = f"held-out set in {self.table.header.files[piece.file].name}"
            documents += self._read(self.num_pages + number, piece.entry, bytes.fromhex(piece.digest), what)[0]
        return tuple(documents)

    def _key(self, index: int) -> str:
        """In the cache."""
        return str(index) if index < self.num_pages else f"{HELDOUT}{index - self.num_pages}"

    def _read(self, index: int, entry: PageEntry, expected: bytes | None, what: str) -> tuple[Documents, bytes]:
        try:
            return self._obtain(self._key(index), entry, expected, what)
        except DataUnavailable as nowhere:
            if self.last_resort is None or expected is None:
                raise
            return self._resort(index, entry, expected, what, nowhere)

    def _obtain(self, key: str, entry: PageEntry, expected: bytes | None, what: str) -> tuple[Documents, bytes]:
        kept = self._cache.get(key) if self._cache is not None else None
        if kept is not None:
            try:
                found = self._checked(kept, entry, expected, what)
                self._count("cache")
                return found
            except DataUnavailable:
                self._drop(key)  # it is fetched again
        said: list[str] = []
        file = self.table.header.files[entry.file]
        for place in self._places:
            if expected is None and not place.vouches(file, self.table.header.dataset):
                said.append(f"{place.name}: not asked for a page without a digest, its {file.name} is not proven")
                continue
            try:
                return self._from(place, key, entry, expected, what)
            except DataUnavailable as error:
                self._count(f"{place.name} failed")
                self._trouble(place.name).begin(error)
                said.append(str(error) if len(self._places) == 1 else f"{place.name}: {error}")
        raise DataUnavailable(f"cannot read {what}: {'; '.join(said)}")

    def _from(
        self, place: Place, key: str, entry: PageEntry, expected: bytes | None, what: str
    ) -> tuple[Documents, bytes]:
        name = self.table.header.files[entry.file].name
        data = place.read(name, entry.offset, entry.length)
        try:
            found = self._checked(data, entry, expected, what)
        except DataUnavailable:  # bytes that were wrong once may be right the next time
            place.forget(name)
            data = place.read(name, entry.offset, entry.length)
            try:
                found = self._checked(data, entry, expected, what)
            except DataUnavailable:
                place.forget(name)
                raise
        self._count(place.name)
        self._trouble(place.name).end()
        if not isinstance(place, Directory):
            self._keep(key, data)
        return found

    def _checked(self, data: bytes, entry: PageEntry, expected: bytes | None, what: str) -> tuple[Documents, bytes]:
        documents = decode(data, entry, self.table.header.files[entry.file], what)
        digest = page_digest(documents)
        if expected is not None and digest != expected:
            raise DataUnavailable(f"{what} has digest {digest.hex()[:16]}..., expected {expected.hex()[:16]}...")
        return documents, digest

    def _resort(
        self, index: int, entry: PageEntry, expected: bytes, what: str, nowhere: DataUnavailable
    ) -> tuple[Documents, bytes]:
        assert self.last_resort is not None
        tried = 0
        for data in self.last_resort(index):
            tried += 1
            try:
                found = self._checked(data, entry, expected, what)
            except DataUnavailable:
                continue
            self._count("last resort")
            self._keep(self._key(index), data)
            return found
        raise DataUnavailable(f"{nowhere}; the last resort gave {tried} chunks, none of them it")

    def _keep(self, key: str, data: bytes) -> None:
        if self._cache is not None:
            self._cache.put(key, data)

    def _drop(self, key: str) -> None:
        if self._cache is not None:
            self._cache.drop(key)

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def _trouble(self, place: str) -> Ongoing:
        """Once for each outage of a place, not for every page of it."""
        with self._lock:
            if place not in self._troubles:
                began, over = f"a place of pages fails: {place}", f"a place of pages gives pages again: {place}"
                self._troubles[place] = Ongoing(log, began, over)
            return self._troubles[place]
