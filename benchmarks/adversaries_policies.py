"""What miners may do of the work, as policies of the game: classes a (work not done) and b (work partly done)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.adversaries_game import Act, Claim, Moment, Policy

FORWARD = 1 / 3  # of a step: its forward pass alone
TAILS = {
    100: (1, 2, 5, 10, 25, 50, 90),
    500: (1, 2, 5, 10, 25, 50, 100, 200, 290, 400, 450, 490),
    2059: (1, 2, 5, 10, 25, 50, 100, 200, 290, 400, 450, 490, 1000, 1800),
}


def honest(now: Moment) -> Claim:
    return Claim(now.steps, now.steps, now.steps)


def slow(share: float) -> Act:
    """An honest miner that does so much of the cap."""

    def act(now: Moment) -> Claim:
        steps = round(share * now.steps)
        return Claim(steps, steps, steps)

    return act


def tail(done: int, extra: float = 0.0) -> Act:
    """All steps claimed, `done` of them done, the rest of the log invented at `extra` of a step's cost each."""
    return lambda now: Claim(now.steps, done, done + extra * (now.steps - done))


def false_from_start(computed: float = 0.0) -> Act:
    """What step 0 shows: nothing done, another's work, other data, frozen layers; `computed`: of the work."""
    return lambda now: Claim(now.steps, 0, computed * now.steps)


def now_and_then(share: float, cheat: Act) -> Act:
    return lambda now: cheat(now) if now.random.random() < share else honest(now)


def grown(age: int, cheat: Act, young: Act = honest) -> Act:
    """`cheat` from that age on."""
    return lambda now: cheat(now) if now.age >= age else young(now)


def then_absent(rounds: int, cheat: Act) -> Act:
    """`cheat` for so many rounds, then nothing: what was earned is still counted for a while."""
    return lambda now: cheat(now) if now.age < rounds else None


def mute(share: float) -> Act:
    """Honest, but so many of its probes are left unanswered."""
    return lambda now: replace(honest(now), answers=now.round % 100 >= 100 * share)


def other_vector(agrees: float, answers: bool = True) -> Act:
    """All of the work with an honest log, but another vector; `agrees`: its cosine with the honest one."""
    return lambda now: replace(honest(now), agrees=agrees, answers=answers)


CLASS_A: Mapping[str, Policy] = {
    "zeros": Policy(false_from_start()),
    "noise": Policy(false_from_start()),
    "copy of another miner": Policy(false_from_start()),
    "replay of an old round": Policy(false_from_start()),
    "other data": Policy(false_from_start(1.0)),
    "frozen layers": Policy(false_from_start(0.6)),
    "another vector under an honest log: turned round": Policy(other_vector(-1.0)),
    "another vector under an honest log: noise or nothing": Policy(other_vector(0.0)),
    "another vector under an honest log: turned round, probes refused": Policy(other_vector(-1.0, answers=False)),
}


def class_b(steps: int) -> dict[str, Policy]:
    """Work partly done, beside the thrown-away tails at every k."""

    def at(share: float) -> int:
        return int(share * steps)

    made: dict[str, Policy] = {
        "coasts from 58 % on, forward pass only": Policy(tail(at(0.58), FORWARD)),
        "every other step skipped": Policy(lambda now: Claim(now.steps, 1, now.steps / 2)),
        "all done, another vector: half agrees in direction": Policy(other_vector(0.5)),
        "skips half of its probes": Policy(mute(0.5)),
        "skips all probes": Policy(mute(1.0)),
        "matures on 1 % of the work, then 10 % done": Policy(grown(24, tail(at(0.1)), slow(0.01))),
        "matures on 1 % of the work, then 40 % done": Policy(grown(24, tail(at(0.4)), slow(0.01))),
    }
    for share in (0.1, 0.4):
        made[f"{share:.0%} done, identity kept".replace("%", " %")] = Policy(tail(at(share)), renews=False)
        for rounds in (0.1, 0.5):
            made[f"{share:.0%} done in {rounds:.0%} of rounds".replace("%", " %")] = Policy(
                now_and_then(rounds, tail(at(share)))
            )
        for age in (12, 24, 48):
            made[f"honest for {age} rounds, then {share:.0%} done".replace("%", " %")] = Policy(
                grown(age, tail(at(share)))
            )
        for rounds in (1, 6, 12, 24):
            made[f"{share:.0%} done for {rounds} rounds, then away".replace("%", " %")] = Policy(
                then_absent(rounds, tail(at(share))), leaves_at=rounds + 24
            )
    return made


def tails(steps: int, renews: bool = True) -> dict[str, Policy]:
    return {f"{k} of {steps} steps done, thrown away": Policy(tail(k), renews=renews) for k in TAILS[steps]}
