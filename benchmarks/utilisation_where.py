"""Where the time of a round goes that is not trained, by offsets and by what nodes told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from distributed_training.simulation.swarm import SimResult


def where_it_goes(
    timing: Mapping[str, Any], map_blocks: int, block_s: float, lines: Sequence[str], result: SimResult
) -> str:
    """One line: which phase waits for what, in seconds of a round of the manifest's `timing`."""
    held = [r.seconds for r in result.rows if r.seconds is not None]
    last = f"{mean(held):.0f} s" if held else "never"
    scatter = timing["output"] - timing["reduce_margin"] - timing["commit"]
    parts = (
        f"commit {timing['commit_margin'] * block_s:.0f} s (encoding, then inclusion)",
        f"scatter {scatter * block_s:.0f} s (twice the slowest link, at least finality)",
        f"reduce and inclusion {timing['reduce_margin'] * block_s:.0f} s",
        f"gather {max(timing['transfer'], timing['finality']) * block_s:.0f} s (the last slice comes {last} after s+D)",
        f"map's inclusion {map_blocks * block_s:.0f} s",
        f"finality of s+Y {timing['finality'] * block_s:.0f} s",
        f"outer step {_settling_s(timing, block_s, lines):.0f} s, with the time until finality is seen",
    )
    beside = "beside training" if timing["overlap"] else "not trained"
    return f"{beside}: {', '.join(parts)}"


def _settling_s(timing: Mapping[str, Any], block_s: float, lines: Sequence[str]) -> float:
    """From the block in which s+Y is final until a miner has settled, mean."""
    waits = list[float]()
    for line in lines:
        at, node, event = json.loads(line)
        if event["event"] == "round" and node.startswith("miner"):
            start = timing["first_block"] + event["round"] * timing["length"]
            waits.append(at - (start + timing["map"] + timing["finality"]) * block_s)
    return mean(waits) if waits else 0.0
