"""What a dashboard gets of the events: how often, of which round, and what is left out."""

from __future__ import annotations

from typing import Any

from distributed_training.metrics.rows import BOARD, Rows

ROUND: dict[str, Any] = {
    "event": "round", "applied": True, "reason": "applied", "state_root": "aa", "candidates": [3], "included": [3],
    "num_slices": 2, "counted": [0, 1], "backed_up": [1], "reducers": {"0": 3, "1": 4}, "credit": {"3": 0.5},
    "tokens": {}, "bytes_sent": 1, "bytes_received": 2, "steps": 5, "own_tokens": 10, "seconds": {"train": None},
}  # fmt: skip


def step(time: float, round: int, number: int, loss: float | None) -> dict[str, Any]:
    return {"event": "step", "time": time, "round": round, "step": number, "loss": loss, "tokens_per_s": 10.0}


def test_training_is_told_at_once_then_every_15_s_as_a_mean_of_one_round() -> None:
    rows = Rows("miner", 3)
    losses = (9.0, 1.0, 2.0, 3.0, 8.0, 4.0, 6.0)
    told = [rows.take(step(100.0 + 5 * n, n // 5, n % 5, loss)) for n, loss in enumerate(losses)]
    assert [len(row) for row in told] == [1, 0, 0, 1, 0, 0, 1]
    assert told[3] == [{"round": 0, "train/loss": 2.0, "train/tokens_per_s": 10.0, "train/steps": 4}]
    assert told[6][0] | {"round": 1, "train/loss": 5.0, "train/steps": 2} == told[6][0], "none of the round before"
    assert rows.take(step(0.0, 1, 2, None)) == [{"round": 1, "train/tokens_per_s": 10.0, "train/steps": 3}]


def test_work_begun_ahead_belongs_to_its_own_round() -> None:
    rows = Rows("miner", 3)
    for number, loss in ((0, 5.0), (1, 4.0)):
        rows.take({"event": "train", "round": number, "loss_first": loss, "loss_last": loss - 1, "stall_s": None})
    found = [rows.take(ROUND | {"round": number})[0] for number in (0, 1, 2)]
    assert [row.get("own/loss_first") for row in found] == [5.0, 4.0, None]
    assert found[0]["own/credit"] == 0.5 and "round/train_seconds" not in found[0]


def test_a_round_waits_for_its_held_out_loss_and_no_longer_than_the_next() -> None:
    rows = Rows("owner", 0)
    assert rows.take({"event": "evaluation", "round": -1, "heldout_loss": 6.0}) == [{"round": -1, "heldout/loss": 6.0}]
    assert rows.take(ROUND | {"round": 0}) == []
    (row,) = rows.take({"event": "evaluation", "round": 0, "heldout_loss": 5.0})
    assert (row["round"], row["heldout/loss"]) == (0, 5.0)
    assert row[BOARD]["data"] == [[3, 1, 0.5, 1, 0]], "what the backup reduced is not its reducer's"
    assert rows.take(ROUND | {"round": 1}) == []
    assert [row["round"] for row in rows.take(ROUND | {"round": 2})] == [1]
    assert rows.take({"event": "evaluation", "round": 1, "heldout_loss": 4.0}) == [{"round": 1, "heldout/loss": 4.0}]
    assert [row["round"] for row in rows.rest()] == [2] and rows.rest() == []


def test_a_peers_words_are_left_out() -> None:
    rows = Rows("validator", 1)
    card = {"S": 0.0, "G": 0.0, "B": 0.0, "I": 0.0, "weight": 0.0, "reason": "audit failed: 203.0.113.7", "note": "203"}
    rows.take({"event": "scores", "round": 0, "cards": {"3": card}})
    rows.take({"event": "fault", "round": 0, "what": "disk", "detail": "203.0.113.7"})
    rows.take({"event": "shared", "round": 0, "repository": "203.0.113.7"})
    rows.take(ROUND | {"round": 1})
    (row,) = rows.rest()
    assert row[BOARD]["data"][0][-1] == "audit failed" and row["faults"] == 1
    assert "203" not in str(row)
