"""The event file of a node: it is always there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError


class JsonlSink:
    """Appends one JSON object a line at once, so that others can follow the file and a crash loses nothing of it.

    Half a line that a crash of the machine left is ended first. Raises OSError where the disk takes no more: each line
    is there whole or not at all.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            end = os.lseek(self._file, 0, os.SEEK_END)
            half = end and os.pread(self._file, 1, end - 1) != b"\n"
        except OSError as error:
            raise ConfigError(f"cannot write the event file {path}: {error.strerror}") from None
        with suppress(OSError):  # a full disk is no reason not to start
            os.write(self._file, b"\n" if half else b"")

    def write(self, event: Mapping[str, Any]) -> None:
        line = (json.dumps(event, separators=(",", ":"), allow_nan=False) + "\n").encode()
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, end)
            raise

    def close(self) -> None:
        os.close(self._file)
