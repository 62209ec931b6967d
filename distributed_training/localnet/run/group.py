"""What can be seen of a process and its helpers from the outside: who lives, and what its connections still hold."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

ESTABLISHED = "01"  # as /proc/net/tcp writes it


def members(leader: int) -> tuple[int, ...]:
    """Pids of the session that `leader` leads and of all its descendants, itself included; zombies are no members."""
    found: set[int] = set()
    for process in psutil.process_iter(["status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        try:
            if os.getsid(process.pid) == leader or os.getpgid(process.pid) == leader:
                found.add(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    try:
        found |= {child.pid for child in psutil.Process(leader).children(recursive=True)}
    except psutil.Error:
        pass
    return tuple(sorted(found))


def alive(pid: int) -> bool:
    """Does this process run? A zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def bytes_in_flight(pids: Sequence[int], proc: Path = Path("/proc")) -> int | None:
    """Bytes of the TCP connections of these processes that left one program and have not reached the other.

    That is, at this moment: sent and not acknowledged, plus received by the kernel and not read, at both ends where
    the other end is on this machine too. None where the system does not show it (anything but Linux).
    """
    try:
        inodes = {inode for pid in pids for inode in _sockets(proc / str(pid) / "fd")}
        rows = [row for pid in pids[:1] for name in ("tcp", "tcp6") for row in _rows(proc / str(pid) / "net" / name)]
    except OSError:
        return None
    return queued(rows, inodes)


Row = tuple[str, str, str, int, int, str]  # local, remote, state, to send, to read, inode


def queued(rows: Collection[Row], inodes: Collection[str]) -> int:
    own = [row for row in rows if row[5] in inodes and row[2] == ESTABLISHED]
    ends = {(row[1], row[0]) for row in own}
    others = [row for row in rows if row[5] not in inodes and row[2] == ESTABLISHED and (row[0], row[1]) in ends]
    return sum(row[3] + row[4] for row in (*own, *others))


def _sockets(folder: Path) -> set[str]:
    found: set[str] = set()
    for entry in folder.iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found.add(target.removeprefix("socket:[").removesuffix("]"))
    return found


def _rows(path: Path) -> list[Row]:
    """Of a table like /proc/net/tcp."""
    if not path.exists():
        return []
    found: list[Row] = []
    for line in path.read_text().splitlines()[1:]:
        fields = line.split()
        send, _, read = fields[4].partition(":")
        found.append((fields[1], fields[2], fields[3], int(send, 16), int(read, 16), fields[9]))
    return found
