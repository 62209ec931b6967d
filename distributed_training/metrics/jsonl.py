"""The event file of a node: it is always there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError
from distributed_training.files import Lines


class JsonlSink:
    """One JSON object a line; see `Lines`."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        try:
            self._file = Lines(path)
        except OSError as error:
            raise ConfigError(f"cannot write the event file {path}: {error.strerror}") from None

    def write(self, event: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(event, separators=(",", ":"), allow_nan=False))

    def close(self) -> None:
        self._file.close()
