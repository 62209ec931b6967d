"""The numbers of our writes: none is left out and none is used twice, whatever was cut or cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Ask = Callable[[], Awaitable[int]]


@dataclass(slots=True)
class Nonces:
    """Of one hotkey, across connections.

    A write whose fate is not known leaves its number to the next one: the chain takes one of the two, so nothing is
    written twice, and nothing waits in the pool for a number that never comes.
    """

    flying: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)

    async def take(self, used_up: Ask, unused: Ask) -> int:
        """`used_up`: how many numbers the chain had used when the writer looked whether its write is there, or before;
        `unused`: the first that its pool does not know either."""
        if self.lost:
            used = await used_up()
            self.lost = {number for number in self.lost if number >= used}
        if self.lost:
            number = min(self.lost)
            self.lost.remove(number)
        else:
            number = max([await unused(), *(flying + 1 for flying in self.flying)])
        self.flying.add(number)
        return number

    def done(self, number: int, used: bool | None) -> None:
        """used: did the chain use it up? None: nobody knows."""
        self.flying.discard(number)
        if used is None or (not used and any(flying > number for flying in self.flying)):
            self.lost.add(number)
