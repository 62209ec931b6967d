"""The event files of a run that is too big to simulate in an afternoon: 256 uids, 1,000 rounds, all told by everybody.

The node code on the simulator's virtual clock needs minutes for one round of 256 nodes. So these events are made up: by
the same typed records as the nodes', one file a node, in the order and at the times of a round of the demo, with
discarded rounds, lost and backed up slices, absent miners, audits that fail and faults. Everything follows from `seed`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from distributed_training.metrics import events as told
from distributed_training.metrics.base import plain

ROUND_S = 600.0
PHASES = {  # when they begin, as a share of the round
    "miner": {"train": 0.0, "commit": 0.5, "average": 0.6, "settle": 0.9},
    "validator": {"train": 0.0, "average": 0.6, "map": 0.75, "settle": 0.9, "audit": 0.92},
    "owner": {"train": 0.0, "average": 0.6, "settle": 0.9},
}
STEPS = 3  # that are told, of each miner in each round
OWN = ("tokens", "bytes_sent", "bytes_received", "sent_to", "received_from", "steps", "own_tokens", "seconds")
GOOD, BAD = 0.02, 0.08  # gradient errors of an audit


@dataclass(frozen=True, slots=True)
class Shape:
    uids: int
    validators: int
    tell: int  # nodes of which there is a file: the first ones
    seed: int = 0
    began: float = 1.7e9  # Unix time of round 0

    def name(self, uid: int) -> str:
        return "owner" if uid == 0 else f"validator-{uid - 1}" if uid <= self.validators else f"miner-{uid}"

    def role(self, uid: int) -> str:
        return self.name(uid).partition("-")[0]

    @property
    def miners(self) -> range:
        return range(self.validators + 1, self.uids)


def line(shape: Shape, uid: int, at: float, record: told.Record, index: int | None) -> str:
    head = {"time": at, "event": type(record).__name__.lower(), "role": shape.role(uid), "uid": uid, "round": index}
    return _dumps(head | {item.name: plain(getattr(record, item.name)) for item in fields(record)}) + "\n"


def write_start(shape: Shape, run_dir: Path) -> None:
    """Folders, and that the nodes have begun."""
    for uid in range(shape.tell):
        folder = run_dir / "nodes" / shape.name(uid)
        folder.mkdir(parents=True)
        ready = told.Ready(f"5{uid:047d}", bytes(32), bytes(32), 0, 0, "round 0", "0")
        (folder / "events.jsonl").write_text(line(shape, uid, shape.began, ready, None))


def write_round(shape: Shape, run_dir: Path, index: int) -> int:
    """Append what nodes tell of one round; bytes written."""
    made = _Round(shape, index)
    size = 0
    for uid in range(shape.tell):
        text = "".join(made.of(uid))
        with (run_dir / "nodes" / shape.name(uid) / "events.jsonl").open("a") as file:
            file.write(text)
        size += len(text)
    return size


class _Round:
    """What happened in a round, the same for all who tell it."""

    def __init__(self, shape: Shape, index: int) -> None:
        self.shape, self.index, self.draw = shape, index, random.Random(f"{shape.seed} {index}")
        self.start = shape.began + ROUND_S * index
        miners, draw = shape.miners, self.draw
        self.applied = draw.random() > 0.01
        self.trained = {uid: draw.randint(3, 60) for uid in miners if draw.random() > 0.03}  # steps
        self.included = tuple(uid for uid in self.trained if draw.random() > 0.02) if self.applied else ()
        slices = len(miners)
        self.lost = {i for i in range(slices) if draw.random() < 0.004}
        reducers = dict(enumerate(draw.sample(miners, slices)))
        counted = tuple(i for i in range(slices) if i not in self.lost) if self.applied else ()
        credit = {uid: len(counted) / slices for uid in self.included}
        root = draw.randbytes(32).hex()
        missing = {i: tuple(draw.sample(self.included, 2)) for i in counted if draw.random() < 0.02}
        shared = told.Round(
            applied=self.applied, reason="applied" if self.applied else "too few maps", state_root=root,
            candidates=tuple(self.trained), included=self.included, counted=counted,
            backed_up=tuple(i for i in counted if draw.random() < 0.01), missing=missing,
            num_slices=slices, reducers=reducers, credit=credit,
            tokens={}, bytes_sent=0, bytes_received=0, sent_to={}, received_from={},
            up_bytes_per_s=None, down_bytes_per_s=None,
            steps=None, own_tokens=None, pay=None, seconds={},
        )  # fmt: skip
        given = {item.name: plain(getattr(shared, item.name)) for item in fields(shared) if item.name not in OWN}
        self.shared = _dumps(given)[1:-1]  # the same text from everybody, but for OWN: most of all bytes

    @property
    def loss(self) -> float:
        return 2.8 + 8.0 / (1.0 + 0.02 * self.index) ** 0.7 + self.draw.uniform(-0.01, 0.01)

    def of(self, uid: int) -> Iterator[str]:
        role, name = self.shape.role(uid), self.shape.name(uid)
        for phase, share in PHASES[role].items():
            yield self._line(uid, share, told.Phase(phase))
            if phase == "train" and uid in self.trained:
                yield from self._training(uid)
            if phase == "settle":
                yield self._settled(uid)
        if role == "validator":
            yield from self._judged(uid)
        if uid == 0:
            yield self._line(uid, 0.95, told.Evaluation(self.loss))
            if self.index % 10 == 0:
                yield self._line(uid, 0.97, told.Checkpoint(f"hub:org/run@round-{self.index}", "00" * 32))
        if self.draw.random() < 0.002:
            yield self._line(uid, 0.99, told.Fault("chain", f"{name} could not reach the chain for 40 s"))

    def _line(self, uid: int, share: float, record: told.Record) -> str:
        return line(self.shape, uid, self.start + ROUND_S * share + 0.01 * uid, record, self.index)

    def _training(self, uid: int) -> Iterator[str]:
        steps, loss = self.trained[uid], self.loss
        for step in range(STEPS):
            yield self._line(uid, 0.1 + 0.1 * step, told.Step(step, loss, 900.0 + uid))
        yield self._line(uid, 0.49, told.Train(steps, 16_384 * steps, loss, loss - 0.01, 290.0, 0.02))

    def _settled(self, uid: int) -> str:
        head = {"time": self.start + ROUND_S * 0.91 + 0.01 * uid, "event": "round", "role": self.shape.role(uid)}
        tokens = {uid: 16_384 * steps for uid, steps in self.trained.items()} if uid <= self.shape.validators else {}
        mine = {"tokens": tokens, "bytes_sent": 10**8 + uid, "bytes_received": 10**8, "steps": self.trained.get(uid)}
        mine |= {"sent_to": {"miner": 10**8}, "received_from": {"miner": 10**8}}
        rest = mine | {"own_tokens": None, "seconds": {"train": 290.0, "average": 80.0, "settle": 5.0}}
        return f"{_dumps(head | {'uid': uid, 'round': self.index})[:-1]},{self.shared},{_dumps(rest)[1:]}\n"

    def _judged(self, uid: int) -> Iterator[str]:
        """Of every miner: an audit, a card and a weight."""
        cards, draw = dict[int, dict[str, Any]](), self.draw
        for miner in self.trained:
            error = draw.expovariate(300.0) + (0.1 if miner % 50 == 0 else 0.0)
            verdict, quality = ("fail", 0.0) if error > BAD else ("soft", 0.5) if error > GOOD else ("pass", 1.0)
            audit = told.Audit(
                target=miner, verdict=verdict, quality=quality, depth=3, failed_step=None, error=error, good=GOOD,
                bad=BAD, noise=0.003, reason="ok", goodput_bytes_per_s=draw.uniform(1e6, 9e7), duty=1.0,
            )  # fmt: skip
            yield self._line(uid, 0.93, audit)
            weight = self.trained[miner] * quality
            card = {"S": weight / 60, "G": quality, "B": 1.0, "I": 1.0, "weight": weight, "reason": ""}
            cards[miner] = card | {"note": f"round {self.index}: {verdict}, 3 steps"}
        whole = sum(card["weight"] for card in cards.values()) or 1.0
        for card in cards.values():
            card["weight"] /= whole
        yield self._line(uid, 0.96, told.Scores(cards))
        shares = {miner: card["weight"] for miner, card in cards.items()}
        yield self._line(uid, 0.98, told.Weights(50 * self.index, shares))


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
