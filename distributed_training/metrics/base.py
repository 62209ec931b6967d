"""What a node tells the world, as events: one fan-out that never blocks and never raises (architecture, principle 17).

`emit` leaves a record to a thread that makes JSON of it; each sink has a thread and a bounded queue of its own, so that
one which hangs holds up neither training nor the others.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from distributed_training.errors import named
from distributed_training.metrics.events import Fault, Record
from distributed_training.metrics.told import Words

QUEUE_EVENTS = 4096  # that wait for one sink: minutes of a busy node
CLOSE_S = 4.0  # for all sinks together, at the end of the process
WELL_S = 30.0  # without a loss; less may be events that the sink does not look at

log = logging.getLogger(__name__)

Event = Mapping[str, Any]
_Told = tuple[float, Record, int | None]  # time, record, round


class Sink(Protocol):
    """Receives every event as a dict of plain JSON values, which other sinks get too: it is not to be changed.

    Is called from one thread, may block and may raise: that costs this sink events and nobody else anything.
    """

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """The fan-out. `emit` and `close` never raise, whatever the values are and whatever a sink does."""

    def __init__(self, sinks: Sequence[Sink], *, role: str, uid: int, threads: bool = True) -> None:
        """threads=False: `emit` itself writes to the sinks, for those who read them in the same turn of their loop."""
        self._role, self._uid = role, uid
        self.words = Words(role, uid)  # the log, in the order in which things happen
        self._outlets = [_Outlet(sink, self, threads) for sink in sinks]
        self._told: SimpleQueue[_Told | None] = SimpleQueue()  # without a bound: nothing that its thread does can wait
        self._thread = _started(self._pass_on, "metrics") if threads else None

    def emit(self, record: Record, *, round: int | None = None) -> None:
        """Send one event. From any thread."""
        self.words.hear(record, round)
        told = (time.time(), record, round)
        if self._thread is None:
            self._send(self._event(*told), self._outlets)
        else:
            self._told.put(told)

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Write what is on its way, within `limit_s` for all sinks together; a sink that hangs is left behind."""
        deadline = time.monotonic() + limit_s
        if self._thread is not None:
            self._told.put(None)
            self._thread.join(limit_s)
        for outlet in self._outlets:
            outlet.end()
        for outlet in self._outlets:
            outlet.wait(max(0.0, deadline - time.monotonic()))

    def in_trouble(self, troubled: _Outlet, why: str, event: Event) -> None:
        """A sink begins to lose events: the log has it, and the other sinks, unless a fault was what it lost."""
        log.warning("%s loses events: %s", troubled.name, why)
        if event["event"] != "fault":
            fault = Fault(what="metrics", detail=f"{troubled.name} loses events: {why}")
            self._send(self._event(time.time(), fault, None), [o for o in self._outlets if o is not troubled])

    def _pass_on(self) -> None:
        while (told := self._told.get()) is not None:
            self._send(self._event(*told), self._outlets)

    def _event(self, at: float, record: Record, round: int | None) -> Event:
        """Numbers of numpy and torch are plain ones in it, bytes hex, NaN and infinities null."""
        name = type(record).__name__.lower()
        head = {"time": at, "event": name, "role": self._role, "uid": self._uid, "round": round}
        return head | {item.name: _tolerant(getattr(record, item.name)) for item in fields(record)}

    def _send(self, event: Event, outlets: Sequence[_Outlet]) -> None:
        for outlet in outlets:
            outlet.put(event)


def _started(work: Callable[[], None], name: str) -> Thread:
    """In a thread that the end of the process does not wait for."""
    thread = Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


class _Outlet:
    """One sink. What it does not take is counted; that it begins is said once, and once that it is over, or the end."""

    def __init__(self, sink: Sink, metrics: Metrics, threads: bool) -> None:
        self.name, self.lost, self.lost_at = type(sink).__name__, 0, 0.0  # lost_at: the last one, monotonic
        self._sink, self._metrics, self._ended, self._lock = sink, metrics, False, Lock()
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = _started(self._run, f"metrics {self.name}") if threads else None
        # In a thread of ours nobody else is to hear of a panic of Rust, or of a library that calls sys.exit.
        self._caught: type[BaseException] = BaseException if threads else Exception

    def put(self, event: Event) -> None:
        if self._ended:
            return
        if self._thread is None:
            self._write(event)
        elif self._queue.qsize() < QUEUE_EVENTS:
            self._queue.put(event)
        else:
            self._lose(event, f"it is behind by {QUEUE_EVENTS} events")

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._thread is None:
            self._close()
        else:
            self._queue.put(None)

    def wait(self, timeout_s: float) -> None:
        """Until the sink is closed."""
        if self._thread is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("%s does not end, %d events are lost", self.name, self.lost + self._queue.qsize())

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            self._write(event)
        self._close()

    def _write(self, event: Event) -> None:
        try:
            self._sink.write(event)
        except self._caught as error:  # the edge: a sink is somebody else's code, disk or network
            self._lose(event, named(error))
            return
        if self.lost and self._queue.empty() and time.monotonic() - self.lost_at > WELL_S:
            with self._lock:
                lost, self.lost = self.lost, 0
            log.warning("%s takes events again, %d were lost", self.name, lost)

    def _lose(self, event: Event, why: str) -> None:
        with self._lock:
            self.lost, self.lost_at = self.lost + 1, time.monotonic()
            begins = self.lost == 1
        if begins:
            self._metrics.in_trouble(self, why, event)

    def _close(self) -> None:
        if self.lost:
            log.warning("%s lost events: %d", self.name, self.lost)
        try:
            self._sink.close()
        except self._caught as error:  # as above
            log.warning("%s did not close: %s", self.name, named(error))


def plain(value: Any) -> Any:
    """`value` as JSON types: mappings with string keys, lists, str, int, float, bool, None."""
    if value is None or isinstance(value, str | bool):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return plain(value.tolist())
    return str(value)


def _tolerant(value: Any) -> Any:
    try:
        return plain(value)
    except Exception as error:  # a value whose conversion fails costs that value, not the event
        log.warning("a value of an event is not told: %s in %s", type(error).__name__, type(value).__name__)
        return None
