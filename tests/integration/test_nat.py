"""libp2p in network namespaces: behind NAT with no port open, a node is reached over the connection that it opened.

Whole rounds: tests/integration/test_outbound.py (in one process), benchmarks/nat.py (in namespaces).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.namespaces import Host, Namespaces, unavailable
from distributed_training.network.daemon_transport import DIAL_S

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).with_name("nat_node.py")
PORT = 9000
DIAL = "import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),1)"


def start(host: Host, *argv: str | Path) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{NODE.parent}"}
    return host.popen([sys.executable, NODE, *argv], text=True, env=environment, **pipes)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def dials(host: Host, address: str) -> bool:
    try:
        host.run([sys.executable, "-c", DIAL, address, str(PORT)], 5)
    except subprocess.CalledProcessError:
        return False
    return True


def test_a_node_behind_nat_is_reached_over_the_connection_that_it_opened(tmp_path: Path) -> None:
    if reason := unavailable(nat=True):
        pytest.skip(reason)
    with Namespaces() as net:
        validator, home = net.host("validator"), net.behind_nat("home")
        outside = start(validator, tmp_path / "outside.key", "outside", validator.address, str(PORT))
        inside = start(home, tmp_path / "inside.key", "inside")
        key, (inside_key, address) = line(outside), line(inside).split()
        assert len(inside_key) == 64 and address == "None"
        other = net.host("other")
        assert dials(other, validator.address)
        assert not dials(other, home.address) and not dials(other, net.gateway_of(home).address)
        say(inside, f"{key} {validator.address} {PORT}")
        assert [line(inside), line(inside)] == ["reached", "reached"]
        began = time.monotonic()
        assert line(outside).startswith("not reached: ")
        assert time.monotonic() - began < 2 * DIAL_S
        say(inside, "again")
        assert line(inside) == "reached"
        abroad = start(other, tmp_path / "abroad.key", "newcomer", "0.0.0.0", str(PORT))
        at_home = start(home, tmp_path / "at_home.key", "newcomer", "0.0.0.0", str(PORT))
        for process in (abroad, at_home):
            assert line(process) == "up"
            say(process, f"{key} {validator.address} {PORT}")
        assert line(abroad) == f"{other.address} {PORT}"
        shut = (
            f"1 of 1 validators that see it at {net.gateway_of(home).address} cannot connect to its port {PORT} there"
        )
        assert shut in line(at_home)
