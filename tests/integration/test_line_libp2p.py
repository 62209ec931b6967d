"""Caps of a node's line over real libp2p: every byte between two nodes is counted by a relay (`benchmarks/line.py`)."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.line import measured


@pytest.mark.alone
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_cap_holds_on_the_wire(way: str) -> None:
    """A busy machine may send less, never more."""
    row = asyncio.run(measured(way, 16.0, 3, 4.5))
    assert 0.3 < row["ratio"] < 1.1
    assert row["ahead_bytes"] < 4 << 20, "what buffers on the way hold of one stream"
