"""The story of the owner: follow every round, evaluate, publish checkpoints. Nobody waits for it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable

from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.errors import ChainFault, LocalFault
from distributed_training.protocol.types import Commitment, Role
from distributed_training.protocol.wire import encode_commitment
from distributed_training.roles.auditing.evaluation import Evaluator
from distributed_training.roles.follower import Follower
from distributed_training.roles.parts import Parts
from distributed_training.roles.report import RoundReport
from distributed_training.snapshots.statefile import encode_state
from distributed_training.training.outer import Vector

log = logging.getLogger(__name__)

STATE_FILE = "state.safetensors"  # parameters, outer momentum and carry, for nodes that join
MODEL_FILE = "model.safetensors"  # parameters by name, for transformers


class Owner:
    def __init__(
        self, parts: Parts, follower: Follower, evaluator: Evaluator, model_files: Callable[[Vector], dict[str, bytes]]
    ) -> None:
        """model_files: fp32 [d] -> the files that transformers reads (model.safetensors, config.json)."""
        self._p, self._follower, self.evaluator, self._model_files = parts, follower, evaluator, model_files

    async def begin(self) -> None:
        """Publish where the run starts, so that a newcomer never depends on rebuilding it."""
        await self._publish()

    async def run_round(self) -> None:
        """One round as an observer, and a checkpoint every few rounds."""
        start = await self._follower.prepare()
        report = RoundReport(self._p, start.round)
        await self._p.clock.reached(start.round.start_block)
        report.phase("train")
        plan = await self._follower.plan(start)
        report.phase("average")
        held = await self._p.butterfly.gather(plan, plan.round.map_block)
        report.averaged()
        report.phase("settle")
        settled = await self._follower.settle(plan, held)
        report.settled(plan, settled.outcome, self._follower.root)
        await self.evaluator.evaluate(self._follower.state, plan.round.index)
        if self._follower.index % self._p.manifest.keep.checkpoint_every == 0:
            await self._publish()

    async def _publish(self) -> None:
        p, index = self._p, self._follower.index
        try:
            ref = await p.training.run(lambda: p.checkpoints.publish(index, self._files()))
            await self._announce(ref)
        except (LocalFault, ChainFault) as error:
            log.error("checkpoint of round %d was not published: %s", index, error)
            p.metrics.emit("fault", round=index, what="checkpoint", detail=str(error))
            return
        p.metrics.emit("checkpoint", round=index, path=ref.location, sha256=ref.digest.hex())

    def _files(self) -> dict[str, bytes]:
        follower, manifest = self._follower, self._p.manifest
        files = self._model_files(follower.state.params) | {STATE_FILE: encode_state(follower.index, follower.state)}
        state = {
            "manifest_sha256": manifest.sha256,
            "round": follower.index,
            "applied": follower.state.applied,
            "state_root": follower.root.hex(),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
        }
        return files | {"training_state.json": json.dumps(state, indent=1, sort_keys=True).encode()}

    async def _announce(self, ref: CheckpointRef) -> None:
        """Manifest hash and checkpoint digest on chain."""
        p = self._p
        commitment = Commitment(
            role=Role.OWNER,
            reduces=False,
            peer_key=p.peer_key,
            first_round=0,
            first=p.manifest.digest,
            second_round=ref.round,
            second=ref.digest,
        )
        await p.chain.commit(encode_commitment(commitment))
