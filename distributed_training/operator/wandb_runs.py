"""Weights & Biases runs of nodes, as they were recorded or published, and whether a hotkey stands behind each."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.chain.keys import hotkey_public_key, verify
from distributed_training.errors import ConfigError, LocalFault, WireError, named, said
from distributed_training.metrics.wandb import ID_KEY, NEEDED, run_id, signed_text
from distributed_training.operator.verdicts import Finding, Verdict
from distributed_training.protocol.types import Roster

MAGIC, BLOCK, FRAME = b":W&B", 32768, struct.Struct("<IHB")  # LevelDB's log: checksum, length, kind of a piece
HEADER_BYTES, WHOLE, LAST = 7, 1, 4
MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class NodeRun:
    entity: str  # "": of nobody yet
    project: str
    id: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return "/".join(filter(None, (self.entity, self.project, self.id)))


def records(path: Path) -> Iterator[Any]:
    """The wandb records of a run-ID.wandb file; what a kill left half-written at its end is left out.

    Raises ConfigError, WireError for a file that is none.
    """
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto import wandb_internal_pb2
    except ImportError:
        raise ConfigError(NEEDED) from None
    protocol: Any = wandb_internal_pb2  # it makes its classes when it is loaded
    if path.stat().st_size > MAX_BYTES:
        raise WireError(f"{path}: it has more than {MAX_BYTES >> 30} GiB")
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise WireError(f"{path}: no wandb file")
    at, parts = HEADER_BYTES, b""
    while at + FRAME.size <= len(data):
        if BLOCK - at % BLOCK < FRAME.size:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = FRAME.unpack_from(data, at)
        at += FRAME.size
        if kind == 0 or at + length > len(data):
            return
        parts += data[at : at + length]
        at += length
        if kind in (WHOLE, LAST):
            try:
                record = protocol.Record.FromString(parts)
            except DecodeError:
                raise WireError(f"{path}: a record that cannot be read") from None
            yield record
            parts = b""


def recorded(path: Path) -> NodeRun:
    """Of one run-ID.wandb file. Raises as `records`."""
    config, head = dict[str, Any](), None
    for record in records(path):
        if record.HasField("run"):
            head = record.run
        for item in (*record.run.config.update, *record.config.update):
            try:
                config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            except (ValueError, RecursionError):
                raise WireError(f"{path}: its configuration is no JSON") from None
    if head is None:
        raise WireError(f"{path}: no run in it")
    return NodeRun(head.entity, head.project, head.run_id, config)


def published(path: str) -> list[NodeRun]:
    """Of the nodes whose runs are in ENTITY/PROJECT, oldest first. Raises ConfigError, LocalFault."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # what it tells its maker of each call
    try:
        import wandb
        from wandb.errors import AuthenticationError, Error, UsageError
    except ImportError:
        raise ConfigError(NEEDED) from None
    try:
        found = [
            NodeRun(run.entity, run.project, run.id, dict(run.config))
            for run in wandb.Api(timeout=20).runs(path, lazy=False)
        ]
    except (UsageError, AuthenticationError, ValueError) as error:
        raise ConfigError(f"{path}: {said(error)}") from None
    except (Error, OSError, TypeError, KeyError) as error:  # the last two: of an answer that is none
        raise LocalFault(f"{path}: {named(error)}") from None
    return [run for run in found if ID_KEY in run.config]


def signature_of(run: NodeRun) -> Finding:
    """Does the hotkey that the run names stand behind it?"""
    node = run.config.get(ID_KEY)
    said = {key: str(value) for key, value in node.items()} if isinstance(node, dict) else {}
    hotkey = said.get("hotkey", "")
    try:
        key, signature = hotkey_public_key(hotkey), bytes.fromhex(said.get("signature", ""))
    except (ConfigError, ValueError):
        return Finding(Verdict.FAILED, f"{run}: it is not signed")
    netuid, tag, *_ = [*run.id.split("-"), "", ""]
    if run.id != run_id(netuid, tag, said.get("role", ""), hotkey):
        return Finding(Verdict.FAILED, f"{run}: its id is not that of {hotkey}")
    if verify(key, signed_text(run.entity, run.project, run.id, hotkey), signature):
        return Finding(Verdict.PROVEN, f"{run}: signed by {hotkey}")
    if verify(key, signed_text("", run.project, run.id, hotkey), signature):
        text = "for whoever sends it: it may be a copy in another account than its owner's"
        return Finding(Verdict.OPEN, f"{run}: signed by {hotkey}, {text}")
    return Finding(Verdict.FAILED, f"{run}: the signature is not that of {hotkey} for this run")


def uid_of(run: NodeRun, roster: Roster, netuid: int) -> Finding:
    """Does the hotkey have the uid that the run says it has? Of a run whose signature is no failure."""
    said = run.config[ID_KEY]
    neuron = roster.by_hotkey(said["hotkey"])
    if not run.id.startswith(f"{netuid}-"):
        return Finding(Verdict.FAILED, f"{run}: it is not of subnet {netuid}")
    if neuron is None:
        return Finding(Verdict.FAILED, f"{run}: its hotkey has no uid on subnet {netuid} now")
    if neuron.uid != said.get("uid"):
        return Finding(Verdict.FAILED, f"{run}: its hotkey has uid {neuron.uid}, not {said.get('uid')}")
    return Finding(Verdict.PROVEN, f"{run}: uid {neuron.uid} of subnet {netuid} is that hotkey's")
