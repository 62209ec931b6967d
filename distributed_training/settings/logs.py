"""The log of a process: one line a record, on stderr and, of a node, in a file that is rotated.

`2026-11-29 01:18:47Z INFO  miner/3 round 12: ...`, coloured on a terminal alone; or JSON, an object a line. Words of
libraries come in the same form: what they warn of is DEBUG, for it is told by us where it matters.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import Full, Queue
from typing import Any, TextIO

from distributed_training.errors import DistributedTrainingError, named, on_one_line, said
from distributed_training.files import Lines
from distributed_training.ongoing import Ongoing
from distributed_training.settings.entry import printable

OURS = "distributed_training"
FILE_BYTES, FILES = 10 << 20, 5  # of a log file, and how many there are: the newest and older ones
MOST_WAITING = 10_000  # lines that a disk is behind; more are lost
CLOSE_S = 2.0
COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
EXPECTED = (DistributedTrainingError, OSError, EOFError)  # what a task of a library may end with: a peer has gone

log = logging.getLogger(__name__)


def setup_logging(*, debug: bool = False, json_lines: bool = False) -> None:
    """Configure logging of this process, once and after the libraries are loaded, whose own handlers are taken off."""
    printable(sys.stderr)
    for logger in [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]:
        for old in logger.handlers[:]:
            logger.removeHandler(old)
        logger.propagate = True
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger().addHandler(Log(sys.stderr, debug=debug, json_lines=json_lines))
    logging.captureWarnings(True)
    threading.excepthook = lambda died: log.error(
        "a thread ended: %s", died.thread and died.thread.name, exc_info=died.exc_value
    )


def bind(**values: Any) -> None:
    """Add role, uid, hotkey to every later line of this process."""
    for handler in _handlers():
        handler.bound |= values


def keep_in(path: Path) -> None:
    """From now on every line goes into this file too, and those that were said before."""
    for handler in _handlers():
        handler.keep_in(path)


def end_logging() -> None:
    """Write what is on its way to the file."""
    for handler in _handlers():
        handler.end()


def _handlers() -> list[Log]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, Log)]


class Log(logging.Handler):
    """The one handler. Nothing that it does raises, and no disk is waited for but stderr's."""

    def __init__(self, stream: TextIO, *, debug: bool, json_lines: bool) -> None:
        super().__init__()
        self._stream, self._debug, self._json = stream, debug, json_lines
        self._colours = stream.isatty() and not json_lines and not os.environ.get("NO_COLOR")
        self._queue: Queue[str | None] = Queue(MOST_WAITING)
        self._writer: threading.Thread | None = None
        self.bound: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """`file_only` of a record: stderr has it already in other words."""
        try:
            level = self._level(record)
            if level < logging.INFO and not self._debug:
                return
            line = self._as_json(record, level) if self._json else self._as_text(record, level)
            if not getattr(record, "file_only", False):
                colour = COLOURS.get(level) if self._colours else None
                with suppress(OSError, ValueError):  # a full disk, a terminal that is gone
                    self._stream.write(f"\033[{colour}m{line}\033[0m\n" if colour else f"{line}\n")
                    self._stream.flush()
            if record.name != __name__:  # what ails the file is not written there
                with suppress(Full):
                    self._queue.put_nowait(line)
        except Exception as error:  # a message that its values do not fit, of a library
            with suppress(OSError, ValueError):
                self._stream.write(f"a line of {record.name} cannot be told: {named(error)}\n")

    def _level(self, record: logging.LogRecord) -> int:
        if record.name.startswith(OURS):
            return record.levelno
        expected = record.exc_info is not None and isinstance(record.exc_info[1], EXPECTED)
        return logging.DEBUG if record.levelno < logging.ERROR or expected else record.levelno

    def _trace(self, record: logging.LogRecord) -> str:
        """Of a mistake of ours; of a library's only where one looks for it."""
        if record.exc_info is None or record.exc_info[1] is None or not (record.name.startswith(OURS) or self._debug):
            return ""
        return logging.Formatter().formatException(record.exc_info)

    def _message(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):  # an exception without a text of its own is told by its type
            record.args = tuple(_in_words(value) for value in record.args)
        text = on_one_line(" ".join(record.getMessage().split("\n")))
        if record.name.startswith(OURS):
            return text
        error = record.exc_info[1] if record.exc_info else None
        return f"{record.name}: {text}" + (f" ({named(error)})" if error is not None else "")

    def _as_text(self, record: logging.LogRecord, level: int) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        who = "/".join(str(self.bound[key]) for key in ("role", "uid") if key in self.bound) or "-"
        line = f"{at:%Y-%m-%d %H:%M:%S}Z {logging.getLevelName(level):<5} {who} {self._message(record)}"
        trace = self._trace(record)
        return f"{line}\n{trace}" if trace else line

    def _as_json(self, record: logging.LogRecord, level: int) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        document: Mapping[str, Any] = {
            "timestamp": f"{at:%Y-%m-%dT%H:%M:%S.%f}Z",
            "level": logging.getLevelName(level).lower(),
            **self.bound,
            "event": self._message(record),
            "logger": record.name,
        }
        trace = self._trace(record)
        return json.dumps({**document, "exception": trace} if trace else document, default=str)

    # --- the file -----------------------------------------------------------------------------------

    def keep_in(self, path: Path) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_to, args=(path,), name="log file", daemon=True)
            self._writer.start()

    def end(self) -> None:
        """Within CLOSE_S; a disk that hangs is left behind."""
        if self._writer is not None:
            with suppress(Full):
                self._queue.put_nowait(None)
            self._writer.join(CLOSE_S)

    def _write_to(self, path: Path) -> None:
        trouble = Ongoing(log, f"the log file {path} is not written", "the log file is written again")
        file: Lines | None = None
        while (line := self._queue.get()) is not None:
            try:
                if file is not None and (file.size >= FILE_BYTES or not file.is_at(path)):
                    file.close()
                    file = None
                if file is None:  # none yet, the former is full, or somebody moved it away
                    file = _opened(path)
                file.write(line)
            except OSError as error:
                trouble.begin(error.strerror or named(error))
            else:
                trouble.end()
        if file is not None:
            file.close()


def _in_words(value: Any) -> Any:
    return said(value) if isinstance(value, BaseException) and not str(value).strip() else value


def _opened(path: Path) -> Lines:
    if path.exists() and path.stat().st_size >= FILE_BYTES:
        for number in range(FILES - 1, 0, -1):
            newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
            with suppress(FileNotFoundError):
                newer.replace(path.with_name(f"{path.name}.{number}"))
    return Lines(path)
