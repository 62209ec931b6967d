"""What a demo is refused for before anything is installed or written: ports and disk; and how it finds free ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_training.errors import ConfigError, LocalFault
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.run import room
from distributed_training.localnet.run.ports import STEP, check_named, ephemeral_begins, with_ports
from distributed_training.locks import InUse
from distributed_training.network.listeners import is_free, listener

ROOT = Path(__file__).parents[2]


def test_demos_side_by_side_get_free_ports_below_those_of_the_system() -> None:
    options = parse_options([])
    with with_ports(options) as first, with_ports(options) as second:
        assert abs(first.port_base - second.port_base) >= STEP
        for base in (first.port_base, second.port_base):
            assert all(is_free("127.0.0.1", base + place) for place in range(7)) and base + 7 < ephemeral_begins()
        with pytest.raises(InUse, match=rf"port {first.port_base} is in use by process {os.getpid()}"):
            with_ports(parse_options(["--port-base", str(first.port_base)])).__enter__()


def test_ports_that_somebody_has_are_passed_over_and_named_where_they_were_asked_for() -> None:
    with with_ports(parse_options([])) as found:
        base = found.port_base
    with socket.create_server(("127.0.0.1", base + 3)), with_ports(parse_options([])) as found:
        assert found.port_base != base
        told = rf"port {base + 3}, which miner-0 needs, is in use by process {os.getpid()} \(.*; choose .*--port-base N"
        with pytest.raises(ConfigError, match=told) as caught:
            check_named(parse_options(["--port-base", str(base)]))
        assert "\n" not in str(caught.value)


def test_a_port_of_nobody_is_somebody_elses() -> None:
    assert str(listener(1)) == "another process" and listener(1).pid is None


def test_too_little_disk_is_refused_with_what_is_needed_and_nothing_is_written(tmp_path: Path) -> None:
    options = parse_options(["--run-dir", str(tmp_path / "new" / "run")])
    room.check_room(options)
    with pytest.raises(ConfigError, match=r"its disk has \d+ MB left, a run like this needs about \d+ MB; make room"):
        room.check_room(options, num_coords=10**15)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_has_already_written_is_not_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    assert room.used_bytes(tmp_path) >= 1 << 20
    room.check_left(tmp_path)


def test_a_disk_that_is_full_stops_a_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="all that there is is kept; make room, and the same command"):
        room.check_left(tmp_path, least=1 << 62)


def test_a_python_without_any_package_refuses_what_is_wrong() -> None:
    command = [sys.executable, "-S", "-m", "distributed_training.localnet.before"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for flags, code, told in (
            ([], 0, ""),
            (["--help"], 0, ""),
            (["--round", "3"], 2, "did you mean --rounds?"),
            (["--port-base", port], 2, f"port {port}, which owner needs, is in use by"),
            (["--run-dir", __file__], 2, "is a file"),
        ):
            done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (code, "") and told in done.stderr, flags
            assert done.stderr.count("\n") == (code > 0)
