"""What the simulation saw: every event of every node, on the virtual clock, and one digest over all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TextIO


@dataclass(frozen=True, slots=True)
class Settlement:
    """One node's word about one round, with what its transport had moved by then."""

    node: str
    at_s: float
    root: str
    applied: bool
    reason: str
    included: int
    credited_tokens: float | None  # None: this node does not know the tokens


@dataclass(frozen=True, slots=True)
class FailedAudit:
    """What a validator found in a miner's work."""

    round: int
    validator: str
    target: int  # uid
    failed_step: int | None
    reason: str


@dataclass
class Recorder:
    """Takes events as they come; the digest is over (virtual time, node, event) in that order, wall times left out."""

    root: str  # of the run: replaced in what is written, since it is another one every time
    out: TextIO | None = None  # takes every event as a line
    now: Callable[[], float] = lambda: 0.0
    settled: dict[int, dict[str, Settlement]] = field(default_factory=dict)  # round -> node -> its last word
    trained: dict[int, dict[str, int]] = field(default_factory=dict)  # round -> node -> tokens
    held_at: dict[int, dict[str, float]] = field(default_factory=dict)  # round -> node -> when its last slice came
    failed: list[FailedAudit] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)  # nodes that said that all their rounds are done
    contradictions: list[tuple[int, str]] = field(default_factory=list)  # (round, node): settled twice, differently
    events: int = 0
    _hash: Any = field(default_factory=lambda: blake2b(digest_size=16))

    def digest(self) -> str:
        return self._hash.hexdigest()

    def last_root(self) -> str:
        """State root after the newest round that anybody settled, as most have it; "": none is settled."""
        words = self.settled[max(self.settled)].values() if self.settled else ()
        roots = sorted(word.root for word in words)
        return max(roots, key=roots.count, default="")

    def note(self, node: str, event: str, **fields: Any) -> None:
        """Something that happens to a node, not told by it."""
        self.write(node, {"event": event, **fields})

    def write(self, node: str, event: Mapping[str, Any]) -> None:
        told = {key: value for key, value in event.items() if key != "time"}
        line = json.dumps([round(self.now(), 6), node, told], sort_keys=True).replace(self.root, "RUN_DIR") + "\n"
        self.events += 1
        self._hash.update(line.encode())
        if self.out is not None:
            self.out.write(line)
        if event["event"] == "round":
            self._settle(node, event)
        elif event["event"] == "train":
            self.trained.setdefault(event["round"], {})[node] = event["tokens"]
        elif event["event"] == "audit" and event["verdict"] == "fail":
            self.failed.append(
                FailedAudit(event["round"], node, event["target"], event["failed_step"], event["reason"])
            )
        elif event["event"] == "stopped":
            self.stopped.add(node)

    def holds(self, round_index: int, node: str) -> None:
        """The node has received a slice of the round."""
        self.held_at.setdefault(round_index, {})[node] = self.now()

    def _settle(self, node: str, event: Mapping[str, Any]) -> None:
        tokens = event.get("tokens") or {}
        credit = event.get("credit") or {}
        credited = sum(float(share) * tokens.get(uid, 0) for uid, share in credit.items()) if tokens else None
        word = Settlement(
            node,
            self.now(),
            event["state_root"],
            event["applied"],
            event["reason"],
            len(event["included"]),
            credited,
        )
        former = self.settled.setdefault(event["round"], {}).get(node)
        if former is not None and (former.root, former.applied) != (word.root, word.applied):
            self.contradictions.append((event["round"], node))
        self.settled[event["round"]][node] = word


class NodeSink:
    """A metrics sink that hands a node's events to the recorder."""

    def __init__(self, recorder: Recorder, node: str) -> None:
        self._recorder, self._node = recorder, node

    def write(self, event: Mapping[str, Any]) -> None:
        self._recorder.write(self._node, event)

    def close(self) -> None:
        """Nothing is open."""
