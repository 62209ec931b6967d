"""Who has a TCP port of this machine, for the line that says that it is taken. Standard library only."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from distributed_training.errors import on_one_line

LISTENING = "0A"  # as /proc/net/tcp writes it
MAX_COMMAND = 100  # characters


def is_free(ip: str, port: int) -> bool:
    """May a program of ours listen there? What another program's closed connections still hold does not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Listener:
    pid: int | None  # None: another user's, or a system that does not tell
    text: str

    def __str__(self) -> str:
        return self.text


def listener(port: int, proc: Path = Path("/proc")) -> Listener:
    """`process 17 (python3 -m http.server 8091)`, or as much of it as this system tells this user."""
    for inode, uid in _sockets(port, proc):
        pid = _owner_of(f"socket:[{inode}]", proc)
        if pid is not None:
            return Listener(int(pid), f"process {pid} ({_command(pid, proc)})")
        if uid != os.getuid():
            return Listener(None, f"a process of user {_user(uid)}")
    return Listener(None, "another process")


def _sockets(port: int, proc: Path) -> list[tuple[str, int]]:
    """(inode, uid) of each that listens on the port."""
    found: list[tuple[str, int]] = []
    for name in ("tcp", "tcp6"):
        try:
            rows = [line.split() for line in (proc / "net" / name).read_text().splitlines()[1:]]
        except OSError:
            continue
        found += [(r[9], int(r[7])) for r in rows if r[3] == LISTENING and int(r[1].rpartition(":")[2], 16) == port]
    return found


def _owner_of(target: str, proc: Path) -> str | None:
    for folder in proc.glob("[0-9]*/fd"):
        try:
            if any(str(entry.readlink()) == target for entry in folder.iterdir()):
                return folder.parent.name
        except OSError:  # another user's, or gone
            continue
    return None


def _command(pid: str, proc: Path) -> str:
    try:
        words = (proc / pid / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return "unknown"
    text = on_one_line(shlex.join(words))
    return text if len(text) <= MAX_COMMAND else text[:MAX_COMMAND] + "..."


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
