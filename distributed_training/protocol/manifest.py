"""The run manifest: everything two nodes must agree on, as one canonical JSON document.

Its sha256 is committed on chain by the owner and stands in every record. It holds no address, path or
wall-clock time. A new manifest is a new run (protocol section 2).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distributed_training import PROTOCOL_VERSION
from distributed_training.errors import ConfigError, expected
from distributed_training.protocol.limits import field_problems
from distributed_training.protocol.types import Round

MOST_ERROR = 0.5  # relative gradient errors from here on are no two replays of one round (docs/drift.md)
_EOS_IDS = {"bytes": 256, "gpt2": 50256}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PublicSection(_Section):
    """Who speaks for the run and where its files are; whoever owns the subnet later, these stay."""

    run_key: str  # hex public key of the hotkey whose OWNER commitments name the checkpoints; "": nobody's do
    checkpoints: str  # hub:ORG/NAME, or "": from peers alone
    pages: str  # hub:ORG/NAME[@REVISION] or https://..., or "": from peers or by hand


class AccessSection(_Section):
    """Who may mine: whose hotkey, or whose coldkey, is listed; everybody where both lists are empty. Validators are
    decided by stake and permit alone. Public keys as hex, sorted."""

    hotkeys: list[str]
    coldkeys: list[str]


class ModelSection(_Section):
    config: dict[str, Any]  # all that transformers understood of a config, as JSON; must name `model_type`
    attention: Literal["sdpa", "eager"]
    constants_sha256: str  # hex; of what the model holds and no step trains
    init_seed: int  # recipe of round 0; the root below decides
    initial_root: str  # hex state root of round 0


class DataSection(_Section):
    tokenizer: Literal["bytes", "gpt2", "file"]  # file: a tokenizer.json, in each node's run directory
    tokenizer_sha256: str
    eos_id: int  # put after every document
    pages_sha256: str
    page_trust: Literal["digest", "commit"]  # commit: pages without a digest are believed for their data set's commit
    num_pages: int
    sequence_length: int  # tokens a sequence feeds to the model
    batch_size: int  # sequences per inner step: a protocol constant, the micro-batch is free
    heldout_sequences: int


class InnerSection(_Section):
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


class OuterSection(_Section):
    learning_rate: float
    momentum: float


class AverageSection(_Section):
    chunk_coords: int
    block_coords: int  # int8 codec: coordinates per scale
    token_cap: int  # tokens beyond this add no weight and no credit
    weight_by: Literal["tokens", "root_tokens"]  # what a vector weighs: its miner's tokens, or their square root
    initial_tau: float  # clip threshold of round 0
    tau_factor: float
    gate_factor: float
    min_counted: int  # Q: fewer counted slices discard the round
    min_map_share: float  # of the voters' stake that must commit a slice map, or the round is discarded
    min_voter_share: float  # of all permit stake that the voters must hold, or nobody decides
    max_reducers: int


class TimingSection(_Section):
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


class AuditSection(_Section):
    t0: float  # harmonic prefix: P(L >= t) = min(1, t0 / t)
    full_share: float  # share of audits that replay everything and compare the vector
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


class ScoringSection(_Section):
    steps_half_life: float  # rounds
    audit_half_life: float
    integrity_half_life: float
    integrity_floor: float  # below: 0
    soft_fail_weight: float
    penalty_rounds: int  # K
    goodput_required: float  # bytes/s
    goodput_probes: int  # last probes kept
    bandwidth_share: float  # at most this much of the weight
    cutoff: float  # below this share of the best weight: 0
    burn_share: float  # of all weight, to the subnet owner's uid; the chain cuts the subnet's emission by as much


class KeepSection(_Section):
    work_rounds: int
    output_rounds: int
    snapshot_every: int
    checkpoint_every: int
    max_missing_rounds: int


class RunManifest(_Section):
    protocol_version: int
    name: str
    netuid: int
    max_uids: int
    version_key: int
    continues: str  # sha256 of the manifest whose state this run began with, or "": of none
    public: PublicSection
    access: AccessSection
    model: ModelSection
    data: DataSection
    inner: InnerSection
    outer: OuterSection
    average: AverageSection
    timing: TimingSection
    audit: AuditSection
    scoring: ScoringSection
    keep: KeepSection

    @model_validator(mode="after")
    def _consistent(self) -> RunManifest:
        problems = check(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def canonical(self) -> bytes:
        """UTF-8 JSON with sorted keys and no spaces; floats as Python's shortest repr."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        ).encode()

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the canonical bytes, 32 bytes. Made once: every record that is checked is compared with it."""
        return hashlib.sha256(self.canonical()).digest()

    def __copy__(self) -> RunManifest:
        """A copy is made to be changed, so it has a digest of its own."""
        made = super().__copy__()
        vars(made).pop("digest", None)
        return made

    @property
    def sha256(self) -> str:
        return self.digest.hex()

    @property
    def tag(self) -> bytes:
        """What commitments say of the run: the first 8 bytes of the digest."""
        return self.digest[:8]

    def round(self, index: int) -> Round:
        """The blocks of round `index` >= 0."""
        t = self.timing
        start = t.first_block + index * t.length
        return Round(
            index=index,
            run=self.tag,
            roster_block=start - t.roster_lead,
            start_block=start,
            train_end_block=start + t.commit - t.commit_margin,
            commit_block=start + t.commit,
            output_block=start + t.output,
            audit_block=start + t.output + t.roster_lead,
            map_block=start + t.map,
            end_block=start + t.length,
        )

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.sequence_length


def check(manifest: RunManifest) -> list[str]:
    """What a schema cannot say: ranges, and constraints between fields; empty when the manifest can be run."""
    # Relations are judged only when every field is sane: they divide by some.
    return field_problems(manifest) or _relation_problems(manifest)


def _relation_problems(manifest: RunManifest) -> list[str]:
    t, a, u, k = manifest.timing, manifest.average, manifest.audit, manifest.keep
    rules = [
        (manifest.protocol_version == PROTOCOL_VERSION, f"protocol_version must be {PROTOCOL_VERSION}"),
        (0 < t.commit_margin < t.commit, "timing: 0 < commit_margin < commit"),
        (t.commit + t.finality < t.output - t.reduce_margin, "timing: commit + finality < output - reduce_margin"),
        (t.output + t.finality + t.transfer < t.map, "timing: output + finality + transfer < map"),
        (t.map + t.finality <= t.length - t.roster_lead, "timing: map + finality <= length - roster_lead"),
        (
            t.output + t.roster_lead + t.finality <= t.length,
            "timing: the audit beacon must be final before the round ends",
        ),
        (t.roster_lead >= t.finality, "timing: roster_lead >= finality"),
        (t.first_block >= t.roster_lead, "timing: first_block >= roster_lead"),
        (a.min_counted <= a.max_reducers, "average: min_counted <= max_reducers, or no round is ever applied"),
        (a.chunk_coords % a.block_coords == 0, "average: chunk_coords must be a multiple of block_coords"),
        (u.error_ok < u.error_bad, "audit: error_ok < error_bad"),
        (
            u.error_bad * u.error_growth_max < MOST_ERROR,
            f"audit: error_bad * error_growth_max < {MOST_ERROR:g}, or gradients of other data pass deep in a round",
        ),
        (u.norm_ok < u.norm_bad, "audit: norm_ok < norm_bad"),
        (u.loss_ok < u.loss_bad, "audit: loss_ok < loss_bad"),
        (
            k.output_rounds >= 2 * k.snapshot_every,
            "keep: output_rounds >= 2 * snapshot_every, or the rounds after a snapshot are gone while it is served",
        ),
        (
            manifest.data.eos_id == _EOS_IDS.get(manifest.data.tokenizer, manifest.data.eos_id),
            f"data: eos_id of {manifest.data.tokenizer} is {_EOS_IDS.get(manifest.data.tokenizer)}",
        ),
        (manifest.data.num_pages >= manifest.max_uids, "data: num_pages >= max_uids, or a uid has no page at all"),
    ]
    return [message for ok, message in rules if not ok]


def parse_manifest(data: bytes, *, source: str = "manifest") -> RunManifest:
    """Decode and validate; every problem is named by its line in the document. Raises ConfigError."""
    try:
        return RunManifest.model_validate_json(data)
    except ValidationError as error:
        if (other := other_protocol(data)) is not None:
            raise ConfigError(
                f"{source}: protocol_version must be {PROTOCOL_VERSION}, not {other}: a run is followed by the version "
                "of this code that speaks its protocol"
            ) from None
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ConfigError(f"{source}: {where}: {expected(first)} ({error.error_count()} problem(s) in all)") from None


def other_protocol(data: bytes) -> int | None:
    """The protocol version that a manifest names, where it is not the one spoken here."""
    try:
        version: Any = json.loads(data)["protocol_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if type(version) is int and version != PROTOCOL_VERSION else None


def load_manifest(path: Path) -> RunManifest:
    """Read a manifest file. Raises ConfigError naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the run manifest {path}: {error.strerror}; scripts/create_run.py writes one"
        ) from None
    return parse_manifest(data, source=str(path))
