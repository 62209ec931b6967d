"""What this machine gives a node: open files, memory, disk, a clock that is right. Nothing heavy is loaded for it: a
node looks at it too, at every start."""

from __future__ import annotations

import ctypes
import os
import platform
import tempfile
from pathlib import Path

from distributed_training.doctor.base import Finding
from distributed_training.errors import ConfigError, said
from distributed_training.network.descriptors import FILES_TOO_FEW, HOW_TO_RAISE, raise_file_limit
from distributed_training.paths import usable_folder

FILES_FEW = 4096
GIB = 1 << 30
DISK_FEW, DISK_TOO_FEW = 2 * GIB, 64 << 20  # whatever the run needs
STA_UNSYNC, TIMEX_BYTES, TIMEX_STATUS = 0x40, 512, 40  # of <sys/timex.h>: a flag, more than the struct has, an offset


def files_finding() -> Finding:
    limit = raise_file_limit()
    if limit >= FILES_FEW:
        return Finding("open files", "ok", f"up to {limit:,}")
    found = f"this user may have only {limit:,} files open; a node on a full subnet needs {FILES_FEW:,}"
    return Finding("open files", "fail" if limit < FILES_TOO_FEW else "warn", found, HOW_TO_RAISE)


def clock_finding() -> Finding:
    """What the kernel was told by whatever keeps the clock right. Whether it is right, the chain's blocks tell."""
    synchronised = _clock_is_kept()
    if synchronised is None:
        return Finding("clock", "ok", "this system does not tell whether anything keeps it right")
    if synchronised:
        return Finding("clock", "ok", "kept right by this system")
    fix = "sudo timedatectl set-ntp true (or start chrony; in a container or WSL2: on the host)"
    return Finding("clock", "warn", "nothing keeps this machine's clock right", fix)


def folder_findings(flag: str, folder: Path) -> list[Finding]:
    """Can a node write there, and is there any room at all? Nothing stays of what is tried."""
    name = flag.removeprefix("--").replace("-", " ")
    other = f"give a folder that this user may write to with {flag}"
    there = folder
    try:
        usable_folder(folder)
        while not there.is_dir():
            there = there.parent
        room = os.statvfs(there)
        with tempfile.TemporaryFile(dir=there) as probe:  # has no name, so that none can stay behind
            probe.write(bytes(1 << 16))
    except ConfigError as error:
        return [Finding(name, "fail", said(error), other)]
    except OSError as error:
        more = f"make room there, or {other}"
        return [Finding(name, "fail", f"{there} cannot be written: {error.strerror}", more)]
    free = room.f_bavail * room.f_frsize
    state = "ok" if free >= DISK_FEW else "warn" if free >= DISK_TOO_FEW else "fail"
    found = f"{folder}, {free / GIB:,.2f} GiB free"
    if room.f_files and room.f_favail < 1000:
        state, found = "fail", f"the disk of {folder} has room for {room.f_favail} more files only"
    return [Finding(name, state, found, "" if state == "ok" else f"make room there, or {other}")]


def _clock_is_kept() -> bool | None:
    """None: not known. Only asks: no permission is needed."""
    if platform.system() != "Linux":
        return None
    answer = ctypes.create_string_buffer(TIMEX_BYTES)
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(answer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not int.from_bytes(answer.raw[TIMEX_STATUS : TIMEX_STATUS + 4], "little") & STA_UNSYNC
