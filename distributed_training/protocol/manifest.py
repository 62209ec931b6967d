"""The run manifest: everything two nodes must agree on, as one canonical JSON document.

Its sha256 is committed on chain by the owner and stands in every record. It holds no address, path or
wall-clock time. A new manifest is a new run (protocol section 2).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from distributed_training import PROTOCOL_VERSION
from distributed_training.errors import ConfigError, expected
from distributed_training.protocol.limits import field_problems
from distributed_training.protocol.sections import (
    AccessSection,
    AuditSection,
    AverageSection,
    DataSection,
    InnerSection,
    KeepSection,
    ModelSection,
    OuterSection,
    PublicSection,
    ScoringSection,
    Section,
    TimingSection,
)
from distributed_training.protocol.types import Round

MOST_ERROR = 0.5  # relative gradient errors from here on are no two replays of one round (docs/drift.md)
_EOS_IDS = {"bytes": 256, "gpt2": 50256}


class RunManifest(Section):
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
        # The exchange begins at the head's s+D; what it makes goes on chain once s+D is final.
        (t.commit + t.finality <= t.output - t.reduce_margin, "timing: commit + finality <= output - reduce_margin"),
        (t.output + t.transfer < t.map, "timing: output + transfer < map"),
        # A map that was written at the head's s+X is written again where finality decides otherwise.
        (t.output + t.finality < t.map, "timing: output + finality < map"),
        *(_overlap_rules(t) if t.overlap else _turn_rules(t)),
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


def _turn_rules(t: TimingSection) -> list[tuple[bool, str]]:
    """One round after the other."""
    return [
        (t.map + t.finality <= t.length - t.roster_lead, "timing: map + finality <= length - roster_lead"),
        (
            t.output + t.roster_lead + t.finality <= t.length,
            "timing: the audit beacon must be final before the round ends",
        ),
    ]


def _overlap_rules(t: TimingSection) -> list[tuple[bool, str]]:
    """A round is averaged while the next one is trained: it is settled before that training ends."""
    return [
        (t.commit <= t.length, "timing: commit <= length, or two rounds are trained at once"),
        (
            t.map + t.finality < t.length + t.commit - t.commit_margin,
            "timing: map + finality < length + commit - commit_margin, or the next training ends without its state",
        ),
        (
            t.output + t.roster_lead + t.finality <= t.length + t.commit,
            "timing: the audit beacon must be final before the next round is averaged",
        ),
    ]


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
