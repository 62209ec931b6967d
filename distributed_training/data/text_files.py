"""The files below a folder, whatever lies around there: named by bytes, never waited for, and counted."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from distributed_training.data.encodings import NotText
from distributed_training.errors import ConfigError
from distributed_training.paths import shown

_ROWS = (b".jsonl", b".ndjson", b".csv", b".tsv", b".parquet", b".arrow", b".jsonl.gz", b".csv.gz", b".zst")


@dataclass(slots=True)
class Tally:
    """Files and folders that were met, by what became of them."""

    taken: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by why
    damaged: int = 0  # of those taken: some bytes of them were dropped
    rows: int = 0  # files that hold rows with columns rather than text, taken or not

    def lines(self) -> list[str]:
        """For the person whose text it is."""
        total = self.taken + self.left_out.total()
        files = "file" if total == 1 else "files"
        why = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.left_out.items()))
        damaged = f" ({self.damaged:,} without some bytes that are not UTF-8)" if self.damaged else ""
        of = f" of {total:,}" if why else ""
        told = [f"took {self.taken:,}{of} {files}{damaged}{f'; left out: {why}' if why else ''}"]
        if self.rows:
            told.append(
                f"note: rows with columns (JSON lines, CSV, parquet) in {self.rows:,} of them, which are read as plain "
                "text or left out; one column of them: scripts/build_pages.py --dataset json|csv|parquet --data-files "
                "GLOB --column NAME"
            )
        return told


def holds_rows(name: bytes) -> bool:
    """Does a file of this name hold rows with columns rather than text?"""
    return name.lower().endswith(_ROWS)


def named_files(root: Path, tally: Tally, skip: Path | None) -> list[tuple[bytes, bytes]]:
    """(name, path) of the file, or of all files in the folder, that a person named. Raises ConfigError."""
    why = ""
    try:
        mode = root.stat().st_mode
        if stat.S_ISREG(mode):
            return [(os.fsencode(root.name), os.fsencode(root))]
        if stat.S_ISDIR(mode):
            os.scandir(root).close()
            return list(walk(os.fsencode(root), tally, b"", frozenset(), skip))
    except (OSError, ValueError) as error:
        why = f": {getattr(error, 'strerror', None) or error}"
    raise ConfigError(f"{shown(root)} is not a directory of text files, nor a text file{why}")


def walk(
    root: bytes, tally: Tally, ending: bytes, passed_over: frozenset[bytes], skip: Path | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """(name relative to `root`, path) of all files below whose names end so, in no order."""
    skipped = None
    with suppress(OSError):
        skipped = None if skip is None else skip.stat()
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root + b"/" + folder) as found:
                entries = [entry for entry in found if entry.name not in passed_over]
        except OSError:
            tally.left_out["unreadable"] += 1
            continue
        for entry in entries:
            name, kind = folder + entry.name, _kind(entry)
            if kind == "folder":
                if skipped is None or not os.path.samestat(entry.stat(), skipped):
                    folders.append(name + b"/")
            elif kind != "file":
                tally.left_out[kind] += 1
            elif name.endswith(ending):
                yield name, entry.path


def open_file(path: bytes) -> io.BufferedReader:
    """Never waits, whatever took the place of the file since it was listed. Raises OSError, NotText."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(opened, "rb")
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        file.close()
        raise NotText("special")
    return file


def _kind(entry: os.DirEntry[bytes]) -> str:
    """ "folder", "file", or why it is left out."""
    if entry.name.startswith(b"."):
        return "hidden"
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "unreadable"
    if stat.S_ISDIR(mode):
        return "linked folders" if entry.is_symlink() else "folder"
    return "file" if stat.S_ISREG(mode) else "special"
