"""What a node looks at itself when it starts, in some milliseconds: trouble that comes only later is said now."""

from __future__ import annotations

from collections.abc import Iterator

from distributed_training.doctor.base import Finding
from distributed_training.doctor.machine import clock_finding, files_finding, folder_findings
from distributed_training.doctor.wallet import mode_finding
from distributed_training.settings.config import NodeConfig


def at_a_start(config: NodeConfig) -> Iterator[Finding]:
    """What is not in order. Raises nothing: where a node could not go on, what needs it says so."""
    found = [files_finding(), *folder_findings("--run-dir", config.run_dir)]
    if config.local_chain is None:
        found.append(clock_finding())
    if (mode := mode_finding(config.wallet.path / config.wallet.name / "hotkeys" / config.wallet.hotkey)) is not None:
        found.append(mode)
    return (finding for finding in found if finding.state in ("warn", "fail"))
