"""A validator's weights on chain: sent when they are due, tried again until they are there, compared with what is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from distributed_training.errors import ChainFault, ChainRefused, said
from distributed_training.metrics.events import Weights
from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.rules.clock import weights_due
from distributed_training.protocol.rules.weights import (
    NOTHING_SCORED,
    appears,
    burn_price,
    outdated_key,
    row_differs,
    row_to_send,
)
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import tell

log = logging.getLogger(__name__)

MOST_PAUSE = 8  # blocks between two tries
NO_PERMIT = "no permit to validate"  # said elsewhere in every round


@dataclass(frozen=True, slots=True)
class Sent:
    """A row that was tried, and then taken by the chain in `block`, to come up from `first` to `last`."""

    round: int
    offer: int
    uid: int
    row: dict[int, int]
    former: int  # the block of our weights before it
    block: int = 0
    first: int = 0
    last: int = 0


class RowWatch:
    """Rows that the chain took in, until the finalised chain shows them. `last_update` moves without that."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._open: list[Sent] = []  # oldest first
        self._newest: Sent | None = None  # until it is in the finalised chain
        self._next_look = 0

    def add(self, sent: Sent) -> None:
        self._open = [*self._open, sent]
        self._newest = sent

    async def dropped(self) -> Sent | None:
        """The newest row, once, if a reorganisation took it back."""
        sent = self._newest
        if sent is None or self._p.clock.finalized < sent.block:
            return None
        self._newest = None  # before the read, which may fail for good
        me = (await self._p.chain.roster(sent.block)).by_public_key(self._p.signer.public_key)
        if me is not None and me.last_update == sent.block:
            return None
        self._open = [s for s in self._open if s != sent]
        return sent

    async def compare(self) -> None:
        """The oldest one with what is there now. A later one that is there has overwritten it."""
        final, rows = self._p.clock.finalized, self._open
        if not rows or final < max(rows[0].first, self._next_look):
            return
        sent, over = rows[0], final >= rows[0].last
        self._next_look = final + max(1, (sent.last - sent.first) // 8)
        if over:  # before the read, which may fail for good: old state is thrown away
            self._open = rows[1:]
        block = min(final, sent.last)
        shown = (await self._p.chain.weights(block)).get(sent.uid, {})
        there = [n for n, s in enumerate(rows) if row_differs(s.row, shown) is None]
        if there:
            log.info("round %d: the weights of block %d are on chain as sent", sent.round, rows[there[-1]].block)
            self._open = rows[there[-1] + 1 :]
        elif over:
            tell(self._p, sent.round, "weights", ChainFault(_alarm(sent, shown)))


def _alarm(sent: Sent, shown: Mapping[int, float]) -> str:
    differs = row_differs(sent.row, shown) if shown else "there is no row"
    if sent.first == sent.last:
        return (
            f"the weights of block {sent.block} are on chain otherwise than sent ({differs}): end whatever else sets "
            "weights with this hotkey; if nothing does, report it with the chain's spec_version"
        )
    return (
        f"the weights committed in block {sent.block} were not revealed by block {sent.last} ({differs}): the former "
        "row still pays until the next commit's reveal; if that is lost too, ask whether other validators' appear: if "
        "not, the chain lacks drand pulses, else compare this machine's clock and SDK with theirs"
    )


class WeightSetter:
    """Looks once a block; asks the chain something only when there is something to send or to compare."""

    def __init__(self, parts: Parts) -> None:
        self._p, self._params = parts, parts.params
        self._cards: Mapping[str, ScoreCard] = {}
        self._round = -1  # of the newest fold
        self._offers = self._sent_offers = 0  # how often cards were offered, and the one of them that is on chain
        self._last_update: int | None = None  # as the chain last said
        self._tried: Sent | None = None  # nobody said what came of it
        self._next_try, self._pause = 0, 1  # blocks
        self._said: set[str] = set()  # kinds of trouble since the last set
        self._watch = RowWatch(parts)
        self._one = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def offer(self, round_index: int, cards: Mapping[str, ScoreCard]) -> None:
        """What is sent from now on: a newer fold, or the same one with a card that has changed since."""
        self._round, self._cards, self._next_try = round_index, cards, 0
        self._offers += round_index >= 0

    def begin(self) -> None:
        """Look in every block from now on. Idempotent."""
        if self._task is None:
            price = burn_price(self._p.manifest.scoring.burn_share)
            outdated = outdated_key(self._p.manifest.version_key, self._params)
            if price:
                log.warning("%s", price)
            if outdated:
                self._tell(outdated, outdated)
            self._task = asyncio.create_task(self._run(), name="weights")

    async def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            await self.look()
            await self._p.clock.reached(self._p.clock.head + 1)

    async def look(self) -> None:
        """Send and compare what is due now. Trouble, whatever it is, is said and tried again: nobody else would."""
        async with self._one:
            try:
                await self._look_back()
            except Exception as error:
                tell(self._p, self._round, "weights", ChainFault(f"weights are not compared with the chain: {error}"))
            try:
                if self._offers > self._sent_offers and self._p.clock.head >= self._next_try and await self._due():
                    await self._send()
            except Exception as error:
                self._next_try, self._pause = self._p.clock.head + self._pause, min(MOST_PAUSE, 2 * self._pause)
                kind = error.code if isinstance(error, ChainRefused) else ""
                self._tell(f"{said(error)}; it is tried again", kind)

    async def _look_back(self) -> None:
        dropped = await self._watch.dropped()
        if dropped is not None:
            log.warning("round %d: a reorganisation took back the weights of block %d", dropped.round, dropped.block)
            self._sent_offers, self._last_update = self._offers - 1, None
        await self._watch.compare()

    async def _due(self) -> bool:
        epoch, head = self._params.next_epoch_block, self._p.clock.head
        if epoch is not None and head >= epoch:
            self._params, self._pause = await self._p.chain.params(), 1
        return self._last_update is None or weights_due(head, self._last_update, self._params)

    async def _send(self) -> None:
        """By the head as it is now: who may be paid, what the subnet asks for, whether a lost try is there."""
        p, tried = self._p, self._tried
        roster, self._params = await p.chain.roster(p.clock.head), await p.chain.params()
        me = roster.by_public_key(p.signer.public_key)
        if me is None:
            return None  # the node ends for that elsewhere
        self._last_update = me.last_update
        if tried is not None and me.last_update > tried.former:
            return self._took(tried, me.last_update)
        if not weights_due(p.clock.head, me.last_update, self._params):
            return None
        row, lacks = row_to_send(self._cards, self._round, roster, self._params, p.manifest)
        lacks = lacks if me.may_validate else NO_PERMIT
        if lacks:  # nothing will change that before the next fold or epoch
            self._next_try = self._params.next_epoch_block or p.clock.head + max(1, self._params.tempo)
            return self._tell(lacks, lacks)
        self._tried = Sent(self._round, self._offers, me.uid, row, me.last_update)
        return self._took(self._tried, await p.chain.set_weights(row, p.manifest.version_key))

    def _took(self, sent: Sent, block: int) -> None:
        self._tried, self._sent_offers, self._last_update, self._pause = None, sent.offer, block, 1
        self._said.clear()
        first, last = appears(block, self._params)
        self._watch.add(replace(sent, block=block, first=first, last=last))
        total = sum(sent.row.values())
        shares = {uid: value / total for uid, value in sent.row.items()}
        self._p.metrics.emit(Weights(block=block, weights=shares), round=sent.round)

    def _tell(self, detail: str, kind: str) -> None:
        """Each kind once, however often it is met before weights are set."""
        if detail in (NO_PERMIT, NOTHING_SCORED):
            log.info("round %d: no weights set (%s)", self._round, detail)
        elif kind not in self._said:
            tell(self._p, max(0, self._round), "weights", ChainFault(f"no weights set: {detail}"))
        self._said.add(kind)
