"""The wallet's files: is the hotkey there and whole, who may read it, and does the coldkey lie beside it?"""

from __future__ import annotations

import stat
from pathlib import Path

from distributed_training.commands import quoted
from distributed_training.doctor.base import Finding


def mode_finding(keyfile: Path) -> Finding | None:
    """None where there is no such file, which another check tells."""
    try:
        there = keyfile.stat()
    except OSError:
        return None
    others = stat.S_IMODE(there.st_mode) & 0o077
    if not others:
        return Finding("hotkey mode", "ok", f"{stat.S_IMODE(there.st_mode):03o}")
    what = "change" if others & 0o022 else "read"
    who = "every user of this machine" if others & 0o006 else "its group"
    found = f"{who} may {what} {keyfile} (mode {stat.S_IMODE(there.st_mode):03o}): whoever has it is this node"
    state = "fail" if others & 0o026 else "warn"
    return Finding("hotkey mode", state, found, f"chmod 600 {quoted(keyfile)}")
