"""What of a node's events is public: rows of numbers for a dashboard, one a round and at most one per 15 s of training.

Only what is named here is told, so no address, path or text of a peer can slip in with an event's fields.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

STEP_ROW_S = 15.0
GATHERED = ("step", "train", "audit", "scores", "weights")  # events that wait for a row
BOARD = "leaderboard"  # the one value of a row that is a table: {"columns": [...], "data": [[...], ...]}
TERMS = ("weight", "S", "G", "B", "I")
Row = dict[str, Any]
Event = Mapping[str, Any]


class Rows:
    """Folds the events of one node. A row holds a `round` and what was measured, by names such as `round/tokens`."""

    def __init__(self, role: str, uid: int) -> None:
        """role: miner, validator or owner."""
        self._role, self._uid = role, uid
        self._gathered: dict[str, list[Event]] = defaultdict(list)
        self._faults = 0
        self._step_row_at = float("-inf")
        self._held: Row | None = None  # of a round whose held-out loss is being measured
        self._rounds, self._last = Counter[int](), dict[int, int]()
        self._credit, self._reduced = Counter[int](), Counter[int]()

    def take(self, event: Event) -> list[Row]:
        """The rows that are whole with this event."""
        rows: list[Row] = []
        name = event["event"]
        if name in GATHERED:
            self._gathered[name].append(event)
        self._faults += name == "fault"
        if name == "step":
            rows = self._training(event)
        elif name == "round":
            rows = self._released()
            self._held = self._settled(event)
            rows += self._released() if self._role == "miner" else []
        elif name == "evaluation":
            same = self._held is not None and self._held["round"] == event["round"]
            row = (self._held or {}) if same else {"round": event["round"]}
            row["heldout/loss"] = event["heldout_loss"]
            rows = self._released() if same else [row]
        return [_measured(row) for row in rows]

    def rest(self) -> list[Row]:
        """What the end of the node leaves."""
        rows = self._released() + ([{"faults": self._faults}] if self._faults else [])
        self._faults = 0
        return [_measured(row) for row in rows]

    def _taken(self, name: str) -> list[Event]:
        return self._gathered.pop(name, [])

    def _released(self) -> list[Row]:
        rows, self._held = [self._held] if self._held else [], None
        return rows

    def _training(self, event: Event) -> list[Row]:
        if 0 <= event["time"] - self._step_row_at < STEP_ROW_S:
            return []
        self._step_row_at = event["time"]
        steps = [step for step in self._taken("step") if step["round"] == event["round"]]
        row = {f"train/{name}": _mean(step[name] for step in steps) for name in ("loss", "tokens_per_s")}
        return [row | {"round": event["round"], "train/steps": event["step"] + 1}]

    def _settled(self, event: Event) -> Row:
        row = {
            "round": event["round"],
            "round/applied": int(event["applied"]),
            "round/reason": _ours(event["reason"]),
            "round/state_root": event["state_root"],
            "round/candidates": len(event["candidates"]),
            "round/participants": len(event["included"]),
            "round/slices": event["num_slices"],
            "round/slices_counted": len(event["counted"]),
            "round/slices_backed_up": len(event["backed_up"]),
            "round/tokens": sum(event["tokens"].values()) if event["tokens"] else None,
            "round/bytes_sent": event["bytes_sent"],
            "round/bytes_received": event["bytes_received"],
            "faults": self._faults,
        }
        self._faults = 0
        row |= {f"round/{phase}_seconds": value for phase, value in event["seconds"].items()}
        if self._role == "miner":
            return row | self._own(event)
        return row | (self._audited() if self._role == "validator" else {BOARD: self._standings(event)})

    def _own(self, event: Event) -> Row:
        number, trained = event["round"], self._taken("train")
        self._gathered["train"] = [train for train in trained if train["round"] > number]  # was begun ahead
        train = next((train for train in trained if train["round"] == number), {})
        return {
            "own/included": int(self._uid in event["included"]),
            "own/credit": event["credit"].get(str(self._uid)),
            "own/steps": event["steps"],
            "own/tokens": event["own_tokens"],
            "own/loss_first": train.get("loss_first"),
            "own/loss_last": train.get("loss_last"),
            "own/stall_seconds": train.get("stall_s"),
        }

    def _audited(self) -> Row:
        """What this validator found and paid since its last row; that is of the round before, as a rule."""
        audits, scores, weights = (self._taken(name) for name in ("audit", "scores", "weights"))
        verdicts = Counter(audit["verdict"] for audit in audits)
        row: Row = {f"audits/{verdict}": verdicts[verdict] for verdict in ("pass", "soft", "fail")}
        row["audits/round"] = audits[-1]["round"] if audits else None
        row["audits/depth"] = _mean(audit["depth"] for audit in audits)
        row["audits/goodput_bytes_per_s"] = _mean(audit["goodput_bytes_per_s"] for audit in audits)
        shares: Mapping[str, float] = weights[-1]["weights"] if weights else {}
        if weights:
            row["weights/block"] = weights[-1]["block"]
            row["weights/paid"] = sum(share > 0 for share in shares.values())
            row["weights/largest"] = max(shares.values(), default=None)
        if scores:
            data = [
                [int(uid), shares.get(uid), *(card[term] for term in TERMS), _ours(card["reason"])]
                for uid, card in scores[-1]["cards"].items()
            ]
            data.sort(key=lambda line: (-(line[2] or 0.0), line[0]))
            row[BOARD] = {"columns": ["uid", "weight on chain", *TERMS, "why none"], "data": data}
        return row

    def _standings(self, event: Event) -> dict[str, Any]:
        """Of all uids, since this node started."""
        for uid in event["included"]:
            self._rounds[uid] += 1
            self._last[uid] = event["round"]
            self._credit[uid] += event["credit"].get(str(uid), 0.0)
        for slice_ in set(event["counted"]) - set(event["backed_up"]):
            self._reduced[event["reducers"][str(slice_)]] += 1
        data = [[uid, n, self._credit[uid], self._reduced[uid], self._last[uid]] for uid, n in self._rounds.items()]
        data.sort(key=lambda line: (-line[2], line[0]))
        return {"columns": ["uid", "rounds", "credit", "slices reduced", "last round"], "data": data}


def _measured(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ours(reason: str) -> str:
    """The words before a colon are always our own; after it may be what a peer's bytes said."""
    return reason.partition(":")[0]
