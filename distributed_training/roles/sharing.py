"""A miner may publish the run's state in a repository of its own after each applied round; validators look at it.

Nobody's score depends on it: what a validator finds is an event, for people who look for a copy they can trust.
"""

from __future__ import annotations

import asyncio
import logging
import re
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future

from distributed_training.averaging.plan import RoundPlan
from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.errors import ConfigError, LocalFault, NetworkFault, PeerFault, WireError
from distributed_training.metrics.events import Shared
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Candidate
from distributed_training.roles.exporting import Exporter
from distributed_training.roles.follower import Follower
from distributed_training.roles.joining.published import check_published
from distributed_training.roles.parts import Parts
from distributed_training.roles.publishing import Publisher
from distributed_training.roles.trouble import tell

log = logging.getLogger(__name__)

METHOD = "shared"
ANSWER_S = 10.0
LAST_LOOK_S = 10.0  # how long the end of a run waits for it
KEPT_ROUNDS = 16  # of what was published, to answer for; the repository keeps as many
_MAX_NAME_BYTES = 200
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_ROUND = struct.Struct("<I")


class SharedState:
    """A miner's side: the newest state goes out in the background, and whoever validates is told where."""

    def __init__(
        self, parts: Parts, follower: Follower, store: CheckpointStore, exporter: Exporter, repo_id: str
    ) -> None:
        self._p, self._follower, self._repo_id = parts, follower, repo_id
        self._publisher = Publisher(parts, store, exporter, self._is_out, staging="staging-own")
        self.rounds: list[int] = []  # whose states are out, oldest first
        self._offered = 0
        parts.peers.transport.serve(METHOD, self._on_asked)

    async def offer(self) -> None:
        """After a round: publish the state if the round was applied."""
        follower = self._follower
        if follower.state.applied > self._offered:
            self._offered = follower.state.applied
            await self._publisher.offer(follower.index, follower.state, follower.root)

    async def cancel(self) -> None:
        await self._publisher.cancel()

    async def _is_out(self, ref: CheckpointRef) -> None:
        self.rounds = [*self.rounds, ref.round][-KEPT_ROUNDS:]

    async def _on_asked(self, stream: Stream) -> None:
        neuron, payload = await self._p.peers.accept(stream, ANSWER_S)
        if neuron not in self._p.peers.validators(self._p.manifest):
            raise PeerFault(f"uid {neuron.uid} is no validator of this run")
        if len(payload) != _ROUND.size:
            raise WireError("request: malformed round")
        known = _ROUND.unpack(payload)[0] in self.rounds
        await stream.write(self._repo_id.encode() if known else b"", ANSWER_S)


async def ask_shared(peers: PeerBook, peer_key: bytes, round_index: int) -> str | None:
    """Where this miner has published the state of a round; None: nowhere. Raises NetworkFault, PeerFault."""
    async with (
        deadline(ANSWER_S, "shared"),
        closing(peers.open(peer_key, METHOD, _ROUND.pack(round_index), ANSWER_S)) as stream,
    ):
        answer = await stream.read(_MAX_NAME_BYTES, ANSWER_S)
    name = answer.decode("ascii", "replace")
    if name and not _NAME.fullmatch(name):
        raise WireError(f"shared: {name[:40]!r} is no repository")
    return name or None


class SharedStates:
    """A validator's side: one miner a round, drawn by the beacon, and all of its numbers against the state root.

    `begin` after a round, which nobody has to wait for; `finish` at the end of the run; always `cancel`.
    """

    def __init__(self, parts: Parts, open_repo: Callable[[str], CheckpointStore]) -> None:
        self._p, self._open_repo = parts, open_repo
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def begin(self, plan: RoundPlan, beacon: bytes) -> None:
        """`look` in a task of its own, for a round at most; nothing while a former look is under way."""
        looking = self._task is not None and not self._task.done()
        if looking or (self._thread is not None and self._thread.is_alive()):
            log.debug("round %d: nobody's copy is looked at, a former look is under way", plan.round.index)
            return
        self._task = asyncio.create_task(self._look_for_a_round(plan, beacon), name="shared states")

    async def finish(self, patience_s: float = LAST_LOOK_S) -> None:
        """Wait for the look under way, for a while."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=patience_s)

    async def cancel(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _look_for_a_round(self, plan: RoundPlan, beacon: bytes) -> None:
        index, limit_s = plan.round.index, self._p.manifest.timing.length * self._p.clock.block_s
        try:
            async with asyncio.timeout(limit_s):
                await self.look(plan, beacon)
        except TimeoutError:
            log.debug("round %d: looking at a published copy took more than %.0f s and was given up", index, limit_s)
        except Exception as error:  # whatever it is: ours, and the run can do without it
            tell(self._p, index, "shared", error)

    async def look(self, plan: RoundPlan, beacon: bytes) -> None:
        """Is the state there that the round started from? An event `shared` when there is something to tell."""
        candidates = sorted(plan.candidates, key=lambda c: c.public_key)
        if not candidates:
            return
        drawn = candidates[int.from_bytes(beacon[:8], "little") % len(candidates)]
        try:
            repo_id = await ask_shared(self._p.peers, drawn.peer_key, plan.round.index)
        except (NetworkFault, PeerFault) as error:  # most publish nothing, and do not answer to this
            log.debug("uid %d does not say where it publishes: %s", drawn.uid, error)
            return
        if repo_id is not None:
            await self._check(plan, drawn, repo_id)

    async def _check(self, plan: RoundPlan, drawn: Candidate, repo_id: str) -> None:
        manifest, index = self._p.manifest, plan.round.index

        def found() -> CheckpointRef | None:
            return check_published(self._open_repo(repo_id), index, plan.state_root, manifest)

        try:
            ref = await self._in_thread(found)
            ok, said = ref is not None, "nothing of this round" if ref is None else ref.location
        except (WireError, ConfigError) as error:
            ok, said = False, str(error)
        except LocalFault as error:  # ours or the Hub's: no word about the miner
            log.debug("round %d: what uid %d publishes was not looked at: %s", index, drawn.uid, error)
            return
        self._p.metrics.emit(Shared(target=drawn.uid, repository=repo_id, ok=ok, said=said), round=index)

    async def _in_thread(self, work: Callable[[], CheckpointRef | None]) -> CheckpointRef | None:
        """In a thread that the end of the process does not wait for, as it would for asyncio's own."""
        answer: Future[CheckpointRef | None] = Future()
        answer.set_running_or_notify_cancel()  # who no longer waits for it cannot stop it

        def run() -> None:
            try:
                answer.set_result(work())
            except BaseException as error:
                answer.set_exception(error)

        self._thread = threading.Thread(target=run, name="shared states", daemon=True)
        self._thread.start()
        return await asyncio.wrap_future(answer)
