"""How much a peer may ask of us: token buckets for streams and bytes, on the running loop's clock.

Peer keys cost nothing, so only those that the roster names have an account of their own; all others share one. The
memory is therefore bounded by the roster, however many keys a stranger makes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable
from dataclasses import dataclass

from distributed_training.errors import PeerFault

LINES = 20  # refusals that are logged at once, for each account
LINES_PER_S = 0.2  # and in the long run
NAMED_PEERS = 8192  # accounts at most: twice the uids a manifest can allow
REPEATS, FORGET_S = 3, 3600.0
THINGS_OF_A_PEER = 1024  # that are remembered


@dataclass(frozen=True, slots=True)
class Budget:
    """`burst` at once, `per_s` in the long run; streams are those the peer opens, bytes those of both directions."""

    streams: float
    streams_per_s: float
    bytes: float
    bytes_per_s: float


# Strangers get to say who they are: a first frame, then they are refused. Whoever is about to join is one, too.
STRANGERS = Budget(streams=512, streams_per_s=64, bytes=4 << 20, bytes_per_s=256 << 10)


class Bucket:
    """A token bucket. Full at the start."""

    __slots__ = ("_at", "_burst", "_level", "_per_s")

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._level, self._at = burst, asyncio.get_running_loop().time()

    def take(self, amount: float) -> bool:
        """Take `amount` if it is there; otherwise nothing is taken."""
        now = asyncio.get_running_loop().time()
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if amount > self._level:
            return False
        self._level -= amount
        return True

    def owe(self, amount: float) -> float:
        """Take `amount` whether it is there or not; after how many seconds it will have been."""
        self.take(0)
        self._level -= amount
        return max(0.0, -self._level / self._per_s)


class Account:
    """What one peer, or all strangers together, have used."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.streams = Bucket(budget.streams, budget.streams_per_s)
        self.bytes = Bucket(budget.bytes, budget.bytes_per_s)
        self.lines = Bucket(LINES, LINES_PER_S)
        self.unlogged = 0  # refusals since the last one that was logged


class Accounts:
    """Accounts by peer key. Until `admit` is called for the first time nobody has a limit."""

    def __init__(self) -> None:
        self._named: dict[bytes, Account] = {}
        self._strangers: Account | None = None

    @property
    def limited(self) -> bool:
        return self._strangers is not None

    def admit(self, peers: Collection[bytes], budget: Budget) -> None:
        """From now on each of `peers` has `budget`, and everybody else shares STRANGERS. Used budget stays used."""
        if self._strangers is None:
            self._strangers = Account(STRANGERS)
        former = self._named
        self._named = {}
        for key in sorted(set(peers))[:NAMED_PEERS]:
            kept = former.get(key)
            self._named[key] = kept if kept is not None and kept.budget == budget else Account(budget)

    def names(self, peer_key: bytes) -> bool:
        """Is it no stranger? Before the first call of `admit` nobody is."""
        return self._strangers is None or peer_key in self._named

    def of(self, peer_key: bytes) -> Account | None:
        """None: no limit."""
        return self._named.get(peer_key, self._strangers)


class Repeats:
    """The same thing to the same peer: `times` in a while, for lines that break; then not again, from here."""

    def __init__(self, times: int = REPEATS, forget_s: float = FORGET_S) -> None:
        self._times, self._forget_s = times, forget_s
        self._given: dict[bytes, dict[Hashable, tuple[int, float]]] = {}

    def take(self, peer: bytes, thing: Hashable) -> int:
        """How often it was given before; counts it. Raises PeerFault when that is often enough.

        What is forgotten early is still in the peer's budget.
        """
        now = asyncio.get_running_loop().time()
        if peer not in self._given and len(self._given) >= NAMED_PEERS:
            self._given.clear()
        given = self._given.setdefault(peer, {})
        count, first = given.pop(thing, (0, now))
        if now - first > self._forget_s:
            count, first = 0, now
        given[thing] = min(self._times, count + 1), first  # at the end: the oldest are forgotten first
        while len(given) > THINGS_OF_A_PEER:
            del given[next(iter(given))]
        if count >= self._times:
            raise PeerFault(f"has had this {self._times} times")
        return count
