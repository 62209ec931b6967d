"""Text from the newest checkpoint, made in a process of its own: the page never waits for it, nor loads torch."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Lock
from typing import Any

from distributed_training.operator.box import answer, gentle

LIMIT_S = 90.0  # twenty for the text, the rest for loading


class Sampler:
    """One request at a time: the server sees to that."""

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints, self._pool, self._lock = checkpoints, None, Lock()

    @property
    def possible(self) -> bool:
        return any(self._checkpoints.glob("round-*"))

    def __call__(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._process().submit(answer, str(self._checkpoints), asked).result(LIMIT_S)
        except (BrokenProcessPool, TimeoutError):
            self.close()
            return {"error": "the process that makes the text ended, or took too long; try again"}

    def close(self) -> None:
        """At once, whatever is under way."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)

    def _process(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                spawned = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, mp_context=spawned, initializer=gentle)
            return self._pool
