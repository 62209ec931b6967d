"""Trouble on purpose: which request goes wrong, and how."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

FaultKind = Literal[
    "drop",  # the connection ends after `after_bytes` of the body; of the request's body, if it has one, and 0: at once
    "reset",  # the same, but with a TCP reset, so bytes on their way may be lost too
    "truncate",  # a complete answer of only `after_bytes` bytes
    "wrong_bytes",  # one byte is not right: the one at `after_bytes`, 0 means in the middle
    "rate_limit",  # 429 with the Hub's headers; asks to wait `seconds`
    "unavailable",  # 503
    "expired",  # 403, as a signed address gives after its time
    "conflict",  # somebody else commits to the branch just before this commit
    "lost",  # all is done, but the connection ends before the answer
    "stall",  # `seconds` of silence: before the answer, or in the body after `after_bytes`
    "down",  # the connection ends without an answer
]


@dataclass
class Fault:
    """Hits requests whose method and decoded path match (`path` is searched, `method` is whole; "" matches all).

    `share` None: the next `times` such requests (None: every one). With a share: each such request with that
    probability, drawn from `seed` and the request itself (method, path, range, how often it came before), so that
    neither time nor the order of threads changes who is hit; `times` then limits the number of hits, None for no limit.
    """

    kind: FaultKind
    method: str = ""
    path: str = ""
    times: int | None = 1
    share: float | None = None
    seed: int = 0
    after_bytes: int = 0
    seconds: float = 0.0
    fired: int = 0
    _seen: Counter[str] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"no such fault: {self.kind}")
        self._path = re.compile(self.path)

    def hits(self, method: str, path: str, byte_range: str) -> bool:
        if self.times is not None and self.fired >= self.times:
            return False
        if self.method not in ("", method) or not self._path.search(path):
            return False
        if self.share is not None and not self._drawn(f"{method} {path} {byte_range}"):
            return False
        self.fired += 1
        return True

    def _drawn(self, request: str) -> bool:
        self._seen[request] += 1
        digest = hashlib.blake2b(f"{self.seed} {self._seen[request]} {request}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < (self.share or 0.0) * 2**64


class Faults:
    """The faults in force. Safe to use from any thread; takes effect with the next request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(
        self,
        kind: FaultKind,
        *,
        method: str = "",
        path: str = "",
        times: int | None = 1,
        share: float | None = None,
        seed: int = 0,
        after_bytes: int = 0,
        seconds: float = 0.0,
    ) -> Fault:
        """See Fault. Its `fired` tells how often it hit."""
        fault = Fault(kind, method, path, times, share, seed, after_bytes, seconds)
        with self._lock:
            self._faults.append(fault)
        return fault

    def add_json(self, value: object) -> None:
        """One fault or a list of them as JSON objects with the arguments of `add`. Raises TypeError or ValueError."""
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, Mapping):
                raise TypeError("a fault is a JSON object")
            self.add(**{"times": None if "share" in item else 1, **item})

    def remove(self, fault: Fault) -> None:
        with self._lock:
            self._faults = [other for other in self._faults if other is not fault]

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def pick(self, method: str, path: str, byte_range: str) -> Fault | None:
        """The first fault, in the order they were added, that hits this request. One request meets one fault."""
        with self._lock:
            return next((fault for fault in self._faults if fault.hits(method, path, byte_range)), None)

    def to_json(self) -> list[dict[str, Any]]:
        with self._lock:
            return [{k: v for k, v in asdict(fault).items() if not k.startswith("_")} for fault in self._faults]
