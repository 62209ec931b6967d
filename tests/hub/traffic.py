"""What was asked and what was sent: a bounded list of requests, and counts that never forget."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MAX_REQUESTS = 50_000
SETTLE_S = 0.2


@dataclass(frozen=True, slots=True)
class Seen:
    """One answered request. `path` is decoded and without query, `status` 0 if the connection ended unanswered,
    `sent` counts the bytes of the body that were written."""

    method: str
    path: str
    byte_range: str
    status: int
    sent: int
    authorized: bool
    fault: str

    @property
    def bucket(self) -> str:
        """The Hub's rate limits count `api` and `resolve` apart; `cdn` and `upload` are other hosts there."""
        top = self.path.split("/", 2)[1]
        if top in ("cdn", "upload"):
            return top
        return "resolve" if "/resolve/" in self.path else "api"


class Traffic:
    """Safe to use from any thread. Reading it waits a moment for answers that are being sent: their client may have
    the last byte before they are counted."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._requests: deque[Seen] = deque(maxlen=MAX_REQUESTS)
        self._counts: Counter[str] = Counter()
        self._leaks: list[str] = []

    def begin(self) -> None:
        """A request has come; `record` must follow."""
        with self._changed:
            self._under_way += 1

    def record(self, seen: Seen, *, leak: bool) -> None:
        bucket = seen.bucket
        with self._changed:
            self._requests.append(seen)
            self._counts.update(["requests", f"requests.{bucket}", f"status.{seen.status}"])
            self._counts.update({"bytes": seen.sent, f"bytes.{bucket}": seen.sent})
            if seen.fault:
                self._counts[f"fault.{seen.fault}"] += 1
            if leak:
                self._leaks.append(f"{seen.method} {seen.path}")
            self._under_way -= 1
            self._changed.notify_all()

    @property
    def requests(self) -> list[Seen]:
        """The last MAX_REQUESTS, oldest first."""
        with self._settled():
            return list(self._requests)

    @property
    def leaks(self) -> list[str]:
        """Requests that carried a token to the host of signed addresses."""
        with self._settled():
            return list(self._leaks)

    def stats(self) -> dict[str, Any]:
        """`requests`, `bytes` and each per bucket, `status.N`, `fault.KIND`, and the list `leaks`."""
        with self._settled():
            return {**self._counts, "leaks": list(self._leaks)}

    def reset(self) -> None:
        with self._settled():
            self._requests.clear()
            self._counts.clear()
            self._leaks.clear()

    @contextmanager
    def _settled(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, SETTLE_S)
            yield
