"""Events of all nodes: followed in their files, merged into one file of the run, and kept as a view in memory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_training.localnet.layout import NodeSpec, RunPaths
from distributed_training.metrics.following import DEMO, Follower

Event = Mapping[str, Any]
EVENTS = "events.jsonl"  # of a node, in its folder
LOOK_S = 2.0
MOST_NODES = 64  # that are followed


@dataclass(slots=True)
class NodeView:
    """The newest that one node said of itself."""

    name: str
    role: str
    uid: int
    ready: Event | None = None
    readies: list[Event] = field(default_factory=list)  # one of each start
    first_round: int = 0  # the state it began with was that of this round
    round: int | None = None
    phase: str = ""
    step: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    state_root: str | None = None
    trouble: str = ""  # last fault, or why it stopped
    stopped: bool = False  # it said so itself
    exit_code: int | None = None  # None also for a node that the demo did not start
    killed: bool = False  # by the demo, and not started again yet
    rounds: dict[int, Event] = field(default_factory=dict)
    trains: dict[int, Event] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)  # held-out loss after round; -1 is the initial state
    scores: dict[int, Event] = field(default_factory=dict)
    weights: list[Event] = field(default_factory=list)
    audits: dict[tuple[int, int], Event] = field(default_factory=dict)  # (round, uid)
    checkpoints: list[Event] = field(default_factory=list)
    shared: list[Event] = field(default_factory=list)  # copies of the state that miners published, looked at


class RunView:
    """Everything the nodes said, by node. Strange events change nothing."""

    def __init__(self, specs: Sequence[NodeSpec]) -> None:
        self.nodes: dict[str, NodeView] = {}
        for spec in specs:
            self.add(spec.name, spec.role.name.lower(), spec.uid)
        self.incentive: dict[int, float] = {}
        self.block: int | None = None

    def add(self, name: str, role: str, uid: int) -> None:
        self.nodes.setdefault(name, NodeView(name, role, uid))

    def of_role(self, role: str) -> list[NodeView]:
        return [node for node in self.nodes.values() if node.role == role]

    def apply(self, name: str, event: Event) -> None:
        node = self.nodes.get(name)
        handler = HANDLERS.get(event["event"])
        if node is None or handler is None:
            return
        try:
            handler(node, event)
        except (KeyError, TypeError, ValueError, AttributeError):
            node.trouble = f"an event {event['event']!r} that cannot be read"

    def heldout(self) -> dict[int, float]:
        """Round -> held-out loss of the state after it, from the first node that evaluated it."""
        found: dict[int, float] = {}
        for node in self.nodes.values():
            for index, loss in node.losses.items():
                found.setdefault(index, loss)
        return dict(sorted(found.items()))

    def last_round(self) -> int | None:
        return max((n.round for n in self.nodes.values() if n.round is not None), default=None)

    def applied(self) -> list[int]:
        """Rounds that at least one node settled as applied."""
        return sorted({r for n in self.nodes.values() for r, e in n.rounds.items() if e.get("applied")})

    def scores_of(self, index: int) -> dict[str, dict[int, Any]]:
        """Validator name -> uid -> card, of the scores for one round."""
        return {n.name: cards_of(n.scores[index]) for n in self.of_role("validator") if index in n.scores}

    def newest_cards(self) -> dict[str, dict[int, Any]]:
        return {n.name: cards_of(n.scores[max(n.scores)]) for n in self.of_role("validator") if n.scores}


def cards_of(event: Event) -> dict[int, Any]:
    return {int(uid): card for uid, card in event["cards"].items()}


def shares_of(event: Event) -> dict[int, float]:
    return {int(uid): float(share) for uid, share in event["weights"].items()}


def _ready(node: NodeView, event: Event) -> None:
    if not node.readies:
        node.first_round = int(event.get("start_round") or 0)
    node.ready = event
    node.readies.append(event)
    node.state_root = event["state_root"]
    node.trouble, node.stopped = "", False


def _stopped(node: NodeView, event: Event) -> None:
    node.stopped = True


def _phase(node: NodeView, event: Event) -> None:
    node.round, node.phase = event["round"], str(event["phase"])
    if node.phase == "train":
        node.step = None


def _step(node: NodeView, event: Event) -> None:
    node.step, node.loss = int(event["step"]), event["loss"]
    node.tokens_per_s = event.get("tokens_per_s")


def _train(node: NodeView, event: Event) -> None:
    node.trains[int(event["round"])] = event
    node.loss = event.get("loss_last", node.loss)


def _round(node: NodeView, event: Event) -> None:
    node.rounds[int(event["round"])] = event
    node.state_root = event["state_root"]


def _evaluation(node: NodeView, event: Event) -> None:
    if event["heldout_loss"] is not None:
        node.losses[int(event["round"])] = float(event["heldout_loss"])


def _audit(node: NodeView, event: Event) -> None:
    # `uid` is the validator, `target` the miner
    node.audits[int(event["round"]), int(event["target"])] = event


def _scores(node: NodeView, event: Event) -> None:
    cards_of(event)
    node.scores[int(event["round"])] = event


def _weights(node: NodeView, event: Event) -> None:
    shares_of(event)
    node.weights.append(event)


def _checkpoint(node: NodeView, event: Event) -> None:
    node.checkpoints.append(event)


def _shared(node: NodeView, event: Event) -> None:
    node.shared.append(event)


def _trouble(node: NodeView, event: Event) -> None:
    node.trouble = str(event.get("reason") or f"{event.get('what')}: {event.get('detail')}")


HANDLERS = {
    "ready": _ready,
    "phase": _phase,
    "step": _step,
    "train": _train,
    "round": _round,
    "evaluation": _evaluation,
    "audit": _audit,
    "scores": _scores,
    "weights": _weights,
    "checkpoint": _checkpoint,
    "shared": _shared,
    "fault": _trouble,
    "stopped": _stopped,
}


class RunEvents:
    """Follows every node's file, merges into RUN_DIR/events.jsonl (each event with its node's name) and the view.

    A resumed run starts again from the nodes' files, which only grow; the demo's own lines are kept.
    """

    def __init__(self, paths: RunPaths, specs: Sequence[NodeSpec]) -> None:
        self.view = RunView(())
        self._paths, self._followers = paths, dict[str, Follower]()
        for spec in specs:
            self.add(spec)
        self._look_at = 0.0  # monotonic, when to look for nodes that nobody told us of
        self.notes: list[Event] = []  # the demo's own events, those of earlier parts of a resumed run first
        kept = _demo_lines(paths.events)
        for line in kept:
            self._recall(json.loads(line))
        self._file = paths.events.open("w", encoding="utf-8")
        self._file.writelines(kept)

    def add(self, spec: NodeSpec) -> None:
        """One more node to follow: one that joins while the run goes on."""
        self._follow(spec.name, spec.role.name.lower(), spec.uid)

    def _follow(self, name: str, role: str, uid: int) -> None:
        self.view.add(name, role, uid)
        self._followers.setdefault(name, Follower(self._paths.node(name) / EVENTS))

    def _find(self) -> None:
        """Nodes that a person started in this run directory."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        for file in sorted(self._paths.root.glob(f"nodes/*/{EVENTS}")):
            name = file.parent.name
            if name in self._followers or len(self.view.nodes) >= MOST_NODES:
                continue
            told = next((e for e in Follower(file).read() if e.get("event") == "ready"), {})
            if told.get("role") in ("miner", "validator") and isinstance(told.get("uid"), int):
                self._follow(name, told["role"], told["uid"])

    def poll(self) -> Sequence[tuple[str, Event]]:
        """New events as (node, event), already in the view and in the run's file."""
        self._find()
        fresh = [(name, event) for name, follower in self._followers.items() for event in follower.read()]
        fresh.sort(key=lambda item: item[1].get("time") or 0.0)
        for name, event in fresh:
            self.view.apply(name, event)
            self._file.write(json.dumps({"node": name, **event}, separators=(",", ":")) + "\n")
        if fresh:
            self._file.flush()
        return fresh

    def _recall(self, event: Event) -> None:
        """What the demo noted of a node."""
        self.notes.append(event)
        node = self.view.nodes.get(str(event.get("name")))
        if node is None:
            return
        if event.get("event") == "ended":
            node.exit_code = event.get("code")
        if event.get("event") == "killed":
            node.killed, node.phase = True, ""
        if event.get("event") == "restarted":
            node.killed, node.ready, node.exit_code = False, None, None

    def drain(self) -> None:
        while self.poll():
            pass

    def note(self, event: Event) -> None:
        """An event of the demo itself."""
        self._recall(event)
        self._file.write(json.dumps({"node": DEMO, **event}, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _demo_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    return [line for line in lines if line.startswith(f'{{"node":"{DEMO}"') and line.endswith("\n")]
