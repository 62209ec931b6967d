"""Logging is configured per process, so these tests look at real processes from outside."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

PROGRAM = """
import asyncio, logging, structlog
from distributed_training.settings.logs import bind, setup_logging
setup_logging(debug={debug}, json_lines={json_lines})
log = structlog.stdlib.get_logger("distributed_training.roles.miner")
bind(role="miner", uid=3)
async def work(number):
    bind(round=number)
    await asyncio.sleep(0)
    log.info("round begins", peer=bytes(range(32)))
async def main():
    await asyncio.gather(work(1), work(2))
    secret = "a local variable"
    log.debug("detail")
    logging.getLogger("somelibrary").info("chatter")
    logging.getLogger("somelibrary").warning("a library warns about %s", "this")
    try:
        raise ZeroDivisionError("in a handler")
    except ZeroDivisionError:
        log.exception("handler failed")
asyncio.run(main())
"""


def run(*, debug: bool = False, json_lines: bool = False, stderr: int = subprocess.PIPE) -> str:
    command = [sys.executable, "-c", PROGRAM.format(debug=debug, json_lines=json_lines)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == ""
    return done.stderr or ""


def parse(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_carry_what_was_bound_in_their_own_task() -> None:
    lines = parse(run())
    assert [line["event"] for line in lines] == [
        "round begins",
        "round begins",
        "a library warns about this",
        "handler failed",
    ]
    assert [line.get("round") for line in lines] == [1, 2, None, None]
    assert all(line["role"] == "miner" and line["uid"] == 3 for line in lines)
    assert lines[0]["peer"] == "0001020304050607"
    assert lines[0]["level"] == "info" and lines[0]["logger"] == "distributed_training.roles.miner"
    assert "ZeroDivisionError: in a handler" in lines[3]["exception"]


def test_debug_shows_our_details_and_not_the_libraries() -> None:
    events = [line["event"] for line in parse(run(debug=True))]
    assert "detail" in events and "chatter" not in events


def on_a_terminal(**options: bool) -> str:
    ours, theirs = pty.openpty()
    try:
        run(stderr=theirs, **options)
        return os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_gets_readable_lines_without_local_variables() -> None:
    text = on_a_terminal()
    assert "round begins" in text and "uid" in text and "{" not in text
    assert "ZeroDivisionError: in a handler" in text
    assert "a local variable" not in text.replace('secret = "a local variable"', "")


def test_json_can_be_forced_on_a_terminal() -> None:
    assert len(parse(on_a_terminal(json_lines=True))) == 4


ODD = """
import logging, structlog
from distributed_training.settings.logs import setup_logging
setup_logging()
log = logging.getLogger("distributed_training.x")
log.error("cannot go on: %s", EOFError())
log.error("cannot go on: %s", ValueError("why"))
structlog.stdlib.get_logger("distributed_training.y").warning("it failed", error=TimeoutError())
log.warning("file %s", "r\\udce9\\u65e5")
"""


def test_nothing_is_logged_as_nothing_and_no_encoding_spoils_a_line() -> None:
    command = [sys.executable, "-c", ODD]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    lines = parse(done.stderr)
    assert [line["event"] for line in lines[:2]] == ["cannot go on: EOFError", "cannot go on: why"]
    assert lines[2]["error"] == "TimeoutError" and lines[3]["event"] == "file r\udce9\u65e5"
