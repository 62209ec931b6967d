"""Whether we may listen on a port, asked before the p2p daemon starts.

The daemon itself listens with SO_REUSEPORT: two daemons on one port would both start and share the connections.
"""

from __future__ import annotations

import asyncio
import errno
import socket

from distributed_training.errors import ConfigError
from distributed_training.network.listeners import listener

PORT_WAIT_S = 3.0  # the daemon of a node that was just killed still holds its port for up to 2 s (measured)


async def free_port(host: str, port: int, wait_s: float = PORT_WAIT_S, *, flag: str = "--axon.port") -> int:
    """`port`, or a free one for 0. Raises ConfigError if it stays taken for `wait_s` or the host is not ours."""
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            return _try_bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                mend = f"{flag} from 1024 on" if error.errno == errno.EACCES else "an address of this machine"
                raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; give {mend}") from error
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigError(
                    f"port {port} is in use by {listener(port)}; stop that, or give another one with {flag}"
                ) from error
        await asyncio.sleep(0.2)


def _try_bind(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections in TIME_WAIT
        probe.bind((host, port))
        return probe.getsockname()[1]
