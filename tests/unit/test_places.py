"""hub:ORG/NAME[@REVISION] or a path: what a person types for pages and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.settings.places import HubRepo, parse_place, parse_repo


def test_a_repository_begins_with_hub() -> None:
    assert parse_place("hub:HuggingFaceFW/fineweb") == HubRepo("HuggingFaceFW/fineweb")
    assert parse_place("hub:a/b@refs/pr/1") == HubRepo("a/b", "refs/pr/1")
    assert parse_repo("a/b.c-d_e") == HubRepo("a/b.c-d_e")
    assert str(parse_place("hub:a/b@v1.0")) == "hub:a/b@v1.0" and str(HubRepo("a/b")) == "hub:a/b"


def test_anything_else_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_place("~/pages") == tmp_path / "pages"
    assert parse_place("a/b") == Path("a/b").absolute()


@pytest.mark.parametrize(
    "text", ["hub:", "hub:a", "hub:a/b/c", "hub:/b", "hub:a/..", "hub:a/b@", "hub:a b/c", "hub:-a/b"]
)
def test_what_is_no_repository_says_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a repository like hub:ORG/NAME"):
        parse_place(text)


@given(st.from_regex(r"[A-Za-z0-9][\w.-]{0,20}/[A-Za-z0-9][\w.-]{0,20}", fullmatch=True))
def test_what_is_printed_is_read_back(name: str) -> None:
    if ".." not in name and name.isascii():
        assert parse_place(str(HubRepo(name, "main"))) == HubRepo(name, "main")
