"""A process that has imported everything a node needs, and forks nodes: ten of them start in the time of one.

    with Nursery(folder) as nursery:
        node = nursery.born(["PLAN", "miner0"], log, netns="dt-1-0-miner0")  # like subprocess.Popen with pipes

A node runs `allreduce_node.main` in the network namespace of that name, with pipes for stdin and stdout. All die with
the nursery, which dies with who made it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

READY_S = 180.0
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Born:
    """What `subprocess.Popen` is for a child of one's own, as far as it is used here."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + timeout
        while Path(f"/proc/{self.pid}").exists():
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("node", timeout)
            time.sleep(0.01)


class Nursery:
    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        """root: of the checkout."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", "benchmarks.allreduce_nursery", str(theirs.fileno())]
        self._process = subprocess.Popen(argv, cwd=root, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._ours.settimeout(READY_S)

    def __enter__(self) -> Nursery:
        if self._ours.recv(1) != b"!":
            raise RuntimeError("the nursery of nodes did not start")
        return self

    def born(self, argv: list[str], log: IO[str], netns: str = "") -> Born:
        (his_in, our_in), (our_out, his_out) = os.pipe(), os.pipe()
        line = json.dumps({"argv": argv, "netns": netns}).encode()
        socket.send_fds(self._ours, [line], [his_in, his_out, log.fileno()])
        os.close(his_in)
        os.close(his_out)
        pid = int.from_bytes(self._ours.recv(8), "big")
        return Born(pid, os.fdopen(our_in, "w"), os.fdopen(our_out, "r"))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ours.close()
        self._process.kill()
        self._process.wait(5.0)


def _serve(ours: socket.socket) -> None:
    from benchmarks import allreduce_node

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    ours.send(b"!")
    while True:
        line, fds, _, _ = socket.recv_fds(ours, 65536, 3)
        if not line:
            return
        pid = os.fork()
        if pid == 0:
            ours.close()
            _live(json.loads(line), fds, allreduce_node.main)
        for fd in fds:
            os.close(fd)
        ours.send(pid.to_bytes(8, "big"))


def _live(asked: dict[str, object], fds: list[int], main: object) -> None:
    """Of a child: never returns."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
            os.close(fd)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        if asked["netns"]:
            with Path("/var/run/netns", str(asked["netns"])).open() as file:
                if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
        asyncio.run(main(*asked["argv"]))  # type: ignore[operator, misc]
        code = 0
    except BaseException:  # whatever it is, the log has it
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
