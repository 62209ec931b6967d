"""Weights & Biases: one run per node, resumed by its id, signed by the hotkey; recorded by a process of its own."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from distributed_training import __version__
from distributed_training.commands import extra
from distributed_training.errors import ConfigError
from distributed_training.metrics.rows import Rows
from distributed_training.protocol.manifest import RunManifest

Mode = Literal["online", "offline"]
WRITER = Path(__file__).with_name("wandb_writer.py")
NEEDED = f"the package wandb is not installed here; in the checkout: {extra('wandb')}"
PATIENCE_S = 6.0  # with the server, when a node starts
START_S = 20.0  # with the process, more than that
CLOSE_S = 3.0  # a process that takes longer ends by itself, soon after the node
ID_KEY = "node"  # in the config: who says it is, and the signature
# The process gets nothing else of our environment: no token, no password.
PASSED = re.compile(
    r"WANDB_(API_KEY|BASE_URL|ENTITY|IDENTITY_TOKEN_FILE)|HOME|PATH|PYTHON\w*|TMPDIR|LANG|XDG_CONFIG_HOME|NETRC"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|SYSTEMROOT|(?i:https?_proxy|no_proxy|all_proxy)"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """Who sends, and of which run."""

    manifest: RunManifest
    role: str
    uid: int
    hotkey: str  # ss58 address

    @property
    def project(self) -> str:
        """As the run's manifest names it; W&B allows no more than these characters."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"subnet-{self.manifest.netuid}-{self.manifest.name}")[:100]

    @property
    def run_id(self) -> str:
        """The same after each restart, and of no other node."""
        return run_id(self.manifest.netuid, self.manifest.tag.hex(), self.role, self.hotkey)

    def run(self, entity: str | None, folder: Path) -> dict[str, Any]:
        """What wandb.init is given."""
        facts = {"role": self.role, "uid": self.uid, "hotkey": self.hotkey, "version": __version__}
        return {
            "dir": str(folder),
            "entity": entity,
            "project": self.project,
            "id": self.run_id,
            "name": f"{self.role[0].upper()}{self.uid:03d}",
            "group": self.manifest.tag.hex(),
            "job_type": self.role,
            "tags": [f"v{__version__}", self.hotkey],
            "config": {ID_KEY: facts, "run": self.manifest.model_dump(mode="json")},
        }


def run_id(netuid: int | str, tag: str, role: str, hotkey: str) -> str:
    return f"{netuid}-{tag}-{role}-{hotkey[:8]}"


def signed_text(entity: str, project: str, run_id: str, hotkey: str) -> bytes:
    """What the hotkey signs. entity: "" where it was not known: a run recorded offline, for whoever sends it."""
    return json.dumps(["distributed-training: this W&B run is mine", entity, project, run_id, hotkey]).encode()


class WandbSink:
    """Gives rows of the node's events to the process that talks to Weights & Biases."""

    def __init__(
        self,
        node: Node,
        folder: Path,
        sign: Callable[[bytes], bytes],
        mode: Mode,
        entity: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Records in `folder`/wandb. A server that cannot be reached within `patience_s` gets nothing of this start.

        Raises ConfigError for what the operator has to put right.
        """
        if getattr(find_spec("wandb"), "origin", None) is None:  # a folder of that name has none
            raise ConfigError(f"--metrics.wandb: {NEEDED}")
        self._rows, self._place = Rows(node.role, node.uid), folder / "wandb"
        run = {**node.run(entity, folder), "patience_s": patience_s}
        told = self._start({**run, "mode": mode})
        if not told.get("final", True):
            log.warning("Weights & Biases cannot be reached now (%s)", _short(told["error"]))
            told = self._start({**run, "mode": "offline"})
        if "error" in told:
            raise ConfigError(_explained(told["error"]))
        text = signed_text(told["entity"], node.project, node.run_id, node.hotkey)
        self._tell({"config": {ID_KEY: run["config"][ID_KEY] | {"signature": sign(text).hex()}}})
        self._online = bool(told["url"])
        where = told["url"] or f"kept in {self._place}; `wandb sync` there sends it"
        log.info("Weights & Biases: run %s, %s", node.run_id, where)

    def write(self, event: Mapping[str, Any]) -> None:
        if self._process.poll() is not None:
            raise ConnectionError("the process that records for Weights & Biases has ended")
        for row in self._rows.take(event):
            self._tell({"row": row})

    def close(self) -> None:
        if self._process.poll() is None:
            for row in self._rows.rest():
                self._tell({"row": row})
            self._pipe.close()
            try:
                self._process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:  # it goes on for a moment after us
                if self._online:
                    log.warning("Weights & Biases: not all is sent yet; `wandb sync` in %s sends the rest", self._place)

    def _start(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """What the process answers once it has the run."""
        cache = str(self._place / "cache")
        environment = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
        environment |= {"WANDB_CACHE_DIR": cache, "WANDB_DATA_DIR": cache, "WANDB_ERROR_REPORTING": "false"}
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WRITER)],  # -P: the file beside it is no package of its own
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self._place,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the node, which tells it
            )
        except OSError as error:
            return {"error": f"{self._place}: {error.strerror}"}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipe = self._process.stdin
        with self._process.stdout as answer:
            with suppress(BrokenPipeError):  # it answers nothing then
                self._tell(run)
            line = answer.readline() if select.select([answer], [], [], START_S + run["patience_s"])[0] else b""
        if line:
            told = json.loads(line)
        else:
            told = {"error": "its process does not answer", "final": run["mode"] == "offline"}
        if "error" in told:
            self._process.kill()
            self._process.wait()
        return told

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            self._pipe.write(json.dumps(message).encode() + b"\n")
            self._pipe.flush()
        except BrokenPipeError:  # it is ending, which wandb can draw out
            self._process.kill()
            self._process.wait()
            raise


def _short(error: str) -> str:
    return " ".join(error.split())[-300:]


def _explained(error: str) -> str:
    if "No API key" in error:
        return (
            "--metrics.wandb online: there is no API key; put yours in WANDB_API_KEY, or record without one: "
            "--metrics.wandb offline"
        )
    return f"--metrics.wandb: {_short(error)}"
