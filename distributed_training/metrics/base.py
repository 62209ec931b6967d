"""What a node tells the world, as events: one fan-out that never raises, and the JSON-lines file that is always there.

A failing sink is switched off with one log line; training never stops for a metric (architecture, principle 17).
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import structlog

from distributed_training.errors import ConfigError

log = structlog.stdlib.get_logger("distributed_training.metrics")


class Sink(Protocol):
    """Receives every event as a dict of plain JSON values. May raise: the fan-out handles it."""

    def write(self, event: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """The fan-out. `emit` and `close` never raise, whatever the values are and whatever a sink does."""

    def __init__(self, sinks: Sequence[Sink], *, role: str, uid: int) -> None:
        self._sinks = list(sinks)
        self._role = role
        self._uid = uid

    def emit(self, event: str, *, round: int | None = None, **fields: Any) -> None:
        """Send one event. Numbers of numpy and torch become plain ones, bytes hex, NaN and infinities null.

        `uid` is this node's own, unless the event is about another and names it as a field.
        """
        head = {"time": time.time(), "event": event, "role": self._role, "uid": self._uid, "round": round}
        line = head | {key: _tolerant(value) for key, value in fields.items()}
        for sink in tuple(self._sinks):
            try:
                sink.write(line)
            except Exception as error:  # the edge: a sink is somebody else's code, disk or network
                self._drop(sink, error)

    def close(self) -> None:
        for sink in tuple(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        self._sinks.remove(sink)
        log.warning("metrics sink switched off", sink=type(sink).__name__, error=repr(error))


class JsonlSink:
    """Appends one JSON object a line at once, so that others can follow the file and a crash loses nothing.

    A disk that takes no more costs the events of that time: each line is there whole or not at all.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lost = path, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot write the event file {path}: {error.strerror}") from None

    def write(self, event: Mapping[str, Any]) -> None:
        line = (json.dumps(event, separators=(",", ":"), allow_nan=False) + "\n").encode()
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, end)
            self._lost += 1
            if self._lost == 1:
                log.warning("events are being lost", path=str(self._path), error=error.strerror)
        else:
            if self._lost:
                log.warning("events are written again", path=str(self._path), lost=self._lost)
            self._lost = 0

    def close(self) -> None:
        os.close(self._file)


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
        log.warning("metrics value dropped", type=type(value).__name__, error=type(error).__name__)
        return None
