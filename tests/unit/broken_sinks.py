"""Sinks as bad as they come."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_training.metrics.jsonl import JsonlSink


class Stuck:
    """A sink that blocks for ever, in `close` too."""

    def __init__(self) -> None:
        self.entered, self.never = threading.Event(), threading.Event()

    def write(self, event: Mapping[str, Any]) -> None:
        self.entered.set()
        self.never.wait()

    def close(self) -> None:
        self.never.wait()


class Gone:
    """A sink that raises always, until it is mended."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or ConnectionError("gone")
        self.mended, self.taken = False, list[Mapping[str, Any]]()

    def write(self, event: Mapping[str, Any]) -> None:
        if not self.mended:
            raise self.error
        self.taken.append(event)

    def close(self) -> None:
        raise self.error


def on_a_full_disk() -> JsonlSink:
    return JsonlSink(Path("/dev/full"))
