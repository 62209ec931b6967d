"""Files by their sha256, from whoever gives them: nothing is believed that does not hash to what was asked for.

What has come stays on disk (`NAME.part`) and the next source, or the next start, goes on from there. If what several
gave together has another hash, nobody can tell who lied: from then on each source fills a file of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distributed_training.errors import ConfigError, DeadlineMissed, LocalFault, NetworkFault, WireError, said
from distributed_training.network.base import deadline

log = logging.getLogger(__name__)

TURN_S = 60.0  # of one source, then the next one goes on where it is
PAUSE_S = 2.0  # before all are asked again, when none of them gave anything
PATIENCE_S = 60.0  # without a byte from anybody
SAY_EVERY_S = 5.0


class Absent(NetworkFault):
    """It does not have the file: asking again does not help."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`prefix`: the sha256, or its first 8 bytes where the chain says no more."""

    name: str
    prefix: bytes
    max_bytes: int


class Source(Protocol):
    """Somebody who may have it."""

    @property
    def name(self) -> str: ...

    def pieces(self, wanted: Wanted, offset: int) -> AsyncGenerator[bytes]:
        """The rest of the file from `offset` on, until its end; no more than `max_bytes` are held in memory.

        Raises Absent, NetworkFault, WireError, and LocalFault or ConfigError for places of a library.
        """
        ...


async def fetch(
    wanted: Wanted,
    path: Path,
    sources: Sequence[Source],
    *,
    say: Callable[[str], None] = log.info,
    patience_s: float = PATIENCE_S,
) -> str:
    """`path` is a file that hashes to what is wanted when it returns; the name of the source that gave the end of it.

    Sources are asked in order, again and again while any byte comes. Raises NetworkFault with what each one said,
    LocalFault where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return await _Fetch(wanted, path, say).run(list(sources), patience_s)
    except OSError as error:
        raise LocalFault(f"cannot write {path}: {error.strerror}; what has come of it is kept") from None


class _Fetch:
    def __init__(self, wanted: Wanted, path: Path, say: Callable[[str], None]) -> None:
        self._wanted, self._path, self._say = wanted, path, say
        self._answers: dict[str, str] = {}  # what each source said last
        self._alone = False  # each source fills a file of its own
        self._clock = asyncio.get_running_loop().time
        self._moved_at = self._said_at = self._clock()

    async def run(self, sources: list[Source], patience_s: float) -> str:
        while sources:
            before = self._moved_at
            for source in tuple(sources):
                try:
                    if await self._turn(source):
                        return source.name
                except (Absent, WireError, ConfigError) as error:  # there is no use in asking it again
                    self._answers[source.name] = said(error)
                    sources.remove(source)
                except (NetworkFault, LocalFault) as error:
                    self._answers[source.name] = said(error)
            if self._clock() > self._moved_at + patience_s:
                raise DeadlineMissed(f"{self._wanted.name}: nothing came in {patience_s:.0f} s: {self._told()}")
            if sources and self._moved_at == before:
                await asyncio.sleep(PAUSE_S)
        raise NetworkFault(f"{self._wanted.name}: {self._told()}")

    def _told(self) -> str:
        return "; ".join(f"{name} {answer}" for name, answer in self._answers.items()) or "there is nobody to ask"

    async def _turn(self, source: Source) -> bool:
        """True: the file is there. False: it has to be begun again. Raises what the source raises, WireError when it
        alone gave bytes that hash to something else."""
        own = hashlib.sha256(source.name.encode()).hexdigest()[:8] + "." if self._alone else ""
        part = self._path.with_name(f"{self._path.name}.{own}part")
        have = resumed = part.stat().st_size if part.exists() else 0
        async with deadline(TURN_S, f"a turn of {source.name}"):
            with part.open("ab") as file:
                async with aclosing(source.pieces(self._wanted, have)) as pieces:
                    async for piece in pieces:
                        file.write(piece)
                        have += len(piece)
                        self._moved(source, have)
        return await asyncio.to_thread(self._check, source, part, resumed)

    def _moved(self, source: Source, have: int) -> None:
        self._moved_at = self._clock()
        if self._moved_at > self._said_at + SAY_EVERY_S:
            self._said_at = self._moved_at
            self._say(f"{self._wanted.name}: {have / 1e6:.1f} MB are here, now from {source.name}")

    def _check(self, source: Source, part: Path, resumed: int) -> bool:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
        if found.startswith(self._wanted.prefix):
            part.replace(self._path)
            for other in self._path.parent.glob(f"{self._path.name}.*part"):
                other.unlink()
            return True
        size, wanted = part.stat().st_size, self._wanted.prefix.hex()[:16]
        part.unlink()
        wrong = f"gave {size:,} bytes that hash to {found.hex()[:16]}..., not {wanted}..."
        mixed = resumed > 0 and not self._alone
        self._say(f"{self._wanted.name}: {source.name}{' and others before it' if mixed else ''} {wrong}")
        if not mixed:
            raise WireError(wrong)
        self._alone = True
        return False
