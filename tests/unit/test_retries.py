"""Who tries again and again says so at the start, once a minute, and at the end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from distributed_training.averaging.retries import SAY_EVERY_S, Retries
from distributed_training.simulation.loop import run

log = logging.getLogger("distributed_training.test")


def test_a_thousand_tries_are_some_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with Retries(log, "slice 3") as retries:
            for _ in range(1340):
                retries.failed("they name another peer key")
                await asyncio.sleep(2.5 * SAY_EVERY_S / 1340)
            retries.worked()

    with caplog.at_level(logging.INFO, logger=log.name):
        run(main())
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "slice 3: they name another peer key"
    assert [line.endswith("tries failed, the last: they name another peer key") for line in said[1:3]] == [True, True]
    assert said[3:] == ["slice 3: done, 1340 tries failed"]
