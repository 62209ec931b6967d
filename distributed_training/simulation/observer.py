"""The omniscient observer: what must hold in every round, whatever goes wrong, and what a round cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_training.localnet.run.kills import RECOVERY_ROUNDS
from distributed_training.protocol.rules.clock import over
from distributed_training.protocol.sections import TimingSection
from distributed_training.protocol.types import Round
from distributed_training.simulation.faults import Incident
from distributed_training.simulation.records import Recorder, Settlement

EVERYBODYS = ("cut", "outage", "unfinal")
BOUND_S = 10.0  # after s+L, with overlap after s+Y+f: by then every node that nothing happened to has settled the round


@dataclass(frozen=True, slots=True)
class Violation:
    """What did not hold, in which round, and for whom."""

    round: int
    nodes: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One line of the final table. `None`: nobody measured it."""

    round: int
    seconds: float | None  # median over nodes: from block s+D until its last slice had come
    applied: bool | None
    live: int  # nodes that had settled the round by s+L plus the bound
    included: int
    trained_tokens: int
    averaged_tokens: float | None
    messages: float  # frames sent by a miner since the former line, mean
    sent_bytes: float


class Troubles:
    """When which node was in trouble. A partition, an outage and a chain that makes nothing final trouble everybody; a
    fork nobody: it may cost time, but no round."""

    def __init__(self, incidents: Sequence[Incident]) -> None:
        self._incidents = tuple(i for i in incidents if i.kind != "fork")

    def disturbed(self, name: str, since_s: float, until_s: float) -> bool:
        return any(
            i.begin_s < until_s and i.end_s > since_s and (name in i.nodes or i.kind in EVERYBODYS)
            for i in self._incidents
        )


def check_round(
    recorder: Recorder,
    round_: Round,
    names: Sequence[str],
    since: Mapping[str, float],
    troubles: Troubles,
    block_s: float,
    timing: TimingSection,
    bound_s: float = BOUND_S,
) -> list[Violation]:
    """When the round is over, plus the bound. `since`: when each running node was first started, in virtual seconds.

    Obliged to have settled is who runs and had no trouble since the start of the round before the former one.
    """  # fmt: skip
    words = recorder.settled.get(round_.index, {})
    from_s = (round_.start_block - RECOVERY_ROUNDS * timing.length) * block_s
    until_s = over(timing, round_.index) * block_s + bound_s
    late = [
        name
        for name in names
        if name not in words
        and (since[name] <= 0.0 or since[name] < from_s)
        and not troubles.disturbed(name, from_s, until_s)
    ]
    found = [Violation(round_.index, tuple(late), f"not settled {bound_s:.0f} s after the round's end")] if late else []
    return found + disagreements(round_.index, words)


def disagreements(round_index: int, words: Mapping[str, Settlement]) -> list[Violation]:
    """Nodes that settled the round otherwise than most did."""
    found = []
    for what, value in (
        ("another state root", lambda w: w.root),
        ("another outcome", lambda w: (w.applied, w.reason)),
    ):
        said: dict[object, list[str]] = {}
        for name in sorted(words):
            said.setdefault(value(words[name]), []).append(name)
        if len(said) > 1:
            minority = sorted(said.values(), key=len)[:-1]
            found.append(Violation(round_index, tuple(n for group in minority for n in group), what))
    return found


def never_back(recorder: Recorder, last: int, names: Sequence[str]) -> list[Violation]:
    """Some rounds after all trouble: whoever runs has settled round `last`, or joined with a state of after it."""
    done = recorder.settled.get(last, {})
    gone = tuple(sorted(name for name in names if name not in done and name not in recorder.stopped))
    return [Violation(last, gone, f"not back {RECOVERY_ROUNDS} rounds after the last trouble")] if gone else []


def contradictions(recorder: Recorder) -> list[Violation]:
    return [Violation(r, (name,), "settled the round twice, differently") for r, name in recorder.contradictions]


def round_row(recorder: Recorder, round_: Round, block_s: float, moved: tuple[float, float]) -> RoundRow:
    words = recorder.settled.get(round_.index, {})
    begin = round_.commit_block * block_s
    held = sorted(at - begin for at in recorder.held_at.get(round_.index, {}).values())
    first = next((words[name] for name in sorted(words)), None)
    averaged = [w.credited_tokens for w in words.values() if w.credited_tokens is not None]
    return RoundRow(
        round=round_.index,
        seconds=held[len(held) // 2] if held else None,
        applied=None if first is None else first.applied,
        live=len(words),
        included=0 if first is None else first.included,
        trained_tokens=sum(recorder.trained.get(round_.index, {}).values()),
        averaged_tokens=max(averaged) if averaged else None,
        messages=moved[0],
        sent_bytes=moved[1],
    )
