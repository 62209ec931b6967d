"""How every program of ours ends: one line on stderr that says what went wrong, an exit code that says whose fault."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from distributed_training.errors import ConfigError, DistributedTrainingError, said
from distributed_training.paths import lend_home
from distributed_training.shutdown import every_stop_as_ctrl_c, stop_signals

EXIT_TROUBLE, EXIT_WRONG, EXIT_STOPPED, EXIT_PIPE = 1, 2, 130, 141
DEBUG_FLAG, DEBUG_VARIABLE = "--logging.debug", "DT_LOGGING_DEBUG"
JSON_FLAG, JSON_VARIABLE = "--logging.json", "DT_LOGGING_JSON"
# What the operator put right by giving another path; other errors of the system are trouble of the machine.
OPERATORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


def run_main(main: Callable[[], int], stopped: int = EXIT_STOPPED) -> int:
    """Call `main` and return the exit code: its own, 2 (ConfigError: its own) for what the operator has to put right,
    1 for trouble of this machine or a mistake of ours, `stopped` for Ctrl-C and other stop signals, 141 when nobody
    reads our output any more."""
    for stream in (sys.stdout, sys.stderr):
        printable(stream)
    lend_home()
    _forget_empty()
    try:
        with every_stop_as_ctrl_c():
            code = main()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _end("", "stopped", stopped)
    except Exception as error:
        if _output_is_gone(error):
            return EXIT_PIPE
        if _asked(DEBUG_FLAG, DEBUG_VARIABLE):
            traceback.print_exc()
        line, code = explained(error)
        return _end("error", line.removeprefix("error: "), code)


@contextmanager
def only_loading(stopped: int = EXIT_STOPPED) -> Iterator[None]:
    """Nothing is begun yet that somebody would have to clear up: a stop signal ends the process at once, without the
    seconds that large libraries take to be put away."""

    def end(number: int, frame: object) -> None:
        os.write(2, b"stopped\n")
        os._exit(stopped)

    former = {number: signal.signal(number, end) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def explained(error: Exception) -> tuple[str, int]:
    """(one line, exit code)"""
    if isinstance(error, ConfigError):
        return f"error: {said(error)}", error.exit_code
    if isinstance(error, DistributedTrainingError):
        return f"error: {said(error)}", EXIT_TROUBLE
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"error: {where}{error.strerror}", EXIT_WRONG if error.errno in OPERATORS else EXIT_TROUBLE
    if isinstance(error, MemoryError):
        return "error: this machine has too little memory for that", EXIT_TROUBLE
    place = traceback.extract_tb(error.__traceback__)[-1:]
    at = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in place)
    what = f"{type(error).__name__}{at}: {said(error)}"
    return f"error: a mistake of ours, not of yours: {what} ({DEBUG_VARIABLE}=1 shows the stack)", EXIT_TROUBLE


def printable(stream: TextIO | None) -> None:
    """From here on the stream writes what its encoding lacks, and bytes of file names, as escapes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def tell(level: str, text: str) -> None:
    """One line on stderr, outside the log: before it begins, and after its end. level: warning, error or empty."""
    line = f"{level}: {text}" if level else text
    if _asked(JSON_FLAG, JSON_VARIABLE):
        line = json.dumps({"level": level or "info", "event": text})
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")


def _end(level: str, text: str, code: int) -> int:
    tell(level, text)
    return code


def _forget_empty() -> None:
    """A variable of the Hub's client that is set to nothing, as compose files do, would be taken at its word."""
    for name in [name for name, value in os.environ.items() if name.startswith("HF_") and not value]:
        del os.environ[name]


def _asked(flag: str, variable: str) -> bool:
    """Is this switch of a node on? Asked where its flags may be what is wrong."""
    return flag in sys.argv or os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def _output_is_gone(error: Exception) -> bool:
    """Nobody reads stdout any more (`| head`). Whatever is wrong with it, the interpreter does not try again."""
    if sys.stdout is None or not isinstance(error, OSError):
        return False
    stdout = sys.stdout.fileno()
    watch = select.poll()
    watch.register(stdout, 0)
    gone = isinstance(error, BrokenPipeError) and any(events & select.POLLERR for _, events in watch.poll(0))
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return gone
