"""One finished run, shared by the tests that only look at it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from subnet import FINISHED_ROUNDS, TRIES, Subnet, disturbed, finished, make_subnet, running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def finished_subnet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subnet]:
    """Four miners, two validators and an owner after three rounds. Transports still run; leave all as it is.

    Its chain's clock runs on, so what is newest there is newest for a few rounds only: test_kept_bytes comes first.
    """
    for one in range(TRIES):
        async with running(make_subnet(tmp_path_factory.mktemp("subnet")), rounds=FINISHED_ROUNDS) as subnet:
            await finished(subnet)
            if one == TRIES - 1 or not disturbed(subnet):
                yield subnet
                return
