"""Every event a node tells: one frozen record each. Its name on the wire is the class's in lower case.

A record owns its values: what it is given is not changed afterwards, for it is turned into JSON in another thread.
docs/events.md is made of this file, by scripts/document_events.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True, slots=True)
class Ready:
    """The node has a state and begins its rounds; one of each start."""

    hotkey: Annotated[str, "ss58 address"]
    peer_key: Annotated[bytes, "Ed25519 key of its transport"]
    state_root: Annotated[bytes, "of the state it begins with"]
    block: Annotated[int, "head of the chain"]
    start_round: Annotated[int, "the first round that it settles"]
    source: Annotated[str, "where the state is from, in words"]
    version: Annotated[str, "of this program"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a round begins."""

    phase: Annotated[str, "train, average or settle; of a miner also commit, of a validator map and audit"]


@dataclass(frozen=True, slots=True)
class Step:
    """One inner step of a miner."""

    step: Annotated[int, "of the round, from 0"]
    loss: Annotated[float, "mean over the batch, nats per token"]
    tokens_per_s: Annotated[float, "tokens/s"]


@dataclass(frozen=True, slots=True)
class Train:
    """A miner has done its steps of a round."""

    steps: Annotated[int, "steps"]
    tokens: Annotated[int, "tokens"]
    loss_first: Annotated[float, "of the first step, nats per token"]
    loss_last: Annotated[float, "of the last step, nats per token"]
    seconds: Annotated[float | None, "s, since the phase began"]
    stall_s: Annotated[float | None, "s that training waited for pages; null: not measured"]


@dataclass(frozen=True, slots=True)
class Ahead:
    """Work that was begun ahead of its round was for nothing."""

    steps_lost: Annotated[int, "steps"]


@dataclass(frozen=True, slots=True)
class Anew:
    """The chain was reorganised: the exchange of a round, begun at its head, begins anew with others."""

    candidates: Annotated[int, "miners with whom it was begun"]
    now: Annotated[int, "miners with whom it goes on"]


@dataclass(frozen=True, slots=True)
class Round:
    """A round is settled on this node."""

    applied: Annotated[bool, "was the average applied to the state?"]
    reason: Annotated[str, '"applied", or why the round was discarded']
    state_root: Annotated[str, "of the state after the round, hex"]
    candidates: Annotated[tuple[int, ...], "uids that committed work"]
    included: Annotated[tuple[int, ...], "those of them whose work counts"]
    counted: Annotated[tuple[int, ...], "indices of the slices that count"]
    backed_up: Annotated[tuple[int, ...], "those of them that the backup reduced"]
    num_slices: Annotated[int, "slices"]
    reducers: Annotated[Mapping[int, int], "slice to the uid that had to reduce it"]
    credit: Annotated[Mapping[int, float], "uid to what its work counts for: its chunks that count, a third forgiven"]
    missing: Annotated[Mapping[int, tuple[int, ...]], "counted slice to the candidates that most of its chunks lack"]
    tokens: Annotated[Mapping[int, int], "uid to the tokens of its work record; empty where those are not known"]
    bytes_sent: Annotated[int, "bytes of payload in this round"]
    bytes_received: Annotated[int, "bytes of payload in this round"]
    sent_to: Annotated[Mapping[str, int], "bytes of them by kind of peer: miner, validator, owner, stranger"]
    received_from: Annotated[Mapping[str, int], "likewise"]
    up_bytes_per_s: Annotated[float | None, "bytes/s at which this node's line sent while busy; null: too little moved"]
    down_bytes_per_s: Annotated[float | None, "bytes/s at which it received, likewise"]
    steps: Annotated[int | None, "own steps; null: none"]
    own_tokens: Annotated[int | None, "own tokens; null: none"]
    seconds: Annotated[Mapping[str, float | None], "s of the phases train, average and settle; null: not measured"]
    pay: Annotated[float | None, "own share of the incentive, of a validator of the dividends, 0 to 1; null: not known"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out loss of the state after a round; round -1 is the initial state."""

    heldout_loss: Annotated[float, "nats per token"]


@dataclass(frozen=True, slots=True)
class Audit:
    """What a validator makes of one miner's round. Null: not measured."""

    target: Annotated[int, "uid of the miner"]
    verdict: Annotated[str | None, "pass, soft or fail"]
    quality: Annotated[float | None, "0 to 1"]
    depth: Annotated[int | None, "steps replayed"]
    failed_step: Annotated[int | None, "the first that is another than the miner's"]
    error: Annotated[float | None, "the number that decided"]
    good: Annotated[float | None, "up to here that number would be fine"]
    bad: Annotated[float | None, "beyond it the audit fails; of the cosine of a vector, below it"]
    noise: Annotated[float | None, "gradient error between the validator's own two precisions at step 0"]
    reason: Annotated[str, "in words; ok where nothing is wrong"]
    goodput_bytes_per_s: Annotated[float | None, "bytes/s of the probe"]
    duty: Annotated[float | None, "share of its duty to average that it did, 0 to 1"]


@dataclass(frozen=True, slots=True)
class Scores:
    """A validator's score cards after a round."""

    cards: Annotated[Mapping[int, Mapping[str, Any]], "uid to the terms S, G, B, I, weight (0 to 1), reason and note"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A validator's weights are on chain."""

    block: Annotated[int, "block that has them"]
    weights: Annotated[Mapping[int, float], "uid to its share; they sum to 1"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The owner has published the state."""

    path: Annotated[str, "folder, or repository and revision"]
    sha256: Annotated[str, "of the checkpoint's description, hex"]


@dataclass(frozen=True, slots=True)
class Shared:
    """A validator has looked at the state that a miner publishes."""

    target: Annotated[int, "uid of the miner"]
    repository: Annotated[str, "ORG/NAME"]
    ok: Annotated[bool, "is it the state of the run?"]
    said: Annotated[str, "what was found, in words"]


@dataclass(frozen=True, slots=True)
class Sync:
    """A node that joins is fetching the state of a round from its peers."""

    share: Annotated[float, "done, 0 to 1"]
    bytes: Annotated[int, "bytes that are here"]
    total_bytes: Annotated[int, "bytes"]
    resumed_bytes: Annotated[int, "bytes that a former start had fetched"]
    bytes_per_s: Annotated[float, "bytes/s"]
    seconds: Annotated[float, "s since it began"]
    by_donor: Annotated[Mapping[str, int], "peer key in hex to the bytes it gave"]


@dataclass(frozen=True, slots=True)
class Chain:
    """Where the chain is, every 10 blocks' time."""

    block: Annotated[int, "newest block"]
    finalized: Annotated[int, "newest final block"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is it the run or the chain? Looked at every 100 blocks, by what the chain says alone."""

    block: Annotated[int, "newest block"]
    word: Annotated[str, "all well, the run, the chain, not known"]
    reasons: Annotated[tuple[str, ...], "in words"]
    head_age_s: Annotated[float | None, "s, of the newest block by its own stamp and this machine's clock"]
    spec_version: Annotated[int, "of the chain's runtime"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether this uid keeps its place; looked at with the verdict. Null: this chain does not say."""

    block: Annotated[int, "as of it"]
    immune_blocks: Annotated[int | None, "blocks left of its immunity"]
    rank: Annotated[int, "by emission, 1 is the most"]
    of: Annotated[int, "uids on the subnet"]
    earns: Annotated[bool, "has it any emission?"]
    prunable_rank: Annotated[int | None, "1: replaced next, as if its immunity were over; null: never, the owner's"]
    prunable: Annotated[int, "uids that may be replaced now"]
    free_places: Annotated[int, "while there are any, nobody is replaced"]
    price_tao: Annotated[float | None, "TAO that a registration costs now"]
    collateral: Annotated[float | None, "alpha that is locked for it"]


@dataclass(frozen=True, slots=True)
class Fault:
    """This node's own trouble."""

    what: Annotated[str, "kind, one word: disk, chain, commit, hotkey, unreachable, audit, metrics and others"]
    detail: Annotated[str, "in words"]


@dataclass(frozen=True, slots=True)
class Stopped:
    """The node has ended by itself; one that is stopped or killed says nothing."""

    reason: Annotated[str, "in words"]


Record = (
    Ready | Phase | Step | Train | Ahead | Anew | Round | Evaluation | Audit | Scores | Weights | Checkpoint | Shared
    | Sync | Chain | Verdict | Standing | Fault | Stopped
)  # fmt: skip
