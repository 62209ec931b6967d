"""Programs that are started with a limit on their time, their output and the files they write, and never outlive it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from auto_update.trouble import Trouble

MAX_OUTPUT = 16 << 20
SHOWN = 240
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: bytes
    said: str  # the last line on stderr that is not empty


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    given: bytes = b"",
    max_file_bytes: int | None = None,
) -> Done:
    """stdout and stderr go through files: they are bounded as every file that it writes is, by `max_file_bytes`.
    What it started ends with it: it has a process group of its own. Raises Trouble for a program that is missing, takes
    too long or says more than MAX_OUTPUT."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given_file:
        given_file.write(given)
        given_file.seek(0)

        ends_with_us = until_our_end(signal.SIGKILL)

        def limit() -> None:
            ends_with_us()
            if max_file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

        try:
            process = subprocess.Popen(
                words, stdin=given_file, stdout=out, stderr=err, cwd=cwd,
                env=None if environment is None else dict(environment), process_group=0, preexec_fn=limit,
            )  # fmt: skip
        except OSError as error:
            raise Trouble(f"{words[0]} cannot be started: {error.strerror}") from None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Trouble(f"{shown(words)} took more than {timeout_s:g} s") from None
        finally:
            end_group(process.pid)
            process.wait()
        return Done(code, _read(out), reason(_read(err)))


def until_our_end(number: int) -> Callable[[], None]:
    """For between fork and exec: a process that gets this signal when we end, however that comes. On Linux only."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def end_group(leader: int) -> None:
    """What is left of a process group of ours. The leader is our child, not yet waited for or just so."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def shown(words: Sequence[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def reason(text: bytes) -> str:
    """Printable: others' words can neither begin a line of their own nor command a terminal."""
    lines = [line.strip() for line in text[-4096:].decode(errors="replace").splitlines()]
    fatal = (line for line in lines if line.startswith("fatal: "))
    first = next(fatal, "").removeprefix("fatal: ")  # git's; advice follows it
    last = next((line for line in reversed(lines) if line), "it gave no reason")
    return "".join(letter if letter.isprintable() else "?" for letter in first or last)[:SHOWN]


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    data = file.read(MAX_OUTPUT + 1)
    if len(data) > MAX_OUTPUT:
        raise Trouble(f"it said more than {MAX_OUTPUT >> 20} MiB")
    return data
