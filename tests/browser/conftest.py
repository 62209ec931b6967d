"""One headless browser for all tests of the page: Debian's chromium, or what else of it is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from page_rig import Server, recorded_run, serve
from playwright.async_api import Browser, async_playwright

from benchmarks.chromium import find_chromium
from distributed_training.errors import ConfigError


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    try:
        found = find_chromium()
    except ConfigError as missing:
        pytest.skip(str(missing))
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=found)
        yield started
        await started.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def recorded(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> AsyncIterator[Server]:
    """The page of a recorded run that has ended."""
    folder: Path = recorded_run(tmp_path_factory.mktemp("page") / "run")
    server = await serve(folder)
    yield server
    assert await server.stop() == ["stopped"]
