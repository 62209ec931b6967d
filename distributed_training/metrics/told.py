"""What a node's log says of its rounds: a line of each event that a person wants to read, the others at DEBUG."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from distributed_training.errors import on_one_line
from distributed_training.metrics import events
from distributed_training.ongoing import Ongoing, duration, now_s

SYNC_EVERY_S = 30.0
MOST_NAMED = 6  # uids in a line
MOST_SHOWN = 400  # characters of an event at DEBUG

log = logging.getLogger(__name__)


class Words:
    """Told every record where it is emitted, before any sink, so that lines keep their order. Cheap; never raises."""

    def __init__(self, role: str, uid: int) -> None:
        self._miner, self._uid = role == "miner", uid
        self._pay = {"miner": "pay", "validator": "dividends"}.get(role)
        self.where: tuple[int, str] | None = None  # round and phase; None: no state to begin with yet
        self._train: events.Train | None = None
        self._audits: list[events.Audit] = []
        self._loss: float | None = None  # held-out, of an earlier round
        self._synced_at: float | None = None
        self._troubles: dict[str, Ongoing] = {}  # our own, by kind
        self._trouble = Ongoing(
            log,
            "not this node but everybody is in trouble: the run or the chain",
            "the run and the chain are well again",
        )

    def hear(self, record: events.Record, round_: int | None) -> None:
        try:
            line = self._line(record, -1 if round_ is None else round_)
        except Exception as error:  # a record that lacks what it should have: nobody is disturbed for a line
            log.debug("no words for %s: %s", type(record).__name__, error)
            return
        if line is not None:
            log.info("%s", line)
        elif log.isEnabledFor(logging.DEBUG):
            log.debug("round %s: %s", "-" if round_ is None else round_, on_one_line(repr(record)[:MOST_SHOWN]))

    def trouble(self, what: str, detail: str) -> None:
        """Our own trouble of this kind: said when it begins."""
        if what not in self._troubles:
            self._troubles[what] = Ongoing(log, f"own trouble ({what})", f"own trouble is over ({what})", logging.ERROR)
        self._troubles[what].begin(detail)

    def end_troubles(self, since_s: float) -> None:
        """What was not met since then, as `now_s` counts, is over."""
        for trouble in self._troubles.values():
            if not trouble.met_since(since_s):
                trouble.end()

    def _line(self, record: events.Record, index: int) -> str | None:
        match record:
            case events.Ready():
                self.where = (record.start_round, "")
                return f"ready at block {record.block}: from round {record.start_round} on, state from {record.source}"
            case events.Phase():
                self.where = (index, record.phase)
            case events.Train():
                self._train = record
            case events.Ahead() if record.steps_lost:
                return f"round {index}: the chain decided otherwise, {record.steps_lost} steps ahead were for nothing"
            case events.Anew():
                who = f"the work of {record.now} miners, not {record.candidates}"
                return f"round {index}: the chain decided otherwise, the exchange begins anew with {who}"
            case events.Round():
                line, self._train, self.where = self._round(record, index), None, (index + 1, "")
                return line
            case events.Evaluation():
                before, self._loss = self._loss, record.heldout_loss
                after = f"after round {index}" if index >= 0 else "of the model the run begins with"
                former = "" if before is None else f", {before:.4f} before"
                return f"held-out loss {after}: {record.heldout_loss:.4f}{former}"
            case events.Audit():
                self._audits.append(record)
            case events.Scores():
                line, self._audits = audits_line(index, self._audits), []
                return line
            case events.Weights():
                return f"round {index}: weights set in block {record.block}: {_shares(record.weights)}"
            case events.Checkpoint():
                return f"checkpoint of round {index} published: {record.path}, sha256 {record.sha256[:16]}"
            case events.Shared():
                what = "is the run's state" if record.ok else "is NOT the run's state"
                return f"round {index}: what uid {record.target} publishes {what}: {record.repository}, {record.said}"
            case events.Sync():
                return self._sync(record, index)
            case events.Verdict():
                self._judge(record)
            case events.Stopped():
                return f"ended: {record.reason}"
            case _:
                pass
        return None

    def _round(self, r: events.Round, index: int) -> str:
        said = ["applied" if r.applied else f"discarded ({r.reason})"]
        if self._miner:
            said.append(self._work(r))
            if r.applied:
                said += [inclusion(r, self._uid), *own_slice(r, self._uid)]
        else:
            counted = f"{len(r.counted)} of {r.num_slices} slices"
            said.append(f"work of {uids(r.included)} ({len(r.included)} of {len(r.candidates)} miners) in {counted}")
        if r.pay is not None and self._pay:
            said.append(f"{self._pay} {100 * r.pay:.1f} %")
        line = [f"{rate * 8 / 1e6:,.1f} Mbit/s {way}" for way, rate in _rates(r) if rate is not None]
        if line:
            log.debug("round %d: the line, while busy: %s", index, ", ".join(line))
        return f"round {index}: {'; '.join(said)}; state {r.state_root[:12]}"

    def _work(self, r: events.Round) -> str:
        if r.steps is None or r.own_tokens is None:
            return "no step done"
        t = self._train
        speed = "" if t is None or not t.seconds else f" at {t.tokens / t.seconds:,.0f}/s"
        loss = "" if t is None else f", loss {t.loss_first:.3f} -> {t.loss_last:.3f}"
        return f"{r.steps} steps, {r.own_tokens:,} tokens{speed}{loss}"

    def _sync(self, s: events.Sync, index: int) -> str | None:
        now = now_s()
        if s.share < 1 and self._synced_at is not None and now - self._synced_at < SYNC_EVERY_S:
            return None
        self._synced_at = now
        of = f"{s.bytes / 1e6:,.1f} of {s.total_bytes / 1e6:,.1f} MB" if s.share < 1 else f"{s.bytes / 1e6:,.2f} MB"
        state = f"state of round {index}" + (f": {100 * s.share:.0f} %" if s.share < 1 else " is here")
        return f"{state}: {of} from {len(s.by_donor)} peers in {duration(s.seconds)}, {s.bytes_per_s / 1e6:.1f} MB/s"

    def _judge(self, verdict: events.Verdict) -> None:
        if verdict.word in ("the run", "the chain"):
            self._trouble.begin(f"{verdict.word}; {'; '.join(verdict.reasons)}")
        elif verdict.word == "all well":
            self._trouble.end()


def _rates(r: events.Round) -> tuple[tuple[str, float | None], ...]:
    return ("up", r.up_bytes_per_s), ("down", r.down_bytes_per_s)


def uids(found: Sequence[int]) -> str:
    """In words, not more than a line bears."""
    if not found:
        return "nobody"
    named = ", ".join(map(str, found[:MOST_NAMED])) + _more(len(found))
    return f"uid{'s' if len(found) > 1 else ''} {named}"


def _more(count: int) -> str:
    return f" and {count - MOST_NAMED} more" if count > MOST_NAMED else ""


def inclusion(r: events.Round, uid: int) -> str:
    """By whose slices a miner's work is counted, or why it is not."""
    if uid not in r.candidates:
        return "not included: none of our work was on chain in time" if r.steps else "not included: we sat out"
    if uid not in r.included:
        return "not included: no slice that counts has our work, the reducers did not get it in time"
    by = sorted(r.reducers[j] for j in r.counted if uid not in r.missing.get(j, ()))
    lacking = [r.reducers[j] for j in r.counted if uid in r.missing.get(j, ())]
    without = f", not by {uids(lacking)}" if lacking else ""
    return f"included by {uids(by)} ({len(by)} of {r.num_slices} slices{without})"


def own_slice(r: events.Round, uid: int) -> list[str]:
    """What became of the slice that a miner had to reduce; nothing if it had none."""
    own = [j for j, reducer in r.reducers.items() if reducer == uid]
    fate = dict.fromkeys(r.counted, "counts") | dict.fromkeys(r.backed_up, "had to be reduced by its backup")
    return [f"our slice {j} {fate.get(j, 'does not count')}" for j in own]


def audits_line(index: int, audits: Sequence[events.Audit]) -> str:
    """All audits of a round: how many passed, who did not, and why."""
    if not audits:
        return f"round {index}: audits: of nobody"
    passed = [a for a in audits if a.verdict == "pass" and a.reason in ("", "ok")]
    others = [a for a in audits if a not in passed]
    said = [f"{len(passed)} passed"] + [_outcome(a) for a in others[:MOST_NAMED]]
    return f"round {index}: audits: {'; '.join(said)}{_more(len(others))}"


def _outcome(a: events.Audit) -> str:
    verdict = {"pass": "passed", "soft": "in doubt", "fail": "FAILED"}.get(a.verdict or "", "not judged")
    at = "" if a.failed_step is None else f" at step {a.failed_step}"
    return f"uid {a.target} {verdict}{at}" + (f", {on_one_line(a.reason)[:60]}" if a.reason not in ("", "ok") else "")


def _shares(weights: Mapping[int, float]) -> str:
    most = sorted(((uid, share) for uid, share in weights.items() if share > 0), key=lambda item: -item[1])
    return ", ".join(f"uid {uid} {100 * share:.1f} %" for uid, share in most[:MOST_NAMED]) + _more(len(most))
