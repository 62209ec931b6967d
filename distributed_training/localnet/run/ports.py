"""The nodes' ports: free ones where none are named; of named ones that are taken, who has them. Standard library only.

Until a node listens, a lock on a file for its port keeps other demos of this user away from it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from distributed_training.errors import ConfigError
from distributed_training.localnet.options import Options
from distributed_training.locks import InUse, Lock
from distributed_training.network.listeners import is_free, listener

FIRST_PORT, STEP = 9100, 20  # where to look for free ones; STEP is more than a demo can have nodes
# What the system gives to outgoing connections: a port that is free now may be one's source a second later.
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL_BEGINS = 32768  # where it does not say; of Linux, the lowest there is
LISTEN_IPS = ("127.0.0.1", "127.0.0.2", "0.0.0.0")


@contextmanager
def with_ports(options: Options) -> Iterator[Options]:
    """The options with ports that are this demo's while it lasts. Raises ConfigError: a named one is taken, or there
    are not so many."""
    with ExitStack() as stack:
        if options.port_base:
            check_named(options)
            for port in _wanted(options):
                _claim(stack, port)
            yield options
            return
        yield replace(options, port_base=_find(stack, options))


def check_named(options: Options) -> None:
    """Raises ConfigError with who has the first of the named ports that is taken."""
    if not options.port_base:
        return
    ports = _wanted(options)
    if max(ports) > 65535:
        most = 65536 - len(ports)
        raise ConfigError(f"argument --port-base: expected at most {most}, as {len(ports)} nodes need a port each")
    check_ports(ports)


def check_ports(ports: Mapping[int, str]) -> None:
    """ports: each with the node that needs it. Raises ConfigError with who has the first that is taken."""
    for port, name in ports.items():
        if not all(is_free(ip, port) for ip in LISTEN_IPS):
            raise ConfigError(
                f"port {port}, which {name} needs, is in use by {listener(port)}; choose others with --port-base N "
                "(or name none, and free ones are found)"
            )


def _wanted(options: Options) -> dict[int, str]:
    """Port -> the node that gets it, in the order of their uids."""
    names = ["owner", *(f"validator-{i}" for i in range(options.validators))]
    names += [f"miner-{i}" for i in range(options.miners)]
    names += ["newcomer"] if options.hub or options.newcomer else []
    return {options.port_base + place: name for place, name in enumerate(names)}


def _claim(stack: ExitStack, port: int) -> None:
    """Raises ConfigError where another demo has it. A machine whose folder for that is not writable goes without."""
    folder = Path(tempfile.gettempdir()) / f"distributed-training-ports-{os.getuid()}"
    try:
        stack.enter_context(
            Lock(folder, "choose others with --port-base N", name=str(port), shown=Path(f"port {port}"))
        )
    except InUse:
        raise
    except ConfigError:
        pass


def _find(stack: ExitStack, options: Options) -> int:
    for base in range(FIRST_PORT, ephemeral_begins() - STEP, STEP):
        ports = _wanted(replace(options, port_base=base))
        if not all(is_free(ip, port) for port in ports for ip in LISTEN_IPS):
            continue
        with ExitStack() as claims:
            try:
                for port in ports:
                    _claim(claims, port)
            except InUse:
                continue
            stack.enter_context(claims.pop_all())
            return base
    raise ConfigError(
        f"no {len(_wanted(options))} free ports side by side from {FIRST_PORT} on; name some: --port-base N"
    )


def ephemeral_begins() -> int:
    try:
        return int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return EPHEMERAL_BEGINS
