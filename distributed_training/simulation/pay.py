"""What a simulated attack earned: incentive on chain against what was really computed, beside the honest miners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from distributed_training.simulation.swarm import SimResult

PAID_AFTER = 2  # rounds: work is audited in the next one, and an epoch later it is paid
JUDGED_AFTER = 3  # audited rounds, after which work that is not done is to be found out


@dataclass(frozen=True, slots=True)
class Earned:
    """Of a group of uids. `None`: it computed nothing, or nobody honest was paid."""

    share_of_honest: float | None  # mean pay of one, of an honest one's, once JUDGED_AFTER rounds were audited
    pay_per_compute: float | None  # of an honest one's, over all rounds that were paid
    detected_after_rounds: int | None  # audited rounds until a validator failed every one of them
    false_accusations: int  # failed audits of honest miners

    def __str__(self) -> str:
        def share(value: float | None) -> str:
            return "nobody knows how much" if value is None else f"{value:.3f}"

        rounds = self.detected_after_rounds
        found = "no failed audit" if rounds is None else f"found in audited round {rounds}"
        paid = f"{share(self.share_of_honest)} of honest pay; {share(self.pay_per_compute)} of it per step computed"
        return f"{paid}; {found}"


def earned(result: SimResult, uids: Sequence[int]) -> Earned:
    """Of those uids, against the miners that do not cheat."""
    names, cheats = result.options.genesis_names(), result.options.cheats()
    honest = [uid for uid, name in enumerate(names) if name.startswith("miner") and name not in cheats]
    late = result.pay[PAID_AFTER + JUDGED_AFTER - 1 :]
    failed = {uid: [a.round for a in result.failed if a.target == uid] for uid in uids}
    found = max((min(rounds, default=-1) for rounds in failed.values()), default=-1)
    return Earned(
        _ratio(_mean(late, uids), _mean(late, honest)),
        _ratio(_per_step(result, uids), _per_step(result, honest)),
        found + 1 if all(failed.values()) else None,
        sum(a.target in honest for a in result.failed),
    )


def _ratio(value: float | None, honest: float | None) -> float | None:
    return None if value is None or not honest else value / honest


def _mean(rounds: Sequence[Mapping[int, float]], uids: Sequence[int]) -> float | None:
    paid = [fsum(pay.get(uid, 0.0) for uid in uids) / len(uids) for pay in rounds]
    return fsum(paid) / len(paid) if paid else None


def _per_step(result: SimResult, uids: Sequence[int]) -> float | None:
    """Incentive of all rounds over the steps that it was paid for. 0 for who computed nothing and got nothing."""
    rounds = range(len(result.pay) - PAID_AFTER + 1)
    steps = fsum(result.trained.get(index, {}).get(uid, 0.0) for index in rounds for uid in uids)
    paid = fsum(pay.get(uid, 0.0) for pay in result.pay for uid in uids)
    return paid / steps if steps else None if paid else 0.0
