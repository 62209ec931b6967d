"""One fault at one exact point: when the saboteur strikes, what it does then, and its own record of it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAULTS = ("kill", "freeze", "slow", "cut", "lie")
# Point -> what is about to happen there. Each is reached at most once in the fault's round.
POINTS = {
    "train": "its second inner step is done",
    "before-commit": "its work-record hash is about to be committed",
    "before-scatter": "its first slice is about to leave",
    "mid-scatter": "chunks of its first slice have left, the rest has not",
    "reducing": "two senders have given it their whole slices",
    "before-output": "its output hash is about to be committed",
    "after-output": "its output hash is on chain, nobody has fetched the slice yet",
    "mid-serve": "it serves a slice: the record has left, the chunks have not",
    "mid-fetch": "it fetches a slice: the record has come, the chunks have not",
    "before-map": "validator: its slice map is about to be committed",
}
LIES = {
    "train": "its log claims twice the gradient norms",
    "before-commit": "its work record declares half the chunk norms",
    "before-scatter": "every chunk it sends has one byte too many",
    "mid-scatter": "the chunks it sends are not those it committed",
    "reducing": "its output record names a sender that is no candidate",
    "before-output": "it commits the hash of other bytes",
    "after-output": "it serves other bytes than its record says",
    "mid-serve": "the frames it serves are longer than they may be",
    "before-map": "its slice map claims every slice there could be",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault at one point in one round. `seconds`: of slow and cut; nobody in here wakes a frozen process."""

    fault: str
    point: str
    round: int
    seconds: float


@dataclass(slots=True)
class Ledger:
    """Bytes that were handed to streams whose other end has not answered yet."""

    pending: dict[int, int] = field(default_factory=dict)

    def hand(self, stream: int, count: int) -> None:
        self.pending[stream] = self.pending.get(stream, 0) + count

    def settle(self, stream: int) -> None:
        self.pending.pop(stream, None)

    @property
    def bytes_in_flight(self) -> int:
        return sum(self.pending.values())


Note = Callable[[dict[str, Any]], None]


def strike(fault: str) -> None:
    """kill: SIGKILL to this process. freeze: SIGSTOP to its group, helpers included. The others need no signal."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "freeze":
        os.killpg(os.getpgid(0), signal.SIGSTOP)


class Sabotage:
    """Shared by all wrappers of one node; thread-safe, as training reaches its point in another thread."""

    def __init__(self, plan: Plan, note: Note, act: Callable[[str], None] = strike) -> None:
        self.plan, self.ledger = plan, Ledger()
        self.block: int | None = None  # the newest head that passed by
        self.worked: int | None = None  # the round whose training is over
        self._note, self._act = note, act
        self._began: float | None = None
        self._lock = threading.Lock()

    def reach(self, point: str, round_index: int | None) -> bool:
        """The node is at `point` of a round: strike if that is the plan. True if it was."""
        with self._lock:
            if self._began is not None or (point, round_index) != (self.plan.point, self.plan.round):
                return False
            self._began = time.monotonic()
        self._note(
            {
                "fault": self.plan.fault,
                "point": point,
                "round": round_index,
                "block": self.block,
                "bytes_in_flight": self.ledger.bytes_in_flight,
                "pid": os.getpid(),
            }
        )
        self._act(self.plan.fault)
        return True

    def active(self, fault: str) -> bool:
        """Is this fault under way? A lie is told to the end of its round, by whoever asks about the round."""
        if self._began is None or self.plan.fault != fault:
            return False
        return fault == "lie" or time.monotonic() - self._began < self.plan.seconds

    def lies(self, point: str, round_index: int | None) -> bool:
        return self.active("lie") and (point, round_index) == (self.plan.point, self.plan.round)


def durable_note(path: Path, role: str) -> Note:
    """Appends `fault_injected` to the node's events and waits until it is on disk: what follows may be the end."""

    def write(fields: dict[str, Any]) -> None:
        event = {"time": time.time(), "event": "fault_injected", "role": role, **fields}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())

    return write
