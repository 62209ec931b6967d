"""The best that one owner can do with identities that cost nothing: a dynamic program over policies of an identity.

In every round an identity works honestly, does any part of its claim and invents the rest, or leaves; what it has
earned is then still paid for a while. Its state is its age, as long as it works in every round. Beside incumbents that
are paid 1 a round for a round's work, the pay per work of a policy is at most the greatest rate at which some policy
still makes a profit when work costs that rate: found by bisection. Exact, given that a dishonest step that is replayed
is found.

Legend: v value of an identity at an age; p probability to be found in a round; x part of the claim that is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.adversaries_game import Rules
from distributed_training.protocol.rules.audit_plan import reach
from distributed_training.protocol.rules.scoring import vested


@dataclass(frozen=True, slots=True)
class Best:
    pay_per_compute: float
    policy: tuple[str, ...]  # by age: "honest", "leave", or how much is done


class Game:
    def __init__(self, rules: Rules, validators: int) -> None:
        """Validators hold equal stake."""
        self._rules, self._validators = rules, validators
        self._ripe = rules.scoring.vesting_rounds  # from this age on an identity is like an incumbent
        fractions = {round(share * rules.steps) for share in np.arange(0.02, 1.0, 0.02)}
        self._done = np.array(sorted({0, 1, 2, 5, 10} | fractions))
        self._found = {known: self._probabilities(known) for known in (False, True)}
        self._paid = [vested([1.0] * age, self._ripe) for age in range(self._ripe + 1)]
        self._left = [self._pay_after(age) for age in range(self._ripe + 1)]

    def _probabilities(self, known: bool) -> NDArray[np.float64]:
        """That somebody replays a step that was not done, for each part that was done."""
        share, steps, audit = 1.0 / self._validators, self._rules.steps, self._rules.audit
        one = [reach(int(done) + 1, steps, audit, share, proven=known) for done in self._done]
        return 1.0 - (1.0 - np.array(one)) ** self._validators

    def _pay_after(self, age: int) -> float:
        """Of who worked for so many rounds and is absent from now on."""
        work, kept = [1.0] * age, 2 * self._ripe
        return sum(vested((work + [0.0] * away)[-kept:], self._ripe) for away in range(1, kept))

    def best(self, honest_when_ripe: bool = False) -> Best:
        """The best policy that does not end as an honest miner's; or, if it may, then it is paid 1 at least."""
        low, high = (1.0, 50.0) if honest_when_ripe else (0.0, 50.0)
        for _ in range(40):
            middle = (low + high) / 2
            if self._value(middle, honest_when_ripe)[0] > 1e-9:
                low = middle
            else:
                high = middle
        return Best(low, self._value(low, honest_when_ripe)[1])

    def _value(self, cost: float, honest_when_ripe: bool) -> tuple[float, tuple[str, ...]]:
        """Of a new identity when a round's work costs `cost`, and what it does at each age."""
        work = cost * self._done / self._rules.steps
        for_ever = ((1.0 - self._found[True]) - work) / self._found[True]  # cheating alike until found
        at = int(np.argmax(for_ever))
        choices = {"leave": self._left[-1], self._name(at): float(for_ever[at])}
        if honest_when_ripe and cost < 1.0:
            return np.inf, ()
        policy = [max(choices, key=lambda name: choices[name])]
        value = max(choices.values())
        for age in reversed(range(self._ripe)):
            known = 2.0 * self._paid[age] >= 1.0
            pay = self._paid[age + 1]
            cheats = (1.0 - self._found[known]) * (pay + value) - work
            at = int(np.argmax(cheats))
            choices = {"honest": pay - cost + value, self._name(at): float(cheats[at]), "leave": self._left[age]}
            best = max(choices, key=lambda name: choices[name])
            value = choices[best]
            policy.append(best)
        return value, tuple(reversed(policy))

    def _name(self, at: int) -> str:
        return f"{self._done[at] / self._rules.steps:.0%} done"
