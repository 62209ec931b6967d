"""training_state.json: what a checkpoint is the state of, and the sha256 and size of each of its other files.

One spelling only, so that a file from a stranger is either byte for byte what we would write, or refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_training.errors import WireError
from distributed_training.protocol.wire import decode_carry

STATE_FILE = "training_state.json"
SCHEMA = 1
MAX_STATE_BYTES = 8 << 20  # the longest carry, as hex, has 6.4 MB of it
MAX_FILES = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,80}(\.[A-Za-z0-9_-]{1,20}){0,3}\.(json|safetensors|md)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGEST = 1 << 40


@dataclass(frozen=True, slots=True)
class FileFacts:
    sha256: str  # hex
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """`files`: all of the checkpoint but training_state.json itself."""

    manifest_sha256: str  # hex
    round: int  # the state at the start of this round
    applied: int
    carry: bytes  # canonical bytes
    state_root: str  # hex
    shard_bytes: int  # as in training.shards
    files: Mapping[str, FileFacts]

    def same_state(self, other: Description) -> bool:
        """Of the same run, round and root, whatever the files beside the numbers say."""
        mine, theirs = ((d.manifest_sha256, d.round, d.state_root) for d in (self, other))
        return mine == theirs

    def encode(self) -> bytes:
        document = {
            "schema": SCHEMA,
            "manifest_sha256": self.manifest_sha256,
            "round": self.round,
            "applied": self.applied,
            "carry": self.carry.hex(),
            "state_root": self.state_root,
            "shard_bytes": self.shard_bytes,
            "files": {name: {"sha256": f.sha256, "bytes": f.num_bytes} for name, f in self.files.items()},
        }
        return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def run_name(name: str, manifest_sha256: str) -> str:
    """What the tags of a run begin with: its name and the start of its manifest's sha256, no dot."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:40]}-{manifest_sha256[:8]}"


def tag_name(run: str, round_index: int) -> str:
    return f"{run}.{round_index}"


def parse_description(data: bytes) -> Description:
    """Raises WireError for anything that `encode` did not write, or that no checkpoint could be."""
    if len(data) > MAX_STATE_BYTES:
        raise WireError(f"{STATE_FILE}: more than {MAX_STATE_BYTES} bytes")
    try:
        document = json.loads(data)
        schema = document["schema"]
        found = _read(document)
        canonical = found.encode()
        decode_carry(found.carry)
    except WireError as error:
        raise WireError(f"{STATE_FILE}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"{STATE_FILE}: {type(error).__name__}: {str(error)[:100]}") from None
    if type(schema) is not int or schema != SCHEMA:
        raise WireError(f"{STATE_FILE}: schema {str(schema)[:20]}, expected {SCHEMA}")
    if data != canonical:
        raise WireError(f"{STATE_FILE}: another spelling or other fields than we would write")
    return found


def _read(document: Any) -> Description:
    files = {name: _facts(name, facts) for name, facts in document["files"].items()}
    if len(files) > MAX_FILES:
        raise WireError(f"{len(files)} files, at most {MAX_FILES} expected")
    return Description(
        manifest_sha256=_digest(document["manifest_sha256"]),
        round=_count(document["round"], (1 << 32) - 1),
        applied=_count(document["applied"], (1 << 64) - 1),
        carry=bytes.fromhex(document["carry"]),
        state_root=_digest(document["state_root"]),
        shard_bytes=_count(document["shard_bytes"], _LARGEST),
        files=files,
    )


def _facts(name: str, facts: Any) -> FileFacts:
    if not _NAME.fullmatch(name) or name == STATE_FILE:
        raise WireError(f"{name[:80]!r} cannot be a file of a checkpoint: expected NAME.json, .safetensors or .md")
    return FileFacts(_digest(facts["sha256"]), _count(facts["bytes"], _LARGEST))


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise WireError(f"{str(value)[:80]!r} is no sha256 in hex")
    return value


def _count(value: Any, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise WireError(f"{str(value)[:30]} is no number from 0 to {largest}")
    return value
