"""What starts, watches and ends a node: the notify socket, the example of settings, pm2, systemd, the scripts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_training import supervisor
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.events import Phase, Ready
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config
from distributed_training.supervisor import Supervised, beat_s, notify

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "scripts/systemd/distributed-training@.service"


class Listener:
    """What systemd is to a node."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.settimeout(0.5)

    def heard(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    address = f"@dt-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "n")
    made = Listener(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield made
    made.socket.close()


def ready() -> Ready:
    return Ready("5F", bytes(32), bytes(32), block=9, start_round=3, source="peers", version="0.1.0")


async def test_a_supervisor_hears_when_a_node_is_ready_where_it_is_and_that_it_is_alive(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    node, final = Supervised(), 100
    node.watch(lambda: final, patience_blocks=10)
    metrics = Metrics([node], role="miner", uid=1, threads=False)
    assert beat_s() == 0.05
    touch = asyncio.create_task(node.stay_in_touch())

    async def next_words() -> list[str]:
        return await asyncio.to_thread(listener.heard)

    async def until(words: list[str]) -> None:
        async with asyncio.timeout(5):
            while await next_words() != words:
                pass

    await until([f"EXTEND_TIMEOUT_USEC={int(supervisor.START_S * 1e6)}"])
    metrics.emit(ready())
    await until(["READY=1", "STATUS=round 3 is the first"])
    await until(["WATCHDOG=1"])
    metrics.emit(Phase("average"), round=3)
    await until(["STATUS=round 3: average"])
    final = 111  # blocks go by and the node is still in its round: nothing is said any more
    with pytest.raises(TimeoutError):
        await until(["never"])
    touch.cancel()


def test_nobody_who_listens_and_a_listener_that_is_gone_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (None, "", "no/path", str(tmp_path / "gone"), "/" + "x" * 300, "@gone"):
        if address is None:
            monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        else:
            monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")


def test_a_stop_is_told_at_once(listener: Listener) -> None:
    code = (
        "import asyncio\nfrom distributed_training.shutdown import run_until_stopped\n"
        "async def life():\n    print('on', flush=True)\n    await asyncio.sleep(60)\nrun_until_stopped(life())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        process.terminate()
        listener.socket.settimeout(20)
        assert listener.heard() == ["STOPPING=1"]
        assert process.wait(20) == 0


BORDER = """
import asyncio, sys
from distributed_training.shutdown import Border, run_until_stopped

async def life(border):
    {before}
    print("on", flush=True)
    while not border.asked:
        await asyncio.sleep(0.01)
    print("border", flush=True)

border = Border()
sys.exit(5 if isinstance(run_until_stopped(life(border), border=border), asyncio.CancelledError) else 0)
"""


@pytest.mark.parametrize(
    ("before", "code", "said"), [("border.where = lambda: 'round 3'", 0, "border\n"), ("pass", 5, "")]
)
def test_one_signal_ends_a_node_at_the_border_of_its_round_and_at_once_where_it_is_in_none(
    before: str, code: int, said: str
) -> None:
    program = [sys.executable, "-c", BORDER.format(before=before)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == code
        assert process.stdout.read() == said


# --- settings -------------------------------------------------------------------------------------


def example() -> dict[str, str]:
    """Every variable of the example, those that are commented out too."""
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", "\n".join(lines), re.MULTILINE))


def test_every_variable_of_the_example_is_one_that_a_node_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = example()
    assert {"DT_NETUID", "DT_AXON_PORT", "BT_WALLET_PASSWORD", "HF_TOKEN", "WANDB_API_KEY"} <= set(found)
    for name in [name for name in os.environ if name.startswith("DT_")]:
        monkeypatch.delenv(name)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    config = load_config(Role.MINER, [])
    assert config.netuid == 38 and config.disk.budget_gib == 40 and config.logging.debug
    assert config.subtensor.fallback == (found["DT_SUBTENSOR_FALLBACK"],)


# --- pm2 ------------------------------------------------------------------------------------------


def ecosystem(files: str, **environ: str) -> subprocess.CompletedProcess[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = 'console.log(JSON.stringify(require("./scripts/pm2/ecosystem.config.js").apps))'
    env = {"PATH": os.environ["PATH"], "ENV_FILE": files, **environ}
    return subprocess.run([node, "-e", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)


def test_pm2_starts_a_node_for_each_file_and_gives_up_what_needs_a_person(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("ROLE=miner\n# a comment\nDT_WALLET_HOTKEY='a b=c'\r\n\nDT_NETUID=3")
    two.write_text("ROLE=validator\nDT_WALLET_HOTKEY=v\nDT_AUTO_UPDATE=1\nDT_VENV=/opt/venv\n")
    miner, validator = json.loads(ecosystem(f"{one},{two}").stdout)
    assert (miner["name"], miner["script"]) == ("miner-a b=c", "neurons/miner.py")
    assert miner["env"]["DT_NETUID"] == "3" and miner["interpreter"] == str(ROOT / ".venv/bin/python")
    assert (validator["script"], validator["args"]) == ("scripts/launch.py", ["validator"])
    assert validator["interpreter"] == "/opt/venv/bin/python"
    for app in (miner, validator):
        assert app["stop_exit_codes"] == [2, 3, 5] and app["kill_timeout"] == 20000 and not app["treekill"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cp .env.example"),
        ("ROLE=miner\nnonsense", ":2: expected NAME=VALUE"),
        ("DT_NETUID=1", "ROLE=: expected"),
    ],
)
def test_wrong_settings_are_one_line_for_pm2(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "env"
    if text is not None:
        file.write_text(text)
    done = ecosystem(str(file))
    assert done.returncode != 0 and says in done.stderr


# --- the scripts ----------------------------------------------------------------------------------


def run_miner(*words: str, env: str | None = None, tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    given = []
    if env is not None:
        (tmp_path / "env").write_text(env)
        (tmp_path / "env").chmod(0o644)
        given = ["--env", str(tmp_path / "env")]
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done; echo "$DT_NETUID $DT_RUN_DIR"\n')
    python.chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "scripts/run_miner.sh"), *words[:1], *given, *words[1:]],
        env={"PATH": "/usr/bin:/bin", "DT_VENV": str(tmp_path / "venv"), **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_node_gets_what_the_file_says_and_what_follows_two_dashes(tmp_path: Path) -> None:
    text = 'ROLE=miner\n  DT_NETUID=7 \n# DT_NETUID=8\nDT_RUN_DIR="/a b/$HOME `x`"\r\nHF_TOKEN=t'
    done = run_miner("foreground", "--", "--axon.port", "9 1", env=text, tmp_path=tmp_path)
    assert done.stdout.splitlines() == ["<neurons/miner.py>", "<--axon.port>", "<9 1>", "7 /a b/$HOME `x`"]
    assert "chmod 600" in done.stderr, "a token that everybody can read"
    done = run_miner("foreground", "--env", "-", tmp_path=tmp_path, DT_NETUID="9", DT_AUTO_UPDATE="1")
    assert done.stdout.splitlines() == ["<scripts/launch.py>", "<miner>", "9 "]


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (("begin",), None, "unknown command 'begin'; one of: doctor, start"),
        (("start", "--env", "nothing"), None, "make it: cp .env.example"),
        (("start",), "DT_NETUID", ":1: expected NAME=VALUE, got 'DT_NETUID'"),
        (("start",), "DT NETUID=1", ":1: 'DT NETUID' is no name of a variable"),
        (("start",), "ROLE=validator", "says ROLE=validator; that is bash scripts/run_validator.sh"),
        (("start",), "DT_VENV=/nowhere", "there is no /nowhere/bin/python; make it: bash scripts/setup.sh"),
        (("start", "--axon.port"), "DT_NETUID=1", "options of the node follow --"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, words: tuple[str, ...], env: str | None, says: str) -> None:
    done = run_miner(*words, env=env, tmp_path=tmp_path)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


# --- systemd --------------------------------------------------------------------------------------


def test_the_unit_is_one_that_systemd_takes() -> None:
    text = UNIT.read_text("utf-8")
    for line in ("Type=notify", "RestartPreventExitStatus=2 3 5", "TimeoutStopSec=20", "NoNewPrivileges=yes"):
        assert f"\n{line}\n" in text
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([analyze, "verify", str(UNIT)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
