"""Re-run the first steps of somebody's round from the public state, through the loop that miners run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distributed_training.errors import LocalFault
from distributed_training.protocol.types import StepRecord
from distributed_training.training.device import other_precision
from distributed_training.training.flat import Flat
from distributed_training.training.inner import InnerLoop, InnerResult, Tokens


def replay(
    loop: InnerLoop,
    start: Flat,
    batches: Iterator[Tokens],
    *,
    applied_rounds: int,
    sketch_seed: bytes,
    depth: int,
    enough: Callable[[StepRecord], bool] = lambda record: False,
    cancelled: Callable[[], bool] = lambda: False,
    otherwise: bool = False,
    shift: Callable[[int], Flat | None] = lambda step: None,
) -> InnerResult:
    """The first `depth` steps on the miner's batches from `start`, float32 [d], as the miner should have run them.

    Ends early after a step for which `enough` is true (the audit has failed already) or when the batches run out
    (that miner has no more data). `shift`: as in InnerLoop.run. `otherwise`: rounded as the device rounds in its other
    precision, if it has one.
    Raises LocalFault when `cancelled()` turns true: such a replay judges nobody.
    """
    done = False

    def look(record: StepRecord, seconds: float) -> None:
        nonlocal done
        done = enough(record)

    def stop() -> bool:
        if cancelled():
            raise LocalFault("the replay was cancelled")
        return done

    usual = loop.precision
    loop.precision = other_precision(loop.device.type, usual) if otherwise else usual
    try:
        return loop.run(
            start,
            batches,
            applied_rounds=applied_rounds,
            sketch_seed=sketch_seed,
            max_steps=depth,
            should_stop=stop,
            on_step=look,
            shift=shift,
        )
    finally:
        loop.precision = usual
