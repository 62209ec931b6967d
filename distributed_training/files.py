"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import get_ident


def write_whole(path: Path, data: bytes, *, shared: bool = False) -> None:
    """The file has these bytes or what it had before; nothing half-written stays. Raises OSError that names the file.

    `shared`: others may write the same file at this moment. One of them wins.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}.part" if shared else f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # it is the first trouble that is told
            partial.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
