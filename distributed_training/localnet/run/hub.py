"""`--hub auto`: a Hugging Face Hub of the run's own, with its pages on it as a data set.

The server is the one the tests use. Everything else is what an operator would do: the same commands, the same flags,
and nothing but HF_ENDPOINT and a token says that this is not huggingface.co.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import REPOSITORY, NodeSpec, RunPaths
from distributed_training.localnet.run.processes import NodeProcesses, tail
from distributed_training.protocol.types import Role

UPLOAD = "upload"
SERVER = "hub"  # name of its process, and of its folder in the run directory
ORGANISATION = "demo"
PAGES, CHECKPOINTS = f"{ORGANISATION}/pages", f"{ORGANISATION}/checkpoints"
TOKEN = "hf_test"  # of the test server
START_TIMEOUT_S, UPLOAD_TIMEOUT_S, STATS_TIMEOUT_S = 30.0, 120.0, 10.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class DemoHub:
    """`pages` and `checkpoints` as the nodes' flags take them; `environment` is what makes them find this Hub."""

    endpoint: str
    environment: dict[str, str]
    pages: str
    checkpoints: str = f"hub:{CHECKPOINTS}"

    def flags(self, spec: NodeSpec) -> list[str]:
        """Of a node. Nobody gives snapshots, so that who comes late has only the Hub to start from."""
        common = ["--pages", self.pages, "--checkpoints", self.checkpoints, "--no-serve-snapshots"]
        honest_miner = spec.role is Role.MINER and spec.adversary is None
        return [*common, "--hub.repo", f"{ORGANISATION}/{spec.name}"] if honest_miner else common

    def stats(self) -> dict[str, Any] | None:
        """The server's counters; None when it does not answer."""
        try:
            with urlopen(f"{self.endpoint}/admin/stats", timeout=STATS_TIMEOUT_S) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None


def start_hub(paths: RunPaths, processes: NodeProcesses, check_stop: Callable[[], None]) -> DemoHub:
    """Start the server and see that the run's pages are on it. Raises ConfigError when it does not start.

    A resumed run finds everything there: the server keeps it in the run directory.
    """
    folder = paths.root / SERVER
    address, log = folder / "endpoint", folder / "log.txt"
    address.unlink(missing_ok=True)
    command = [sys.executable, str(REPOSITORY / "tests" / "hub" / "__main__.py"), "--root", str(folder / "store")]
    processes.start(SERVER, [*command, "--endpoint-file", str(address)], log)
    until = time.monotonic() + START_TIMEOUT_S
    while not address.exists():
        if time.monotonic() > until or SERVER not in processes.running():
            raise ConfigError(f"--hub: the test Hub did not start: {' '.join(tail(log)[-1:]) or 'no word from it'}")
        check_stop()
        time.sleep(POLL_S)
    endpoint = address.read_text().strip()
    environment = _environment(endpoint, folder)
    return DemoHub(endpoint, environment, _upload(paths, folder, environment, processes, check_stop))


def _environment(endpoint: str, folder: Path) -> dict[str, str]:
    quiet = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_UPDATE_CHECK")
    place = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
    return place | dict.fromkeys((*quiet, "HF_HUB_DISABLE_XET"), "1")  # the server speaks LFS only


def _upload(
    paths: RunPaths,
    folder: Path,
    environment: dict[str, str],
    processes: NodeProcesses,
    check_stop: Callable[[], None],
) -> str:
    """hub:ORG/NAME@COMMIT of the run's pages, uploaded once."""
    known, log = folder / "pages.txt", folder / "upload.txt"
    if not known.exists():
        script = str(REPOSITORY / "scripts" / "build_pages.py")
        settings = [f"{name}={value}" for name, value in environment.items()]
        command = ["env", *settings, sys.executable, script, "--out", str(paths.pages), "--upload", PAGES]
        processes.start(UPLOAD, command, log)
        until = time.monotonic() + UPLOAD_TIMEOUT_S
        while UPLOAD in processes.running() and time.monotonic() < until:
            check_stop()
            time.sleep(POLL_S)
        place = next(
            (word for word in log.read_text(errors="replace").split() if word.startswith(f"hub:{PAGES}@")), None
        )
        if processes.exit_codes()[UPLOAD] != 0 or place is None:
            raise ConfigError(f"--hub: the pages were not uploaded: {' '.join(tail(log)[-1:]) or 'not in time'}")
        known.write_text(place)
    return known.read_text()
