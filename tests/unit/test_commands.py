"""Commands that a person is told to type: pasted into a shell they mean what they say, and their flags exist."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.chain.keys import local_registration, registration_command, wallet_command
from distributed_training.commands import command, python, quoted

RUN, WALLETS = Path("/home/me/my runs (old)"), Path("/home/me/it's")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=12).filter(lambda b: 0 not in b).map(os.fsdecode), min_size=1))
def test_a_shell_reads_back_every_word(words: list[str]) -> None:
    shell = ["bash", "-c", f"printf '%s\\0' {command(*words)}"]
    done = subprocess.run(shell, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"], "LC_ALL": "C"})
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)


def test_python_is_named_as_a_shell_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert python() in ("python", sys.executable) and shutil.which(python()) == sys.executable
    monkeypatch.setenv("PATH", str(tmp_path))  # no environment is active
    assert python() == sys.executable


def test_a_value_that_begins_with_a_dash_stays_a_value() -> None:
    assert command("x", ("--name", "-a b"), ("--none", None), ("--count", 3)) == "x --name='-a b' --count 3"
    assert quoted(Path("/plain")) == "/plain" and quoted(Path("/x ü")) == "'/x ü'"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (local_registration("local", "extra", RUN), str(RUN)),
        (registration_command("finney", 1, "my cold", "hot"), "my cold"),
        (registration_command("test", 1, "c", "h", wallets=WALLETS), str(WALLETS)),
        (wallet_command("create", WALLETS, "my cold", "hot key"), "hot key"),
    ],
)
def test_commands_about_keys_are_quoted(said: str, wanted: str) -> None:
    assert wanted in shlex.split(said)
