"""Structured logging: coloured lines on a terminal, JSON lines otherwise; role, uid and round are bound once.

Everything goes to stderr, and to a file as well if one is given (always JSON lines there). Libraries that use the
standard `logging` module pass at WARNING and above, in the same form.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from distributed_training.errors import ConfigError, said
from distributed_training.settings.entry import printable

MAX_HEX = 16  # keys and digests are shown by their first 8 bytes


def setup_logging(*, debug: bool = False, json_lines: bool = False, file: Path | None = None) -> None:
    """Configure logging of this process, once and first. Raises ConfigError if `file` cannot be opened."""
    printable(sys.stderr)
    console = logging.StreamHandler(sys.stderr)
    plain = json_lines or not sys.stderr.isatty()
    console.setFormatter(_formatter(_json() if plain else _console()))
    handlers: list[logging.Handler] = [console]
    if file is not None:
        handlers.append(_file_handler(file))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.addFilter(_told)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("distributed_training").setLevel(logging.DEBUG if debug else logging.INFO)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one module: `log = get_logger(__name__)`; `log.info("what happened", peer=..., bytes=...)`."""
    return structlog.stdlib.get_logger(
        name if name.startswith("distributed_training") else f"distributed_training.{name}"
    )


def bind(**values: Any) -> None:
    """Add role, uid, round... to every later line of this task and of the tasks it starts."""
    structlog.contextvars.bind_contextvars(**values)


def _shorten(_: Any, __: str, event: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes as the first hex digits: a log line names a key or digest, it does not transport it."""
    return {key: _short(value) for key, value in event.items()}


def _short(value: Any) -> Any:
    return value[: MAX_HEX // 2].hex() if isinstance(value, bytes) else _in_words(value)


def _in_words(value: Any) -> Any:
    """An exception without a text of its own is told by its type."""
    return said(value) if isinstance(value, BaseException) and not str(value).strip() else value


def _told(record: logging.LogRecord) -> bool:
    """The same for what stands behind a %s."""
    if isinstance(record.args, tuple):
        record.args = tuple(_in_words(value) for value in record.args)
    return True


_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
    _shorten,
]


def _json() -> structlog.processors.JSONRenderer:
    return structlog.processors.JSONRenderer(default=str)


def _console() -> structlog.dev.ConsoleRenderer:
    # plain tracebacks: the pretty ones print local variables, and those may hold keys
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


def _formatter(renderer: Any) -> logging.Formatter:
    # the console renderer draws stacks itself; JSON needs them as text
    text_stack = [] if isinstance(renderer, structlog.dev.ConsoleRenderer) else [structlog.processors.format_exc_info]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *text_stack, renderer],
    )


def _file_handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"cannot write the log file {path}: {error.strerror}") from None
    handler.setFormatter(_formatter(_json()))
    return handler
