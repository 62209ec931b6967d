"""What a node is told by its operator, by subject: the flags --SUBJECT.NAME of `config.NodeConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from distributed_training.settings.kinds import (
    Address,
    Endpoint,
    Endpoints,
    KeyName,
    Listen,
    Mbit,
    Names,
    Port,
    Positive,
    Repo,
    Typed,
)

WALLETS = "~/.bittensor/wallets"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SubtensorSection(_Section):
    network: str = Field(default="finney", min_length=1, description="network by name: finney, test, local")
    chain_endpoint: Endpoint | None = Field(
        default=None,
        description="chain node to use instead, e.g. ws://127.0.0.1:9944, or file:PATH of a local chain's SQLite file",
    )
    fallback: Endpoints = Field(
        default=(),
        description="another chain node of the same network, for when the first breaks; may be given several times",
    )
    archive_endpoint: Endpoint | None = Field(
        default=None,
        description="chain node that keeps old state, for blocks that the others have dropped (after 256 of them)",
    )


class WalletSection(_Section):
    name: KeyName = Field(default="default", description="coldkey name, as btcli shows it")
    hotkey: KeyName = Field(default="default", description="hotkey name; one running node per hotkey")
    path: Typed = Field(default=Path(WALLETS), description="folder of the wallets")


class AxonSection(_Section):
    ip: Address = Field(default="0.0.0.0", description="address to listen on")
    port: Port = Field(default=8091, description="TCP port to listen on; a node needs only this one")
    external_ip: Address | None = Field(default=None, description="address that peers dial; default: ask validators")
    external_port: Port | None = Field(default=None, description="port that peers dial, if not the one listened on")
    outbound_only: bool = Field(
        default=False,
        description="no port can be opened to the outside (home router, NAT): listen nowhere, keep connections to the "
        "validators, reduce nothing; costs up to a fifth of a miner's pay",
    )


class NetworkSection(_Section):
    """What this node may take of a line that it shares with others."""

    up_mbit: Mbit | None = Field(
        default=None,
        description="send at most this many Mbit/s, all streams together; the first lines of the log say what the run "
        "needs (default: no cap)",
    )
    down_mbit: Mbit | None = Field(default=None, description="receive at most this many Mbit/s, likewise")

    @property
    def bytes_per_s(self) -> tuple[float | None, float | None]:
        """Up and down; None: no cap."""
        up, down = (None if mbit is None else mbit * 1e6 / 8 for mbit in (self.up_mbit, self.down_mbit))
        return up, down


class MetricsSection(_Section):
    """Where this node's events go beside its own event file."""

    prometheus: Listen | None = Field(
        default=None,
        description="serve metrics for Prometheus at http://HOST:PORT/metrics: PORT alone is 127.0.0.1, HOST:PORT says "
        "where else; who reaches it can read it",
    )
    wandb: Literal["online", "offline"] | None = Field(
        default=None,
        description="Weights & Biases: online sends what this node does, with the key in WANDB_API_KEY; offline keeps "
        "it for `wandb sync` (docs/wandb.md)",
    )
    wandb_entity: str | None = Field(
        default=None, description="account or team at Weights & Biases that gets it (default: the key's own)"
    )


class LoggingSection(_Section):
    debug: bool = Field(default=False, description="log every step of the protocol")
    json_lines: bool = Field(default=False, alias="json", description="log JSON, an object a line")
    file: Typed | None = Field(
        default=None,
        description="keep the log in this file too, and in four older ones of 10 MiB; default: log/node.log in the "
        "node's folder RUN_DIR/nodes/HOTKEY",
    )


class DataSection(_Section):
    """Only for pages that lie elsewhere."""

    mirrors: Names = Field(
        default=(),
        description="where to look for the data set's files first, comma-separated: folders with the same files, or "
        "https://... bases; pages without a digest come only from folders whose files have the sha256 in pages.bin",
    )
    cache_gib: float = Field(default=4.0, gt=0, description="disk for pages that were fetched, in GiB")


class HubSection(_Section):
    """What this node publishes on the Hugging Face Hub; the token comes from HF_TOKEN or `hf auth login`."""

    repo: Repo | None = Field(
        default=None, description="publish this miner's own state here after each applied round: ORG/NAME"
    )
    look: bool = Field(default=True, description="look at what miners publish of the state, one a round (default: yes)")
    keep: Positive = Field(default=16, description="newest checkpoints kept; those that the chain names always are")


class DiskSection(_Section):
    budget_gib: float | None = Field(
        default=None, gt=0, description="disk for rounds/ and state/ together, in GiB; default: what the run needs"
    )

    @property
    def budget(self) -> int | None:
        """In bytes."""
        return None if self.budget_gib is None else int(self.budget_gib * (1 << 30))
