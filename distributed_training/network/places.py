"""A few places for long streams, shared fairly by time: who holds one cannot keep others out.

Whoever comes when all are taken gets the place of who has held places longest, if that is a turn more than who comes
has. So a stream of one small request, however often it is renewed, gives way to the first who waits; a fast fetch is
over before its turn is; a slow one goes on from where it was, and has in the end as much time as any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from distributed_training.errors import PeerFault

TURN_S = 10.0
FORGET_S = 3600.0  # what was held counts half after so long
MAX_REMEMBERED = 8192  # twice the uids a manifest can allow


@dataclass(slots=True, eq=False)
class _Place:
    who: bytes
    since: float
    limit: asyncio.Timeout
    gave_way: bool = False


class Places:
    def __init__(self, total: int, per_peer: int, turn_s: float = TURN_S) -> None:
        self._total, self._per_peer, self._turn_s = total, per_peer, turn_s
        self._taken: list[_Place] = []  # oldest first
        self._held: dict[bytes, float] = {}  # seconds, of places that were given back
        self._halved_at = 0.0

    @asynccontextmanager
    async def place(self, who: bytes) -> AsyncIterator[bool]:
        """A place, or False: there is none now. Ends the block with PeerFault when it is given to who came later."""
        if not self._make_room(who):
            yield False
            return
        place = None
        try:
            async with asyncio.timeout(None) as limit:
                place = _Place(who, self._now(), limit)
                self._taken.append(place)
                yield True
        except TimeoutError:
            raise PeerFault("had its turn, and others waited") from None
        finally:
            if place is not None and not place.gave_way:
                self._give_back(place)

    def _make_room(self, who: bytes) -> bool:
        own = [place for place in self._taken if place.who == who]
        if len(own) >= self._per_peer:  # a peer that was cut off is back before its old stream has ended
            return self._give_way(own[0], self._now() - own[0].since)
        if len(self._taken) < self._total:
            return True
        held = {place.who: self._held_s(place.who) for place in self._taken}
        longest = max(self._taken, key=lambda place: held[place.who])
        return self._give_way(longest, held[longest.who] - self._held_s(who))

    def _give_way(self, place: _Place, ahead_s: float) -> bool:
        if ahead_s < self._turn_s:
            return False
        self._give_back(place)
        place.gave_way = True
        if not place.limit.expired():
            place.limit.reschedule(self._now())
        return True

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _held_s(self, who: bytes) -> float:
        return self._held.get(who, 0.0) + sum(self._now() - place.since for place in self._taken if place.who == who)

    def _give_back(self, place: _Place) -> None:
        self._taken.remove(place)
        if self._now() - self._halved_at > FORGET_S or len(self._held) >= MAX_REMEMBERED:
            self._halved_at = self._now()
            self._held = {who: s / 2 for who, s in self._held.items() if s > self._turn_s}
        self._held[place.who] = self._held.get(place.who, 0.0) + self._now() - place.since
