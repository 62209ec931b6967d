"""The sections of a run manifest, field by field; what they have to do with each other is manifest.py's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PublicSection(Section):
    """Who speaks for the run and where its files are; whoever owns the subnet later, these stay."""

    run_key: str  # hex public key of the hotkey whose OWNER commitments name the checkpoints; "": nobody's do
    checkpoints: str  # hub:ORG/NAME, or "": from peers alone
    pages: str  # hub:ORG/NAME[@REVISION] or https://..., or "": from peers or by hand


class AccessSection(Section):
    """Who may mine: whose hotkey, or whose coldkey, is listed; everybody where both lists are empty. Validators are
    decided by stake and permit alone. Public keys as hex, sorted."""

    hotkeys: list[str]
    coldkeys: list[str]


class ModelSection(Section):
    config: dict[str, Any]  # all that transformers understood of a config, as JSON; must name `model_type`
    attention: Literal["sdpa", "eager"]
    constants_sha256: str  # hex; of what the model holds and no step trains
    init_seed: int  # recipe of round 0; the root below decides
    initial_root: str  # hex state root of round 0


class DataSection(Section):
    tokenizer: Literal["bytes", "gpt2", "file"]  # file: a tokenizer.json, in each node's run directory
    tokenizer_sha256: str
    eos_id: int  # put after every document
    pages_sha256: str
    page_trust: Literal["digest", "commit"]  # commit: pages without a digest are believed for their data set's commit
    num_pages: int
    sequence_length: int  # tokens a sequence feeds to the model
    batch_size: int  # sequences per inner step: a protocol constant, the micro-batch is free
    heldout_sequences: int


class InnerSection(Section):
    optimizer: str  # one of training/optimizers
    options: dict[str, float]  # all of that optimiser's
    nominal_steps: int  # H_nominal of the learning-rate clock
    max_steps: int  # H_max: an upper bound per round
    learning_rate: float
    warmup_steps: int
    decay_steps: int  # cosine to min_lr_ratio over this many nominal steps
    min_lr_ratio: float
    ramp_steps: int  # the first steps of every round rise linearly to the full rate
    weight_decay: float
    clip_norm: float


class OuterSection(Section):
    learning_rate: float
    momentum: float


class AverageSection(Section):
    uplink: Literal["int8", "int4", "sparse"]  # codec of what miners send to reducers
    output: Literal["int8", "int4"]  # codec of what reducers publish
    feedback_decay: float  # of what a sparse encoding left out, the share that is in its sender's next vector
    chunk_coords: int
    block_coords: int  # int8 codec: coordinates per scale
    token_cap: int  # tokens beyond this add no weight and no credit
    weight_by: Literal["tokens", "root_tokens"]  # what a vector weighs: its miner's tokens, or their square root
    initial_tau: float  # clip threshold of round 0
    tau_factor: float
    gate_factor: float
    min_counted: int  # Q: fewer counted slices discard the round
    min_map_share: float  # of the voters' stake that must commit a map, or the round is discarded; or call a slice lost
    min_voter_share: float  # of all permit stake that the voters must hold, or nobody decides
    max_reducers: int


class TimingSection(Section):
    """Offsets in blocks from a round's start (protocol section 3)."""

    first_block: int  # start of round 0
    finality: int  # f
    roster_lead: int  # B
    commit_margin: int  # M
    commit: int  # D
    reduce_margin: int  # reducers stop waiting for senders this long before X
    output: int  # X
    map: int  # Y
    length: int  # L
    transfer: int  # blocks kept free for gather
    overlap: bool  # a round is averaged while the next one is trained


class AuditSection(Section):
    mode: Literal["log", "enforce"]  # log: a verdict by thresholds alone is told and scored as a pass, to calibrate
    depth_share: float  # c: all validators together reach step t of H with probability about min(1, c * H / t)
    newcomer_factor: float  # so many times as often, or as deep, where most of what is claimed has not vested
    full_share: float  # of a miner's rounds that somebody replays to the end beside those, with the vector
    sketch_size: int  # numbers per parameter group in the log
    probe_chunks: int
    error_ok: float
    error_bad: float
    error_growth_steps: float  # thresholds of step t are those of step 0 times (1 + t / this)
    error_growth_max: float  # ... and at most times this
    norm_ok: float
    norm_bad: float
    loss_ok: float
    loss_bad: float
    vector_cosine_bad: float  # full replays: cosine of replayed and committed vector below this fails


class ScoringSection(Section):
    vesting_rounds: int  # after so many with as much work it is paid in full
    audit_half_life: float  # rounds
    integrity_half_life: float
    integrity_floor: float  # below: 0
    soft_fail_weight: float
    penalty_rounds: int  # K
    goodput_required: float  # bytes/s
    goodput_probes: int  # last probes kept
    bandwidth_share: float  # at most this much of the weight
    cutoff: float  # below this share of the best weight: 0
    burn_share: float  # of all weight, to the subnet owner's uid; the chain cuts the subnet's emission by as much


class KeepSection(Section):
    work_rounds: int
    output_rounds: int
    snapshot_every: int
    checkpoint_every: int
    max_missing_rounds: int
