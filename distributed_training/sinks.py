"""Where a node's events go: the one place that names the sinks."""

from __future__ import annotations

from distributed_training.chain.base import Signer
from distributed_training.dashboard.copy import owner_page
from distributed_training.journal import JOURNAL, ToldSink
from distributed_training.metrics.base import Sink
from distributed_training.metrics.jsonl import JsonlSink
from distributed_training.metrics.prometheus import PrometheusSink
from distributed_training.metrics.wandb import Node, WandbSink
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role
from distributed_training.settings.config import NodeConfig


def open_sinks(config: NodeConfig, manifest: RunManifest, role: Role, me: Neuron, signer: Signer) -> list[Sink]:
    """Event file and journal always, and what was asked for. Raises ConfigError for a sink that cannot start."""
    events = config.node_dir / "events.jsonl"
    sinks: list[Sink] = [JsonlSink(events), ToldSink(config.node_dir / JOURNAL)]
    if config.metrics.prometheus is not None:
        who = {"role": role.name.lower(), "uid": me.uid, "hotkey": me.hotkey, "folder": config.node_dir}
        sinks.append(PrometheusSink(config.metrics.prometheus, manifest, **who))
    if config.page_dir is not None and role is Role.OWNER:
        sinks.append(owner_page(config.page_dir, events, manifest, config.subtensor, config.local_chain))
    if config.metrics.wandb is not None:
        node = Node(manifest, role.name.lower(), me.uid, signer.hotkey)
        sinks.append(WandbSink(node, config.node_dir, signer.sign, config.metrics.wandb, config.metrics.wandb_entity))
    return sinks
