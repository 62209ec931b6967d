"""Frozen records that flow between parts. Plain data: no I/O, no defaults that hide a missing value.

Legend: keys and digests are 32 bytes; a hotkey is an ss58 address; blocks are chain block numbers;
`None` means "not measured" or "absent" and is never folded as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

NO_BACKUP = bytes(32)
NO_ROOT = bytes(32)


class Role(IntEnum):
    """What a hotkey does in this run; one role per hotkey. Stored in the low bits of the commitment's flags."""

    MINER = 0
    VALIDATOR = 1
    OWNER = 2


@dataclass(frozen=True, slots=True)
class BlockRef:
    number: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Round:
    """The blocks of one round; offsets come from the manifest (protocol section 3)."""

    index: int
    run: bytes  # RunManifest.tag: commitments of any other run say nothing about the round
    roster_block: int  # s - B: roster and assignment beacon
    start_block: int  # s
    train_end_block: int  # s + D - M: the last block in which training goes on
    commit_block: int  # s + D: work hashes are read as of here
    output_block: int  # s + X: output hashes are read as of here
    audit_block: int  # s + X + B: audit beacon
    map_block: int  # s + Y: slice maps are read as of here
    end_block: int  # s + L: start of the next round


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an on-chain commitment: kind is "Raw" or "Sha256"."""

    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Commitment:
    """A node's one on-chain commitment, decoded strictly (protocol section 2).

    Miner: first = work-record hash, second = output-record hash. Validator: first = state root it started
    `first_round` from, second = slice map. Owner: first = manifest sha256, second = checkpoint digest.
    """

    role: Role
    reduces: bool
    peer_key: bytes
    run: bytes  # RunManifest.tag: which run it speaks of, 8 bytes
    first_round: int | None
    first: bytes | None
    second_round: int | None
    second: bytes | None
    place: str = ""  # an owner's: where manifest, page manifest and tokenizer lie, hub:ORG/NAME; "": not said


@dataclass(frozen=True, slots=True)
class Neuron:
    """One uid as the chain knows it at one block."""

    uid: int
    hotkey: str
    public_key: bytes  # sr25519 public key of the hotkey: the sort key of everything
    stake: float  # alpha units
    may_validate: bool
    registered_block: int
    address: tuple[str, int] | None  # (ip, port) of the libp2p listener; None: not served
    commitment: Commitment | None  # None: absent or malformed
    commitment_block: int | None  # block in which the commitment was written
    incentive: float  # 0..1, of the last epoch
    dividends: float  # 0..1, of the last epoch
    last_update: int  # block of the last weights
    coldkey: bytes  # public key of the hotkey's owner

    @property
    def reachable_at(self) -> tuple[str, int] | None:
        """Where peers dial it. None: nowhere, or a miner that does not reduce because it has no open port.

        The chain never takes an address back, so one that was published earlier may still stand there.
        """
        commitment = self.commitment
        outbound_only = commitment is not None and commitment.role is Role.MINER and not commitment.reduces
        return None if outbound_only else self.address


@dataclass(frozen=True, slots=True)
class Roster:
    """All neurons of the subnet as of one block, in uid order."""

    block: BlockRef
    neurons: tuple[Neuron, ...]
    _by_public_key: Mapping[bytes, Neuron] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # A round looks up everybody several times for everybody.
        object.__setattr__(self, "_by_public_key", {n.public_key: n for n in reversed(self.neurons)})

    def by_hotkey(self, hotkey: str) -> Neuron | None:
        return next((n for n in self.neurons if n.hotkey == hotkey), None)

    def by_public_key(self, public_key: bytes) -> Neuron | None:
        return self._by_public_key.get(public_key)


@dataclass(frozen=True, slots=True)
class SubnetParams:
    """What the chain says about the subnet now. The defaults are the chain's own, for runtimes that lack an item."""

    netuid: int
    tempo: int
    weights_rate_limit: int
    block_s: float
    owner_hotkey: str
    owner_coldkey: str
    min_allowed_weights: int = 1
    max_weight_limit: int = 65535  # u16: the largest share of a row; 65535: no limit
    commit_reveal: bool = False  # weights are committed and shown `reveal_period` epochs later
    reveal_period: int = 1
    version_key: int = 0  # weights of an older version are refused; 0: any version
    next_epoch_block: int | None = None  # None: the subnet has no epochs, or nobody says
    max_uids: int | None = None  # None: nobody says


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a miner logs of one inner step (protocol section 5)."""

    step: int
    losses: tuple[float, ...]  # mean loss of each sequence of the batch, nats, fp16 values
    grad_norm: float  # before clipping, fp32 value
    sketch: tuple[tuple[float, ...], ...]  # [group][coordinate], fp16 values


def vector_norm(chunk_norms: Sequence[float]) -> float:
    """||x|| of a vector from the norms of its chunks; free of order."""
    return math.sqrt(math.fsum(n * n for n in chunk_norms))


@dataclass(frozen=True)
class WorkRecord:
    """A miner's claim about one round; its hash goes on chain before s+D (protocol section 5)."""

    manifest: bytes
    round: int
    uid: int
    public_key: bytes
    state_root: bytes
    steps: int
    tokens: int
    pages_root: bytes  # Merkle root over the content digests of the pages used, in order
    log_root: bytes  # Merkle root over the encoded step records
    wire_root: bytes  # Merkle root over the digests of the encoded chunks
    codec: int
    feedback_start: bytes  # root of what former encodings left out, which this vector has in it; NO_ROOT: nothing
    feedback_end: bytes  # root of what this encoding left out; NO_ROOT: the codec keeps nothing
    began_at: (
        bytes  # overlap: wire root of the former round's vector at whose end training began; NO_ROOT: at the state
    )
    shift_step: int  # overlap: steps done before the parameters were shifted to the state
    chunk_norms: tuple[float, ...]  # one per chunk, fp32 values

    @cached_property
    def norm(self) -> float:
        """Of the whole vector, by the declared ones. Kept: every slice of a round asks for every sender's."""
        return vector_norm(self.chunk_norms)


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """A reducer's claim about one slice; its hash goes on chain before s+X (protocol section 6)."""

    manifest: bytes
    round: int
    slice: int
    public_key: bytes
    output_root: bytes  # Merkle root over the digests of the encoded output chunks
    backup: bytes  # hash of the output record with which this reducer stands in for the one before it; NO_BACKUP: none
    senders: tuple[bytes, ...]  # work-record hashes, in the order of the senders' public keys
    included: tuple[tuple[bool, ...], ...]  # [chunk of the slice][sender]


@dataclass(frozen=True, slots=True)
class Signed:
    """Canonical body bytes plus the hotkey's signature over their hash."""

    body: bytes
    signature: bytes  # 64 bytes, sr25519


@dataclass(frozen=True, slots=True)
class Accusation:
    """A validator's word that a miner's log is not what its first steps give (protocol section 7)."""

    manifest: bytes
    round: int
    accuser: bytes  # public key
    miner: bytes  # public key
    steps: int  # to replay: the last of them is the one that failed
    reason: str  # as in AuditResult, printable ASCII


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hotkey whose round-r work record was written on chain in (s, s+D]."""

    uid: int
    hotkey: str
    public_key: bytes
    registered_block: int
    peer_key: bytes
    address: tuple[str, int] | None
    record_hash: bytes
    reduces: bool


@dataclass(frozen=True, slots=True)
class SliceSpec:
    """Chunks [first_chunk, last_chunk) are reduced by the candidate with this public key."""

    index: int
    first_chunk: int
    last_chunk: int
    reducer: bytes


@dataclass(frozen=True, slots=True)
class Left:
    """What the last included vector of a sender left out: from there, or from nothing, its next one starts."""

    public_key: bytes
    root: bytes  # `feedback_end` of its last included record
    age: int  # applied rounds since


@dataclass(frozen=True, slots=True)
class Carry:
    """The small public part of the state: clip threshold, whose slices failed in the last 8 applied rounds, and what
    senders were included with in them, where the uplink codec keeps what it leaves out."""

    tau: float
    failed: tuple[tuple[bytes, ...], ...]  # by round, oldest first: sorted public keys
    left: tuple[Left, ...] = ()  # by public key

    def left_by(self, public_key: bytes) -> bytes:
        """The root from which its next record may start; NO_ROOT: none but nothing."""
        return next((each.root for each in self.left if each.public_key == public_key), NO_ROOT)


@dataclass(frozen=True, slots=True)
class AverageOutcome:
    """How a round ended on this node."""

    round: int
    applied: bool
    reason: str  # "applied", or why the round was discarded
    included: tuple[bytes, ...]  # public keys that at least half of the counted chunks include
    counted: tuple[int, ...]  # slice indices
    backed_up: tuple[int, ...]  # those of them that the backup reduced, because the reducer failed
    num_slices: int
    credit: dict[bytes, float]  # public key -> what its work counts for, 0..1 (rules/duty.py)
    reduced: dict[bytes, float]  # public key of who had a slice -> the reducer's part of its duty, 0..1
    missing: dict[int, tuple[bytes, ...]]  # counted slice -> candidates that less than half of its chunks include
