"""Which donor is asked for which piece of a snapshot. No I/O, no clock: the same calls give the same answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Pieces:
    """Work stealing over numbered pieces: who answers faster asks for more, and nobody holds up the end.

    A piece is asked of one donor while there are pieces nobody was asked for. After that a donor that owes nothing is
    asked for a piece another one still owes: first those with the fewest donors asked, of them the last of the longest
    queue, which would arrive latest. Copies are bounded: one at a time per idle donor.
    """

    def __init__(self, wanted: Iterable[int]) -> None:
        self._fresh = deque(wanted)
        self._missing = set(self._fresh)
        self._owed: dict[bytes, dict[int, None]] = {}  # donor -> pieces asked of it, oldest first
        self._askers: dict[int, int] = {}  # piece in flight -> donors it was asked of

    @property
    def missing(self) -> int:
        return len(self._missing)

    @property
    def done(self) -> bool:
        return not self._missing

    def ask(self, donor: bytes) -> int | None:
        """The piece to ask `donor` for next; None when there is nothing for it to do now."""
        while self._fresh and self._fresh[0] not in self._missing:
            self._fresh.popleft()
        if self._fresh:
            return self._note(donor, self._fresh.popleft())
        if self._owed.get(donor):
            return None
        owed = self._owed_by_others(donor)
        return self._note(donor, owed) if owed is not None else None

    def arrived(self, donor: bytes, piece: int) -> bool:
        """A checked piece came from `donor`. True if it is the first copy."""
        self._settle(donor, piece)
        first = piece in self._missing
        self._missing.discard(piece)
        return first

    def dropped(self, donor: bytes) -> None:
        """Nothing more comes from `donor`; what nobody else owes goes back to the front."""
        for piece in reversed(self._owed.pop(donor, {})):
            self._forget(piece)
            if piece in self._missing and piece not in self._askers:
                self._fresh.appendleft(piece)

    def _owed_by_others(self, donor: bytes) -> int | None:
        best: tuple[tuple[int, int], int] | None = None
        for other, owed in self._owed.items():
            waiting = [piece for piece in owed if piece in self._missing]
            for place, piece in enumerate(waiting if other != donor else ()):
                rank = (self._askers[piece], -place)
                if best is None or rank < best[0]:
                    best = rank, piece
        return None if best is None else best[1]

    def _note(self, donor: bytes, piece: int) -> int:
        self._owed.setdefault(donor, {})[piece] = None
        self._askers[piece] = self._askers.get(piece, 0) + 1
        return piece

    def _settle(self, donor: bytes, piece: int) -> None:
        owed = self._owed.get(donor, {})
        if piece in owed:
            del owed[piece]
            self._forget(piece)

    def _forget(self, piece: int) -> None:
        self._askers[piece] -= 1
        if not self._askers[piece]:
            del self._askers[piece]
