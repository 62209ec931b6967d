"""Logging is configured per process, so these tests look at real processes from outside."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import asyncio, logging, warnings
from distributed_training.errors import NetworkFault
from distributed_training.settings.logs import bind, end_logging, keep_in, setup_logging
library = logging.getLogger("somelibrary")
library.addHandler(logging.StreamHandler())
library.propagate = False
setup_logging(debug={debug}, json_lines={json_lines})
log = logging.getLogger("distributed_training.roles.miner")
bind(role="miner")
log.info("round %d begins", 1)
bind(uid=3)
keep_in(__import__("pathlib").Path({file!r}))
def main():
    secret = "a local variable"
    log.debug("detail")
    library.info("chatter")
    library.warning("a library warns about %s", "this")
    warnings.warn("a library is older than it should be")
    log.warning("words of a\\n\\x1b[31mpeer")
    for error in (NetworkFault("a peer has gone"), KeyError("unheard of")):
        try:
            raise error
        except Exception:
            logging.getLogger("asyncio").error("Task exception was never retrieved\\nfuture: <Task>", exc_info=True)
    try:
        raise ZeroDivisionError("in a handler")
    except ZeroDivisionError:
        log.exception("handler failed")
main()
log.error("it ends", extra={{"file_only": True}})
end_logging()
"""
FORM = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ (DEBUG|INFO |WARNING|ERROR) miner(/3)? \S.*")


def run(file: Path, *, debug: bool = False, json_lines: bool = False, stderr: int = subprocess.PIPE) -> str:
    command = [sys.executable, "-c", PROGRAM.format(debug=debug, json_lines=json_lines, file=str(file))]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == ""
    return done.stderr or ""


def parse(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def on_a_terminal(file: Path, **options: bool) -> str:
    ours, theirs = pty.openpty()
    try:
        run(file, stderr=theirs, **options)
        return os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_lines_are_text_that_names_the_node_and_the_file_has_them_from_the_first_on(tmp_path: Path) -> None:
    lines = run(tmp_path / "node.log").splitlines()
    trace = [line for line in lines if not FORM.fullmatch(line)]
    assert [line.split("Z ", 1)[1] for line in lines if line not in trace] == [
        "INFO  miner round 1 begins",
        "WARNING miner/3 words of a ?[31mpeer",
        "ERROR miner/3 asyncio: Task exception was never retrieved future: <Task> (KeyError: 'unheard of')",
        "ERROR miner/3 handler failed",
    ], "no library's chatter, no trace of a peer that has gone"
    assert trace[0] == "Traceback (most recent call last):" and trace[-1] == "ZeroDivisionError: in a handler"
    *kept, last = (tmp_path / "node.log").read_text().splitlines()
    assert kept == lines and last.endswith("Z ERROR miner/3 it ends")


def test_json_lines_are_objects_each(tmp_path: Path) -> None:
    text = run(tmp_path / "node.log", json_lines=True)
    lines = parse(text)
    assert [line["event"].split(":")[0] for line in lines] == [
        "round 1 begins", "words of a ?[31mpeer", "asyncio", "handler failed",
    ]  # fmt: skip
    assert [line.get("uid") for line in lines] == [None, 3, 3, 3] and {line["role"] for line in lines} == {"miner"}
    assert lines[0]["level"] == "info" and lines[0]["logger"] == "distributed_training.roles.miner"
    assert "ZeroDivisionError: in a handler" in lines[3]["exception"]
    assert parse((tmp_path / "node.log").read_text())[:-1] == lines


def test_debug_shows_our_details_and_what_libraries_warn_of(tmp_path: Path) -> None:
    events = [line["event"] for line in parse(run(tmp_path / "node.log", debug=True, json_lines=True))]
    assert "detail" in events and "somelibrary: a library warns about this" in events
    assert not any("chatter" in event for event in events) and any("older than" in event for event in events)
    assert any("a peer has gone" in event for event in events)


def test_a_terminal_has_colour_and_no_local_variables(tmp_path: Path) -> None:
    text = on_a_terminal(tmp_path / "node.log")
    assert "\033[33m" in text and "ZeroDivisionError: in a handler" in text
    assert "a local variable" not in text.replace('secret = "a local variable"', "")
    assert "\033" not in (tmp_path / "node.log").read_text()
    assert len(parse(on_a_terminal(tmp_path / "json.log", json_lines=True))) == 4


ODD = """
import logging
from distributed_training.settings.logs import setup_logging
setup_logging(json_lines=True)
log = logging.getLogger("distributed_training.x")
log.error("cannot go on: %s", EOFError())
log.error("cannot go on: %s", ValueError("why"))
log.warning("file %s", "r\\udce9\\u65e5")
logging.getLogger("x").error("%d of them", "no number")
"""


def test_nothing_is_logged_as_nothing_and_no_encoding_spoils_a_line() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", ODD], capture_output=True, text=True, timeout=60, env=environment)
    *lines, untold = done.stderr.splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        "cannot go on: EOFError", "cannot go on: why", "file r?\u65e5",
    ]  # fmt: skip
    assert untold.startswith("a line of x cannot be told: TypeError")


FILES = """
import logging, os, sys, time
from pathlib import Path
from distributed_training.settings import logs
logs.FILE_BYTES = 2000
logs.setup_logging()
log, path = logging.getLogger("distributed_training.x"), Path(sys.argv[1])
logs.keep_in(path)
def until(seen):
    while not seen():
        time.sleep(0.002)
"""
ROTATES = """
for number in range(400):
    log.info("line %d", number)
logs.end_logging()
"""
MOVED = """
log.info("before")
until(lambda: path.exists() and "before" in path.read_text())
path.rename(path.with_name("moved"))
log.info("after")
until(lambda: path.exists() and "after" in path.read_text())
"""
TROUBLE = """
for _ in range(3):
    log.info("lost")
time.sleep(0.2)
path.parent.unlink()
log.info("kept")
until(lambda: path.exists() and "kept" in path.read_text())
logs.end_logging()
"""
KILLED = """
for number in range(100_000):
    log.info("line %d", number)
    if number == 500:
        until(lambda: path.exists())
        print(flush=True)
"""


def with_file(path: Path, story: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", FILES + story, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    return [line.split(" ", 3)[-1] for line in done.stderr.splitlines()]


def test_a_full_file_makes_room_and_the_oldest_goes(tmp_path: Path) -> None:
    with_file(tmp_path / "node.log", ROTATES)
    names = ["node.log", "node.log.1", "node.log.2", "node.log.3", "node.log.4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    text = "".join((tmp_path / name).read_text() for name in reversed(names))
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 400)) and numbers[0] > 0
    assert all((tmp_path / name).stat().st_size < 2100 for name in names)


def test_a_file_that_was_moved_away_gets_no_more_lines(tmp_path: Path) -> None:
    with_file(tmp_path / "node.log", MOVED)
    assert "after" not in (tmp_path / "moved").read_text() and "before" not in (tmp_path / "node.log").read_text()


def test_a_file_that_cannot_be_written_is_said_once_and_once_when_it_can(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way of the folder")
    said = with_file(tmp_path / "log" / "node.log", TROUBLE)
    told = [line for line in said if "the log file" in line]
    assert len(told) == 2 and told[0].endswith("node.log is not written: File exists"), said
    assert re.search(r"the log file is written again after 0 s, 3 tries failed$", told[1])


def test_kill_9_costs_no_more_than_the_end_of_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILES.replace("2000", "10_000_000") + KILLED, str(tmp_path / "node.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    *lines, rest = (tmp_path / "node.log").read_text().split("\n")
    assert lines and all(re.search(r"line \d+$", line) for line in lines)
    with_file(tmp_path / "node.log", "log.info('again')\nlogs.end_logging()")
    assert (tmp_path / "node.log").read_text().splitlines()[-1].endswith("again") and rest is not None
