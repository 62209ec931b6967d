"""Weights & Biases with the real client: files and a server's side read back, restarts, signatures, what stays here."""

from __future__ import annotations

import base64
import getpass
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import samples
from sink_rig import CARD, EACH, ROUND, rows
from test_patience import fill, tiny_disk
from test_told_commands import script
from wandb_server import ENTITY, WandbServer, wandb_server

from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.errors import ConfigError
from distributed_training.metrics import events
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.jsonl import JsonlSink
from distributed_training.metrics.wandb import Node, WandbSink, signed_text
from distributed_training.operator.verdicts import Verdict
from distributed_training.operator.wandb_runs import (
    FRAME,
    HEADER_BYTES,
    MAGIC,
    WHOLE,
    NodeRun,
    recorded,
    signature_of,
    uid_of,
)
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config
from distributed_training.sinks import open_sinks

KEY, THIEF = (LocalKey(derive_keypair(0, name)) for name in ("somebody", "thief"))
SECRET = "s3cr3t" * 7  # as long as a key
SECRETS = {"HF_TOKEN": f"hf{SECRET}", "BT_WALLET_PASSWORD": f"pw{SECRET}", "WANDB_API_KEY": f"k{SECRET}"}

__all__ = ["tiny_disk"]  # a fixture


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of this machine is found."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-somebody"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        yield server


def node(role: str = "miner", uid: int = 3, key: LocalKey = KEY) -> Node:
    return Node(samples.RUN, role, uid, key.hotkey)


def opened(folder: Path, who: Node, mode: Any = "offline", **more: Any) -> WandbSink:
    return WandbSink(who, folder, KEY.sign, mode, **more)


def live(folder: Path, sink: WandbSink, who: Node, *rounds: int) -> list[dict[str, Any]]:
    """A few rounds of a node, told to the sink and to an event file, which is returned."""
    metrics = Metrics([sink, JsonlSink(folder / "events.jsonl")], role=who.role, uid=who.uid)
    for number in rounds:
        for record in EACH:
            metrics.emit(record, round=number)
    metrics.close()
    sink._process.wait(60)  # on a busy machine it takes longer than a node waits
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("run-*.wandb"), key=lambda file: file.parent.name)


def rounds_of(*found: Path) -> list[int]:
    return [row["round"] for file in found for row in rows(file) if "round/applied" in row]


def test_what_is_recorded_is_what_the_events_say(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    who = node("validator", 1)
    flags = ["--preset", "local", "--run-dir", str(tmp_path / "run"), "--metrics.wandb", "offline"]
    sinks = open_sinks(load_config(Role.VALIDATOR, flags), who.manifest, Role.VALIDATOR, samples.neuron(1), KEY)
    (sink,) = [sink for sink in sinks if isinstance(sink, WandbSink)]
    told = live(tmp_path, sink, who, 0, 1, 2)
    (file,) = files(tmp_path)
    found = [row for row in rows(file) if "round/applied" in row]
    settled = [event for event in told if event["event"] == "round"]
    losses = [event["heldout_loss"] for event in told if event["event"] == "evaluation"]
    assert [row["round"] for row in found] == [event["round"] for event in settled] == [0, 1, 2]
    assert [row["heldout/loss"] for row in found] == losses
    for row, event in zip(found, settled, strict=True):
        assert row["round/participants"] == len(event["included"]) and row["round/applied"] == 1
        assert row["round/bytes_sent"] == event["bytes_sent"]
        assert row["round/tokens"] == sum(event["tokens"].values())
        assert row["round/state_root"] == event["state_root"]
        assert "round/settle_seconds" not in row, "null is not measured"
    assert [row["audits/pass"] for row in found] == [0, 1, 1] and found[2]["audits/round"] == 1
    board = json.loads((file.parent / "files" / found[2]["leaderboard/path"]).read_text())
    assert dict(zip(board["columns"], board["data"][0], strict=True))["S"] == CARD["S"]
    assert len([row for row in rows(file) if "train/loss" in row]) == 1, "at most one in 15 s"
    run = recorded(file)
    assert run.project == f"subnet-{samples.RUN.netuid}-{samples.RUN.name}" and run.id == who.run_id
    assert run.config["run"]["netuid"] == samples.RUN.netuid and run.config["node"]["uid"] == 1
    assert capfd.readouterr() == ("", ""), "nothing is printed"
    assert script("verify_wandb").main([str(tmp_path)]) == 0
    assert capfd.readouterr().out == f"proven:     {run}: signed by {KEY.hotkey}\n"
    assert_kept_back(tmp_path, file.read_bytes())


A_NODE = """
import json, sys, time
from pathlib import Path
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.metrics.wandb import Node, WandbSink
from distributed_training.protocol.manifest import load_manifest
folder, key = Path(sys.argv[1]), LocalKey(derive_keypair(0, "somebody"))
node = Node(load_manifest(folder / "manifest.json"), "miner", 3, key.hotkey)
sink = WandbSink(node, folder, key.sign, "offline")
sink.write(json.loads(sys.argv[2]))
time.sleep(0.2)
print("up", flush=True)
time.sleep(60)
"""


@dataclass
class Kept:
    events: list[dict[str, Any]]

    def write(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))

    def close(self) -> None: ...


def wire(record: events.Record, number: int) -> dict[str, Any]:
    """As a sink gets it."""
    kept = Kept([])
    Metrics([kept], role="miner", uid=3, threads=False).emit(record, round=number)
    return kept.events[0]


def test_a_killed_node_goes_on_in_the_same_run_and_leaves_no_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    (tmp_path / "manifest.json").write_bytes(samples.RUN.canonical())
    command = [sys.executable, "-c", A_NODE, tmp_path, json.dumps(wire(ROUND, 0))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        others = psutil.Process(process.pid).children(recursive=True)
        assert any("wandb-core" in other.name() for other in others)
        process.send_signal(signal.SIGKILL)
        assert not psutil.wait_procs(others, timeout=5)[1]
    sink = opened(tmp_path, node())
    sink.write(wire(ROUND, 1))
    sink.close()
    sink._process.wait(60)
    first, second = files(tmp_path)
    assert recorded(first).id == recorded(second).id == node().run_id
    assert (rounds_of(first), rounds_of(second)) == ([0], [1])


def test_what_a_server_gets_is_what_was_measured_and_no_more(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "distributed_training.metrics.wandb")
    who = node("owner", 0)
    for number in range(2):
        live(tmp_path, opened(tmp_path, who, "online"), who, number)
    (run,) = server.runs.values()
    where = f"{server.url}/{ENTITY}/{who.project}/runs/{who.run_id}"
    said = [line for line in caplog.messages if "not all is sent" not in line]
    assert said == 2 * [f"Weights & Biases: run {who.run_id}, {where}"]
    got = list(server.rows[who.run_id].values())
    assert [row["_step"] for row in got] == list(range(len(got))), "the second start goes on"
    assert [row["round"] for row in got if "round/applied" in row] == [0, 1]
    board = json.loads(server.files[next(row["leaderboard"]["path"] for row in got if "leaderboard" in row)])
    assert board["columns"][:2] == ["uid", "rounds"] and [line[0] for line in board["data"]] == [3, 4]
    config = {key: value["value"] for key, value in json.loads(run["config"]).items()}
    assert signature_of(NodeRun(ENTITY, who.project, who.run_id, config)).verdict is Verdict.PROVEN
    assert script("verify_wandb").main([f"{ENTITY}/{who.project}"]) == 0
    login = base64.b64encode(f"api:{SECRETS['WANDB_API_KEY']}".encode())
    assert login in server.sent
    assert_kept_back(tmp_path, bytes(server.sent).replace(login, b""), *(file.read_bytes() for file in files(tmp_path)))


def assert_kept_back(folder: Path, *left: bytes) -> None:
    """Nothing that only the machine, the environment or the events know of others is in what has left."""
    machine = (socket.gethostname(), socket.getfqdn(), getpass.getuser(), sys.executable, *sys.argv)
    known = (str(folder), str(Path.cwd()), os.environ["HOME"], *(word for word in machine if len(word) > 4))
    told = ("<script>", "org/name", "5GBb", "aa:10", "round 0: pass", (b"\1" * 32).hex())  # of the events
    for secret in (*known, *told, *SECRETS.values()):
        assert not any(secret.encode() in data for data in left), secret


@pytest.mark.parametrize("key", ["", SECRETS["WANDB_API_KEY"]])
def test_a_key_that_is_missing_or_refused_stops_the_start(
    key: str, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    server.status = 403
    says = "error 403.*not you" if key else "no API key; put yours in WANDB_API_KEY"
    with pytest.raises(ConfigError, match=says) as caught:
        opened(tmp_path, node(), "online")
    assert "\n" not in str(caught.value) and key not in str(caught.value).split()


def test_a_missing_package_is_said_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    told = r"wandb is not installed here; in the checkout: \S+ -m pip install -c constraints\.txt -e '\.\[wandb\]'"
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path, node())


def test_a_server_that_does_not_answer_costs_a_moment_and_the_rows_are_kept(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.hangs, began = True, time.monotonic()
    sink = opened(tmp_path, node(), "online", patience_s=0.3)
    assert time.monotonic() - began < 30
    live(tmp_path, sink, node(), 0)
    assert rounds_of(*files(tmp_path)) == [0]
    assert "cannot be reached now" in caplog.text


def test_a_full_disk_is_no_concern_of_the_node(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = opened(tiny_disk, node("validator"))
    metrics = Metrics([sink], role="validator", uid=1, threads=False)
    begun_by = time.monotonic() + 60
    while not rounds_of(*files(tiny_disk)) and time.monotonic() < begun_by:  # a run under way, of which rows are kept
        metrics.emit(ROUND, round=0)
        time.sleep(0.5)
    fill(tiny_disk / "ballast")
    began = time.monotonic()
    for number in range(100):
        metrics.emit(EACH[8], round=number)
        metrics.emit(ROUND, round=number)
    (tiny_disk / "ballast").unlink()
    metrics.emit(ROUND, round=100)
    assert time.monotonic() - began < 10
    metrics.close()
    sink._process.wait(60)
    # Whether rows go on with room again is up to its own writer, which mostly gives up at the first that finds none.
    assert rounds_of(*files(tiny_disk))[0] == 0, "what was kept before stays readable"
    assert not caplog.messages


@pytest.mark.parametrize("entity", [ENTITY, ""])
def test_a_signature_is_for_one_run_of_one_account(entity: str) -> None:
    who = node()
    said = who.run(None, Path())["config"]["node"]
    signature = KEY.sign(signed_text(entity, who.project, who.run_id, who.hotkey)).hex()
    run = NodeRun(entity, who.project, who.run_id, {"node": said | {"signature": signature}})
    assert signature_of(run).verdict is Verdict.PROVEN
    assert signature_of(replace(run, entity="thief")).verdict is (Verdict.FAILED if entity else Verdict.OPEN)
    forged = [{}, {"node": 3}, {"node": said}, {"node": {"hotkey": 7, "signature": None}}]
    forged += [{"node": run.config["node"] | more} for more in ({"hotkey": THIEF.hotkey}, {"signature": "ab" * 64})]
    changed = [replace(run, config=config) for config in forged]
    changed += [replace(run, project="another"), replace(run, id=node("validator").run_id)]
    changed += [replace(run, config=config, id=node(key=THIEF).run_id) for config in forged]
    assert {signature_of(each).verdict for each in changed} == {Verdict.FAILED}


def test_a_run_is_of_the_uid_that_its_hotkey_has() -> None:
    who, netuid = node(), samples.RUN.netuid
    run = NodeRun("", who.project, who.run_id, who.run(None, Path())["config"])
    at = samples.roster(samples.neuron(3, hotkey=KEY.hotkey))
    assert uid_of(run, at, netuid).verdict is Verdict.PROVEN
    moved, gone = samples.roster(samples.neuron(4, hotkey=KEY.hotkey)), samples.roster(samples.neuron(3))
    found = [str(uid_of(run, roster, number)) for roster, number in ((moved, netuid), (gone, netuid), (at, netuid + 1))]
    assert [line.partition(who.run_id)[2] for line in found] == [
        ": its hotkey has uid 4, not 3",
        f": its hotkey has no uid on subnet {netuid} now",
        f": it is not of subnet {netuid + 1}",
    ]


def test_files_of_strangers_cost_themselves_and_say_nothing_in_our_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb.proto import wandb_internal_pb2

    protocol: Any = wandb_internal_pb2
    for name, project, config in (("a", "p", "no json"), ("b", "p", "[" * 20_000), ("c", "p\nproven: q\x1b[2J", "{}")):
        record = protocol.Record()
        record.run.project, record.run.run_id = project, "1-a-miner-x"
        record.run.config.update.add(key="node", value_json=config)
        strange(tmp_path / f"run-{name}.wandb", record.SerializeToString())
    strange(tmp_path / "run-d.wandb", b"\xff" * 50)
    assert script("verify_wandb").main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["skipped", "skipped", "skipped", "FAILED"]
    assert "p?proven: q?[2J" in lines[-1]


def strange(path: Path, record: bytes) -> None:
    """One whole record in a wandb file."""
    path.write_bytes(MAGIC + bytes(HEADER_BYTES - len(MAGIC)) + FRAME.pack(0, len(record), WHOLE) + record)
