"""Open files: how many this process may have, and how many of them peers may hold."""

from __future__ import annotations

import resource
from contextlib import suppress

from distributed_training.errors import ConfigError

FILES_WANTED = 8192  # a connection and a few streams, each held twice, for every uid of a full subnet, and room
FILES_TOO_FEW = 256  # with a few peers a node and its daemon have about a hundred open
FILES_OF_OURS = 256  # a quarter of few: journal, pages, chain, sinks; and what we open to others besides

HOW_TO_RAISE = f"ulimit -n {FILES_WANTED} (systemd: LimitNOFILE={FILES_WANTED}; docker: --ulimit nofile={FILES_WANTED})"


def raise_file_limit() -> int:
    """As many open files as this process may have without asking, up to what a node wants; its daemon inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return FILES_WANTED if soft == resource.RLIM_INFINITY else soft
    with suppress(ValueError, OSError):  # macOS has a lower limit than it tells
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def streams_of_peers(limit: int) -> int:
    """How many streams all peers together may hold of so many open files; the rest is ours, our own scatter and
    gather first. Each stream is one file here and one or two in the daemon. Raises ConfigError for too few."""
    if limit < FILES_TOO_FEW:
        raise ConfigError(f"this user may have only {limit} files open; a node needs {FILES_TOO_FEW}: {HOW_TO_RAISE}")
    return (limit - min(FILES_OF_OURS, limit // 4)) // 2
