"""CPU time by step: functions of the product, each counted without what it calls of the others."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

# step -> functions, as module:name
STEPS: Mapping[str, tuple[str, ...]] = {
    "encode": ("codecs.int8:Int8Encoder.encode",),
    "norm": ("codecs.int8:Int8Chunk.norm", "codecs.int8:Int8Chunk.rounding_norm"),
    "parse": ("codecs.int8:parse_chunk",),
    "digest": ("contribution:digest", "scatter:digest", "combine:digest", "store:digest", "gather:digest"),
    "decode": ("codecs.int8:Int8Chunk.decode",),
    "reduce": ("combine:ChunkReducer.reduce",),
    "gates": ("combine:combine",),
    "check of a slice": ("combine:check_output", "gather:check_output"),
    "files": ("store:RoundStore._write", "store:RoundStore._read", "store:RoundStore._piece"),
    "outer step and root": ("training.outer:outer_step",),
}


class Meter:
    """Sums `time.thread_time` of the watched functions, whatever thread they run in."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._lock, self._local = threading.Lock(), threading.local()

    def clear(self) -> None:
        self._sums.clear()

    def seconds(self) -> dict[str, float]:
        return dict(self._sums)

    @contextmanager
    def watching(self, steps: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
        """What is not there (any more) is passed over."""
        with ExitStack() as stack:
            for step, places in steps.items():
                for place in places:
                    owner, name = _find(place)
                    if owner is not None and hasattr(owner, name):
                        stack.enter_context(patch.object(owner, name, self._watched(step, getattr(owner, name))))
            yield

    def _watched(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            stack = self._local.__dict__.setdefault("inner", [])
            stack.append(0.0)
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took, inner = time.thread_time() - began, stack.pop()
                if stack:
                    stack[-1] += took
                with self._lock:
                    self._sums[step] += took - inner

        return call


def _find(place: str) -> tuple[Any, str]:
    module, names = place.split(":")
    if not module.startswith("benchmarks"):
        module = (
            f"distributed_training.{module}" if "training." in module else f"distributed_training.averaging.{module}"
        )
    try:
        owner: Any = import_module(module)
    except ModuleNotFoundError:
        return None, names
    *path, name = names.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    return owner, name
