from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hub import Settings, TestHub, User

TOKENS = {
    "hf_test": User("tester", "write", ("org",)),
    "hf_reader": User("reader", "read", ("org",)),
    "hf_stranger": User("stranger", "write"),
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with TestHub(tmp_path / "hub", settings=Settings(TOKENS, part_bytes=1 << 20, page_size=10)) as running:
        yield running


@pytest.fixture
def api(hub: TestHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token="hf_test")
