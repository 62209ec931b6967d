"""Structured logging: coloured lines on a terminal, JSON lines otherwise; role, uid and round are bound once.

Everything goes to stderr. Libraries that use the standard `logging` module pass at WARNING and above, in the same form.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from distributed_training.errors import said
from distributed_training.settings.entry import printable

MAX_HEX = 16  # keys and digests are shown by their first 8 bytes


def setup_logging(*, debug: bool = False, json_lines: bool = False) -> None:
    """Configure logging of this process, once and first."""
    printable(sys.stderr)
    console = logging.StreamHandler(sys.stderr)
    plain = json_lines or not sys.stderr.isatty()
    console.setFormatter(_formatter(_json() if plain else _console()))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    console.addFilter(_told)
    root.addHandler(console)
    root.setLevel(logging.WARNING)
    logging.getLogger("distributed_training").setLevel(logging.DEBUG if debug else logging.INFO)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
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
