"""How programs end: one line and an exit code, whatever went wrong, and nothing that an encoding can spoil."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_training.errors import ConfigError, LocalFault, NotRegisteredError, expected, said
from distributed_training.files import write_whole
from distributed_training.settings.entry import explained, run_main

ROOT = Path(__file__).parents[2]


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("no such thing"), 2, "error: no such thing"),
        (NotRegisteredError("run: btcli ..."), 3, "error: run: btcli ..."),
        (ConfigError("two\n  lines"), 2, "error: two lines"),
        (LocalFault("the disk is gone"), 1, "error: the disk is gone"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "error: /x/y: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", b"/x/\xe9"), 2, "error: /x/\udce9: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device"),
        (MemoryError(), 1, "error: this machine has too little memory for that"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)  # fmt: skip
def test_every_end_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(lambda: raising(error)) == code
    assert capfd.readouterr().err == f"{line}\n".encode(errors="backslashreplace").decode()


def test_a_mistake_of_ours_says_so_and_shows_its_stack_when_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_main(lambda: 7) == 7
    assert run_main(lambda: 1 // 0) == 1
    line = capfd.readouterr().err
    assert line.startswith("error: a mistake of ours, not of yours: ZeroDivisionError at test_entry.py:")
    assert line.count("\n") == 1 and "DT_LOGGING_DEBUG=1" in line
    monkeypatch.setenv("DT_LOGGING_DEBUG", "1")
    assert run_main(lambda: 1 // 0) == 1
    assert "Traceback" in capfd.readouterr().err


def test_an_exception_without_text_is_told_by_its_type() -> None:
    assert said(EOFError()) == "EOFError" and said(ValueError("a\n b")) == "a b"
    assert str(LocalFault()) == "LocalFault" and "EOFError" in explained(EOFError())[0]


def test_what_pydantic_found_is_told_in_our_words() -> None:
    assert expected({"type": "int_parsing", "msg": "Input should be a valid integer"}) == "expected a whole number"
    assert expected({"type": "missing", "msg": "Field required"}) == "it is missing"
    limit = {"type": "less_than_equal", "msg": "Input should be less", "ctx": {"le": 3}}
    assert expected(limit) == "expected a number of at most 3"


PROGRAM = """
import os, sys
from distributed_training.settings.entry import run_main
sys.exit(run_main(lambda: {body}))
"""


def program(body: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})  # type: ignore[operator]
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    return subprocess.run(command, stderr=subprocess.PIPE, env=environment, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}])
def test_no_encoding_ends_a_program(settings: dict[str, str]) -> None:
    done = program("print('r\\u00fcn \\u65e5 \\udce9')", stdout=subprocess.PIPE, env=settings)
    assert done.stderr == b"" and done.returncode == 0
    assert b"\\u65e5 \\udce9" in done.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = program("[print('x' * 100) for _ in range(10000)] and 0", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = program("print('x')", stdout=full)
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


def test_a_user_without_a_home_and_empty_variables_of_the_hub(tmp_path: Path) -> None:
    body = "print(os.environ.get('HOME'), 'HF_ENDPOINT' in os.environ)"
    done = program(body, stdout=subprocess.PIPE, env={"HF_ENDPOINT": "", "HOME": str(tmp_path)})
    assert done.stdout.decode().strip() == f"{tmp_path} False"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        write_whole(tmp_path / "file" / "x", b"")
    line, code = explained(caught.value)
    assert code != 0
    assert str(tmp_path) in line and "\n" not in line


NOBODY = """
import os, sys
from distributed_training.settings.entry import run_main
os.environ.pop("HOME", None)
os.setgid(123456), os.setuid(123456)
sys.exit(run_main(lambda: print(os.environ["HOME"])))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that is in no list")
def test_libraries_that_ask_for_a_home_get_one_that_is_not_there() -> None:
    done = subprocess.run([sys.executable, "-c", NOBODY], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("/nonexistent\n", "")


def test_a_node_that_logs_json_says_its_last_words_so_too() -> None:
    program = (
        "import sys; from distributed_training.errors import ConfigError; "
        "from distributed_training.settings.entry import run_main, tell\n"
        "def main():\n    tell('warning', 'a \"word\"')\n    raise ConfigError('--netuid: expected a number')\n"
        "sys.exit(run_main(main))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--logging.json"], capture_output=True, text=True, check=False
    )
    assert [json.loads(line) for line in done.stderr.splitlines()] == [
        {"level": "warning", "event": 'a "word"'}, {"level": "error", "event": "--netuid: expected a number"},
    ]  # fmt: skip
    assert done.returncode == 2
