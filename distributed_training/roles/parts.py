"""What a role is given. Built once by node.py; a role names no adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from distributed_training.averaging.butterfly import Butterfly
from distributed_training.averaging.feedback import Encode, encode_vector
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Chain, Signer, Verify
from distributed_training.chain.clock import BlockClock
from distributed_training.checkpoints.base import CheckpointStore
from distributed_training.journal import Journal
from distributed_training.metrics.base import Metrics
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import SubnetParams

T = TypeVar("T")


class TrainingThread:
    """The one thread that touches the model. `stopping` tells long work to end; `close` joins the thread."""

    def __init__(self) -> None:
        self.stopping = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self.stopping = True
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Parts:
    manifest: RunManifest
    params: SubnetParams
    peer_key: bytes
    signer: Signer
    verify: Verify
    chain: Chain
    clock: BlockClock
    peers: PeerBook
    store: RoundStore
    butterfly: Butterfly
    journal: Journal
    metrics: Metrics
    checkpoints: CheckpointStore
    training: TrainingThread
    encode: Encode = encode_vector  # how its vector becomes bytes; only adversaries replace it
    own_checkpoints: CheckpointStore | None = None  # a miner's own repository
    open_repo: Callable[[str], CheckpointStore] | None = None  # any repository of the Hub, to look into
