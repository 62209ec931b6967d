"""What a miner claims of its work: the record whose hash it puts on chain."""

from __future__ import annotations

from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.feedback import Encoded
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import NO_ROOT, WorkRecord
from distributed_training.protocol.wire import encode_step
from distributed_training.roles.mining.work import WorkResult
from distributed_training.roles.parts import Parts


def work_record(
    parts: Parts,
    uid: int,
    round_index: int,
    state_root: bytes,
    result: WorkResult,
    made: Encoded,
    began_at: bytes | None = None,
) -> WorkRecord:
    """state_root: of the state that the round starts from. began_at: the wire root of the vector at whose end training
    went on; None: it began at the state."""
    return WorkRecord(
        manifest=parts.manifest.digest,
        round=round_index,
        uid=uid,
        public_key=parts.signer.public_key,
        state_root=state_root,
        steps=len(result.steps),
        tokens=len(result.steps) * parts.manifest.tokens_per_step,
        pages_root=merkle_root(result.page_digests),
        log_root=merkle_root([digest(encode_step(s)) for s in result.steps]),
        wire_root=made.contribution.wire_root,
        codec=uplink_of(parts.manifest.average).id,
        feedback_start=made.start,
        feedback_end=made.end,
        began_at=NO_ROOT if began_at is None else began_at,
        shift_step=_shift_step(result) if began_at is not None else 0,
        chunk_norms=made.contribution.norms,
    )


def _shift_step(result: WorkResult) -> int:
    """What was not shifted while it was trained is shifted after its last step."""
    return len(result.steps) if result.shifted_at is None else result.shifted_at
