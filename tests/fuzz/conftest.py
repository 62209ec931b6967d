from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Refusals are what happens here, thousands of times."""
    logger = logging.getLogger("distributed_training")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(former)
