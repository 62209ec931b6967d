"""Stores of published states and what is published in them, for the tests of both adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hub import Settings, TestHub, User

from distributed_training.checkpoints.checking import facts_of
from distributed_training.checkpoints.description import STATE_FILE, Description, run_name
from distributed_training.checkpoints.download import Pace
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.protocol.types import Carry
from distributed_training.protocol.wire import encode_carry

MANIFEST = hashlib.sha256(b"manifest").hexdigest()
RUN = run_name("a run", MANIFEST)
REPO = "org/run"
TOKENS = {"hf_test": User("tester", "write", ("*",)), "hf_read": User("reader", "read", ("*",))}
SETTINGS = Settings(TOKENS, part_bytes=1 << 20, lfs_over_bytes=10 << 20)
NAMES = ("config.json", "model.safetensors")


def root_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def write_folder(
    folder: Path, round_index: int = 4, content: str = "ours", *, card: str = "", weights: int = 20_000
) -> Path:
    """A checkpoint as the owner makes it, of a state whose root is `root_of(content)`."""
    folder.mkdir(parents=True)
    numbers = hashlib.shake_128(f"{content} {round_index}".encode()).digest(weights)
    files = {"config.json": b"{}", "model.safetensors": numbers, "README.md": card.encode()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_state(folder, description(folder, round_index, content))
    return folder


def description(folder: Path, round_index: int, content: str) -> Description:
    there = {path.name: facts_of(path) for path in folder.iterdir() if path.name != STATE_FILE}
    return Description(MANIFEST, round_index, 2, encode_carry(Carry(10.0, ())), root_of(content), 1 << 20, there)


def write_state(folder: Path, described: Description, **changes: object) -> bytes:
    """training_state.json, with fields changed; returns its sha256."""
    data = replace(described, **changes).encode() if changes else described.encode()
    (folder / STATE_FILE).write_bytes(data)
    return hashlib.sha256(data).digest()


def hub_store(
    hub: TestHub, cache: Path, *, token: str | None = "hf_test", keep: int = 5, pace: Pace | None = None
) -> HubCheckpoints:
    return HubCheckpoints(REPO, RUN, cache, keep=keep, pace=pace, token=token, endpoint=hub.endpoint)


def put(hub: TestHub, folder: Path, more: Mapping[str, bytes] | None = None, tag: str = f"{RUN}.4") -> str:
    """The folder's files as somebody else pushes them, with others beside them."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | dict(more or {})
    return hub.put("models", REPO, files, tag=tag)


def titles(hub: TestHub) -> list[str]:
    """Of all commits that can be reached from main, the newest first, but for the Hub's own."""
    repo = hub.store.get("models", REPO)
    assert repo is not None
    return [commit.title for _, commit in repo.history(repo.branches["main"])][:-1]


def tags(hub: TestHub) -> dict[str, str]:
    repo = hub.store.get("models", REPO)
    return {} if repo is None else dict(repo.tags)
