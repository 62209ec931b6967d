"""A run's files from the Hub or a web server through the real client: bounded, checked, or said in a line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub import TestHub

from distributed_training.errors import NetworkFault
from distributed_training.finding.content import Wanted, fetch
from distributed_training.finding.places import sources_at

DATA = bytes(range(256)) * 5_000
WANTED = Wanted("pages.bin", hashlib.sha256(DATA).digest(), 1 << 24)


async def test_a_place_gives_what_it_has_and_a_half_file_is_finished_there(tmp_path: Path) -> None:
    with TestHub(tmp_path / "hub") as hub:
        hub.put("datasets", "org/run", {"pages.bin": DATA})
        place = f"{hub.endpoint}/datasets/org/run/resolve/main"
        (tmp_path / "pages.bin.part").write_bytes(DATA[:1_000_000])
        assert await fetch(WANTED, tmp_path / "pages.bin", sources_at(place)) == place
        assert (tmp_path / "pages.bin").read_bytes() == DATA


async def test_a_place_without_the_file_with_another_or_with_too_much_is_asked_once(tmp_path: Path) -> None:
    with TestHub(tmp_path / "hub") as hub:
        hub.put("datasets", "org/none", {"README.md": b"x"})
        hub.put("datasets", "org/other", {"pages.bin": b"another"})
        hub.put("datasets", "org/large", {"pages.bin": bytes(1 << 17)})
        small = Wanted("pages.bin", WANTED.prefix, 1 << 16)
        for repo, said in (
            ("none", "has no such file"),
            ("other", "gave 7 bytes that hash"),
            ("large", "more than 65536"),
        ):
            place = f"{hub.endpoint}/datasets/org/{repo}/resolve/main"
            with pytest.raises(NetworkFault, match=said):
                await fetch(small, tmp_path / repo, sources_at(place))


def test_a_repository_is_looked_for_as_a_model_and_as_a_data_set() -> None:
    assert [source.name for source in sources_at("hub:org/run")] == ["hub:org/run (model)", "hub:org/run (dataset)"]
    assert sources_at("") == []
