"""Who may say of whom that its log fails, and how often it is listened to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from samples import SMALL, commitment, group, key, neuron, roster

from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault
from distributed_training.network.base import closing
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Accusation, Role, Signed
from distributed_training.protocol.wire import encode_accusation, encode_signed, signing_message
from distributed_training.roles.auditing.accusations import METHOD, UNBELIEVED_ROUNDS, Accusations
from distributed_training.roles.auditing.looking import Answered, Looker
from distributed_training.simulation import loop

G = group(3)
MINER, JUDGE, VOTER, LATE = 0, 7, 8, 9
OTHERS = tuple(
    neuron(n, Role.VALIDATOR, stake=1000.0, commitment=commitment(n, Role.VALIDATOR, run=SMALL.tag))
    for n in (JUDGE, VOTER, LATE)
)
PLAN = replace(G.plan, voters=OTHERS[:2])  # LATE has got its permit since s-B
INDEX = PLAN.round.index
SAID = Accusation(SMALL.digest, INDEX, key(VOTER), key(MINER), 5, "gradient")


class Hotkey:
    """Its signature of a message is its public key and the message's end."""

    def __init__(self, number: int) -> None:
        self.hotkey, self.public_key = f"5hot{number}", key(number)

    def sign(self, message: bytes) -> bytes:
        return self.public_key + message[-32:]


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    return signature == public_key + message[-32:]


class Scene:
    def __init__(self) -> None:
        self.switch, chain = MemorySwitch(), SimpleNamespace()
        clock = BlockClock(chain, 1.0)  # type: ignore[arg-type]
        self.books = {n: self._book(n) for n in (MINER, JUDGE, VOTER, LATE)}
        self.all = {n: Accusations(SMALL, self.books[n], clock, Hotkey(n), verify) for n in (JUDGE, VOTER)}
        for one in self.all.values():
            one.open_round(PLAN)

    def _book(self, number: int) -> PeerBook:
        transport = MemoryTransport(self.switch, key(number, "peer"))
        self.switch.plug(transport)
        made = PeerBook(transport, 1, key(number), lambda message: bytes(64), lambda *asked: True)
        made.update(roster(*G.plan.roster.neurons, *OTHERS))
        return made

    async def say(self, by: int, said: Accusation, signer: int | None = None) -> None:
        body = encode_accusation(said)
        frame = encode_signed(Signed(body, Hotkey(by if signer is None else signer).sign(signing_message(body))))
        async with closing(self.books[by].open(key(JUDGE, "peer"), METHOD, frame, 5.0)) as stream:
            assert await stream.read(2, 5.0) == b"ok"

    def waiting(self, index: int = INDEX) -> list[Accusation]:
        found = []
        while (one := self.all[JUDGE].next(index)) is not None:
            found.append(one)
        return found


def told(story: Callable[[Scene], Awaitable[Any]]) -> None:
    async def run() -> None:
        await story(Scene())

    loop.run(run())


LIES: dict[str, tuple[int, dict[str, Any], int]] = {
    "a miner": (MINER, {"accuser": key(MINER)}, MINER),
    "no voter of the round": (LATE, {"accuser": key(LATE)}, LATE),
    "in another's name": (LATE, {}, VOTER),
    "not signed by the accuser": (VOTER, {}, LATE),
    "of another run": (VOTER, {"manifest": bytes(32)}, VOTER),
    "of another round": (VOTER, {"round": INDEX + 1}, VOTER),
    "of nobody who took part": (VOTER, {"miner": key(55)}, VOTER),
    "of a step that cannot be": (VOTER, {"steps": SMALL.inner.max_steps + 1}, VOTER),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_voter_of_the_round_did_not_sign_is_refused(lie: str) -> None:
    by, fields, signer = LIES[lie]

    async def story(scene: Scene) -> None:
        with pytest.raises(NetworkFault):
            await scene.say(by, replace(SAID, **fields), signer)
        assert scene.waiting() == []

    told(story)


def test_each_accuser_is_heard_once_of_each_miner_and_round() -> None:
    async def story(scene: Scene) -> None:
        for steps in (5, 6, 5):
            await scene.say(VOTER, replace(SAID, steps=steps))
        other = replace(SAID, miner=key(1))
        await scene.say(VOTER, other)
        assert scene.waiting() == [SAID, other]
        await scene.say(VOTER, SAID)
        assert scene.waiting() == []

    told(story)


def test_who_was_wrong_is_not_heard_for_a_while() -> None:
    async def story(scene: Scene) -> None:
        await scene.say(VOTER, SAID)
        await scene.say(VOTER, replace(SAID, miner=key(1)))
        judge = scene.all[JUDGE]
        first = judge.next(INDEX)
        assert first is not None
        judge.disbelieve(first)
        assert judge.next(INDEX) is None, "nor what it had said before"
        for later, heard in ((UNBELIEVED_ROUNDS - 1, 0), (UNBELIEVED_ROUNDS, 1)):
            index = INDEX + later
            judge.open_round(replace(PLAN, round=replace(PLAN.round, index=index)))
            await scene.say(VOTER, replace(SAID, round=index))
            assert len(scene.waiting(index)) == heard

    told(story)


def test_who_waits_misses_no_word_that_came_just_before() -> None:
    async def story(scene: Scene) -> None:
        judge = scene.all[JUDGE]
        assert judge.next(INDEX) is None
        await scene.say(VOTER, SAID)
        async with asyncio.timeout(1):
            await judge.came()
        assert judge.next(INDEX) == SAID and judge.next(INDEX) is None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await judge.came()

    told(story)


def test_only_the_open_round_and_the_one_before_are_spoken_of() -> None:
    async def story(scene: Scene) -> None:
        for index in (INDEX + 1, INDEX + 2):
            scene.all[JUDGE].open_round(replace(PLAN, round=replace(PLAN.round, index=index)))
        await scene.say(VOTER, replace(SAID, round=INDEX + 1))
        with pytest.raises(NetworkFault):
            await scene.say(VOTER, SAID)

    told(story)


def test_the_others_are_told_until_they_have_heard() -> None:
    async def story(scene: Scene) -> None:
        transport = scene.books[JUDGE].transport
        scene.switch.unplug(transport)  # type: ignore[arg-type]
        scene.all[VOTER].accuse(PLAN, key(MINER), 5, "gradient")
        await asyncio.sleep(3)
        assert scene.waiting() == []
        scene.switch.plug(transport)  # type: ignore[arg-type]
        await asyncio.sleep(3)
        assert scene.waiting() == [SAID]
        await scene.all[VOTER].cancel()

    told(story)


def test_where_a_training_began_is_not_waited_for_when_it_is_too_late() -> None:
    """A miner and who accuses it may be one: who gives its vector slowly holds up no validator's next round."""
    record = replace(G.works[key(MINER)], began_at=key(3))
    words = [replace(SAID, steps=1)]
    done = SimpleNamespace(plan=PLAN, works={key(MINER): record}, log_of=lambda who: None, former=None)

    async def story() -> None:
        asked, given_up = asyncio.Event(), asyncio.Event()

        async def never(*of: Any) -> None:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()

        clock, said = SimpleNamespace(block_s=1.0), SimpleNamespace(next=lambda index: words.pop())
        parts: Any = SimpleNamespace(manifest=SMALL, clock=clock, peers=None, verify=None)
        looker: Any = Looker(parts, None, None, said)  # type: ignore[arg-type]
        looker._origins.of, looker._beacon = never, bytes(32)
        async with asyncio.timeout(5):
            assert await looker.answer(done, asked.is_set) == Answered()
        await asyncio.wait_for(given_up.wait(), 1)

    loop.run(story())
