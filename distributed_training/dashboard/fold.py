"""What the nodes' events say, folded into a state of bounded size. Pure: no file, no clock.

Strange events change nothing, and strings are cut: both come from files that others may have written.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from distributed_training.dashboard.values import (
    MAX_AUDITS,
    MAX_NAME,
    MAX_TEXT,
    TERMS,
    Event,
    Judge,
    Node,
    Part,
    Person,
    Row,
    audit_row,
    cards_of,
    earliest,
    fault_row,
    keep,
    number,
    shares,
    text,
    uid_of,
    uids,
)
from distributed_training.metrics.following import DEMO

NEWEST_ROUNDS = 1000  # of which each is kept; of older ones as many again, evenly spread
PERSON_ROUNDS = 100
MAX_FAULTS, MAX_CHECKPOINTS = 200, 500
MAX_NODES, MAX_ROUND, MAX_REASONS = 4096, 2**31, 20
STANDING = ("immune_blocks", "rank", "of", "prunable_rank", "prunable", "free_places", "price_tao", "collateral")


class RunFold:
    """Everything, event by event. `revision` grows with whatever changes the page but the steps of training."""

    def __init__(self) -> None:
        self.revision = 0
        self.nodes: dict[str, Node] = {}
        self.rows: dict[int, Row] = {}
        self.people: dict[int, Person] = {}
        self.judges: dict[int, Judge] = {}
        self.faults: list[dict[str, Any]] = []  # the newest, as all lists here newest first
        self.num_faults = 0
        self.checkpoints: deque[dict[str, Any]] = deque(maxlen=MAX_CHECKPOINTS)
        self.initial_heldout_loss: float | None = None
        self.block: int | None = None  # the chain's head, as nodes saw it last,
        self.verdict: dict[str, Any] | None = None  # what it says of the run,
        self.standings: dict[int, dict[str, Any]] = {}  # and of a node's own uid
        self.newest = -1
        self.num_slices: int | None = None
        self._stride = 1

    def apply(self, name: str, event: Event) -> None:
        """`name`: the node whose event it is."""
        if name == DEMO:
            self._note(event)
            return
        node = self.node(name)
        if node is None:
            return
        time, index = number(event.get("time")), event.get("round")
        node.last_seen = max(node.last_seen or 0.0, time or 0.0) or None
        node.role = text(event.get("role"), MAX_NAME) or node.role
        if node.uid is None or event["event"] == "ready":
            node.uid = uid_of(event.get("uid"))
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < MAX_ROUND:
            self._seen(index, time)
        else:
            index = None
        handle = getattr(self, f"_on_{event['event']}", None)
        if handle is None:
            return
        handle(node, event, -1 if index is None else index)
        self.revision += event["event"] != "step"

    def node(self, name: str) -> Node | None:
        name = name[:MAX_NAME]
        if name not in self.nodes and len(self.nodes) < MAX_NODES:
            self.nodes[name] = Node(name)
        return self.nodes.get(name)

    def ahead(self) -> Node | None:
        """Of the nodes that go on, or else of all, the one in the newest round."""
        known = [node for node in self.nodes.values() if node.round is not None]
        return max(known, key=lambda node: (not node.ended, node.round), default=None)

    def row(self, index: int) -> Row | None:
        """None for a round that is no longer kept, or never was."""
        if index < 0 or (index <= self.newest - NEWEST_ROUNDS and index % self._stride):
            return None
        return self.rows.setdefault(index, Row(index))

    def part(self, uid: int, index: int) -> Part | None:
        """None for a round of which no details are kept."""
        if index < 0 or index <= self.newest - PERSON_ROUNDS:
            return None
        rounds = self.people.setdefault(uid, Person()).rounds
        while len(rounds) >= PERSON_ROUNDS and (oldest := next(iter(rounds))) <= self.newest - PERSON_ROUNDS:
            del rounds[oldest]
        return rounds.setdefault(index, Part())

    def _seen(self, index: int, time: float | None) -> None:
        if index > self.newest:
            self.newest = index
            self._thin()
        row = self.row(index)
        if row is not None:
            row.first = earliest(row.first, time)

    def _thin(self) -> None:
        """Of rounds that are not among the newest any more every `_stride`-th stays, so that half of all are new."""
        old = self.newest - NEWEST_ROUNDS
        while len(self.rows) > 2 * NEWEST_ROUNDS:
            self.rows = {i: row for i, row in self.rows.items() if i > old or i % self._stride == 0}
            if len(self.rows) > 2 * NEWEST_ROUNDS - NEWEST_ROUNDS // 4:
                self._stride *= 2

    def _fault(self, node: Node, event: Event) -> None:
        self.num_faults += 1
        keep(self.faults, fault_row(node.name, node.uid, event), "time", MAX_FAULTS)

    def _note(self, event: Event) -> None:
        """What the demo noted of a node."""
        node, what, code = self.nodes.get(str(event.get("name"))[:MAX_NAME]), event["event"], event.get("code")
        if node is None:
            return
        if what in ("killed", "ended", "restarted"):
            node.ended = what == "ended" and code == 0
            node.killed = what != "restarted" and not node.ended
            if node.killed:
                said = "was killed" if what == "killed" else f"ended with exit code {code}"
                self._fault(node, {**event, "what": what, "detail": said})
        self.revision += 1

    # --- one method per event; index: its round, or -1 ---------------------------------------------------------

    def _on_ready(self, node: Node, event: Event, index: int) -> None:
        node.hotkey = text(event.get("hotkey"), MAX_NAME)
        node.trouble, node.ended, node.killed = None, False, False

    def _on_phase(self, node: Node, event: Event, index: int) -> None:
        node.round, node.phase = index, text(event.get("phase"), MAX_NAME)
        if node.phase == "train":
            node.step = None

    def _on_step(self, node: Node, event: Event, index: int) -> None:
        step = number(event.get("step"))
        node.step = None if step is None else int(step)
        node.loss, node.tokens_per_s = number(event.get("loss")), number(event.get("tokens_per_s"))

    def _on_train(self, node: Node, event: Event, index: int) -> None:
        tokens, loss = number(event.get("tokens")), number(event.get("loss_last"))
        node.loss = loss
        row = self.row(index)
        if row is not None and tokens and loss is not None:
            row.trained += tokens
            row.loss_sum += tokens * loss
        if node.uid is not None and (part := self.part(node.uid, index)):
            part.steps, part.tokens = number(event.get("steps")), tokens

    def _on_round(self, node: Node, event: Event, index: int) -> None:
        row = self.row(index)
        if row is None:
            return
        root = (text(event.get("state_root")) or "")[:16] or None
        row.identical = row.identical and row.state_root in (None, root)
        row.settled += 1
        row.last = earliest(row.last, number(event.get("time")))
        if row.state_root is None:
            row.state_root = root
            self._settled(row, event)
        told = shares(event.get("tokens")) if row.tokens is None else {}
        if told:
            row.tokens = sum(told.get(uid, 0) for uid in uids(event.get("included")))
        for uid, tokens in told.items():
            if part := self.part(uid, index):
                part.tokens = tokens

    def _settled(self, row: Row, event: Event) -> None:
        """How it went, by the first who says so: it is the same for all."""
        included, credit = uids(event.get("included")), shares(event.get("credit"))
        row.applied, row.reason, row.included = bool(event.get("applied")), text(event.get("reason")), len(included)
        known = uids(event.get("candidates")) or list(credit)  # a discarded round credits nobody
        row.candidates = len(known) if known or "candidates" in event else None
        row.backed_up = len(uids(event.get("backed_up")))
        if (count := number(event.get("num_slices"))) is not None:
            self.num_slices = int(count)
            row.lost = int(count) - len(uids(event.get("counted")))
        for uid in {*included, *credit}:
            if part := self.part(uid, row.index):
                part.included, part.credit = uid in included, credit.get(uid)

    def _on_evaluation(self, node: Node, event: Event, index: int) -> None:
        loss, row = number(event.get("heldout_loss")), self.row(index)
        if loss is not None and event.get("round") == -1 and self.initial_heldout_loss is None:
            self.initial_heldout_loss = loss
        if loss is not None and row is not None and row.heldout_loss is None:
            row.heldout_loss = loss

    def _on_audit(self, node: Node, event: Event, index: int) -> None:
        # `uid` is the validator, `target` the miner
        target = uid_of(event.get("target"))
        if target is not None:
            audits = self.people.setdefault(target, Person()).audits
            keep(audits, audit_row(node.uid, event), "round", MAX_AUDITS)

    def _on_scores(self, node: Node, event: Event, index: int) -> None:
        if node.uid is None:
            return
        judge, cards = self.judges.setdefault(node.uid, Judge()), cards_of(event)
        if index >= judge.round:
            judge.round, judge.cards = index, cards
        for uid, card in cards.items():
            if part := self.part(uid, index):
                part.terms[node.uid] = {term: card[term] for term in TERMS}

    def _on_weights(self, node: Node, event: Event, index: int) -> None:
        if node.uid is not None:
            self.judges.setdefault(node.uid, Judge()).weights = shares(event.get("weights"))

    def _on_chain(self, node: Node, event: Event, index: int) -> None:
        block = number(event.get("block"))
        self.block = self.block if block is None else max(self.block or 0, int(block))

    def _on_verdict(self, node: Node, event: Event, index: int) -> None:
        reasons = event.get("reasons")
        said = [str(reason)[:MAX_TEXT] for reason in reasons[:MAX_REASONS]] if isinstance(reasons, list) else []
        self.verdict = {"word": text(event.get("word"), MAX_NAME), "reasons": said}

    def _on_standing(self, node: Node, event: Event, index: int) -> None:
        if node.uid is not None:
            self.standings[node.uid] = {key: number(event.get(key)) for key in STANDING}

    def _on_checkpoint(self, node: Node, event: Event, index: int) -> None:
        self.checkpoints.append({"round": event.get("round"), "sha256": text(event.get("sha256"), MAX_NAME)})

    def _on_fault(self, node: Node, event: Event, index: int) -> None:
        node.trouble = text(f"{event.get('what')}: {event.get('detail')}")
        self._fault(node, event)

    def _on_stopped(self, node: Node, event: Event, index: int) -> None:
        node.ended, node.phase, node.step, node.tokens_per_s = True, None, None, None
