"""What Prometheus reads from a node: names, values, the alert rules and dashboard; with the real programs if here."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from samples import RUN
from stub_chain_node import free_port

import distributed_training
from distributed_training.addresses import listen
from distributed_training.errors import ConfigError
from distributed_training.metrics import events
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.prometheus import FAULTS, FIELDS, PrometheusSink

GRAFANA = Path(distributed_training.__file__).parents[1] / "scripts/grafana"
NAME = re.compile(r"\bdt_[a-z_]+")


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@contextmanager
def served(folder: Path, role: str = "miner", port: int | None = None) -> Iterator[tuple[PrometheusSink, Metrics]]:
    address = f"127.0.0.1:{free_port() if port is None else port}"
    sink = PrometheusSink(address, RUN, role=role, uid=3, hotkey="5GBb", folder=folder)
    metrics = Metrics([sink], role=role, uid=3, threads=False)
    try:
        yield sink, metrics
    finally:
        metrics.close()


@dataclass(frozen=True)
class Scraping:
    """A node's port, and the address of the Prometheus that looks for it from the first test on: it takes 5 s."""

    port: int
    web: str


@pytest.fixture(scope="module", autouse=True)
def scraping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraping]:
    folder, port, web = tmp_path_factory.mktemp("prometheus"), free_port(), free_port()
    config = (GRAFANA / "prometheus.yml").read_text()
    config = config.replace("9101", str(port)).replace("15s", "200ms").replace("alerts.yml", f"{GRAFANA}/alerts.yml")
    (folder / "prometheus.yml").write_text(config)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{web}"]
    with ExitStack() as stack:
        if shutil.which(command[0]):
            quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            stack.callback(stack.enter_context(subprocess.Popen(command, **quiet)).kill)
        _, metrics = stack.enter_context(served(folder, "validator", port))
        metrics.emit(settled(), round=2)
        metrics.emit(events.Chain(block=700, finalized=699))
        yield Scraping(port, f"http://127.0.0.1:{web}")


def settled(**more: Any) -> events.Round:
    fields: dict[str, Any] = dict.fromkeys(events.Round.__dataclass_fields__) | {
        "applied": True, "included": (3, 4), "counted": (0, 1, 2), "backed_up": (1,), "num_slices": 4,
        "credit": {3: 0.75}, "tokens": {3: 10, 4: 20}, "bytes_sent": 70, "bytes_received": 5,
        "sent_to": {"miner": 60, "stranger": 10}, "received_from": {"owner": 5},
        "seconds": {"train": 3.5, "average": None, "settle": 1.0},
    }  # fmt: skip
    return events.Round(**(fields | more))


def test_the_numbers_of_the_events_are_there(tmp_path: Path) -> None:
    with served(tmp_path) as (sink, metrics):

        def value(name: str, **labels: str) -> float:
            found = sink.registry.get_sample_value(name, labels)
            assert found is not None, name
            return found

        assert math.isnan(value("dt_train_loss")) and math.isnan(value("dt_phase", phase="map")), "not measured"
        metrics.emit(events.Ready("5GBb", b"", b"", block=90, start_round=2, source="round 2", version="1"))
        assert value("dt_round_settled_end_block") == RUN.round(2).start_block
        metrics.emit(events.Phase(phase="average"), round=2)
        assert (value("dt_round"), value("dt_phase", phase="average"), value("dt_phase", phase="train")) == (2, 1, 0)
        for _ in range(2):
            metrics.emit(events.Train(5, 100, 3.0, 2.0, seconds=4.0, stall_s=None), round=2)
        assert (value("dt_train_tokens_total"), value("dt_train_stall_seconds_total")) == (200, 0)
        metrics.emit(settled(), round=2)
        slices = [value("dt_slices_total", outcome=outcome) for outcome in ("counted", "backed_up", "lost")]
        assert slices == [2, 1, 1] and value("dt_round_settled_end_block") == RUN.round(2).end_block
        assert value("dt_peer_sent_bytes_total", peer="miner") == 60
        assert value("dt_peer_received_bytes_total", peer="owner") == 5
        assert (value("dt_round_miners"), value("dt_round_tokens"), value("dt_round_credit_ratio")) == (2, 30, 0.75)
        assert math.isnan(value("dt_round_phase_seconds", phase="average"))
        for included, applied, without in (((4,), True, 1), ((), False, 1), ((), True, 2), ((3,), True, 0)):
            metrics.emit(settled(included=included, applied=applied), round=3)
            assert value("dt_rounds_since_included") == without
        for what in ("disk", "what a peer said"):
            metrics.emit(events.Fault(what=what, detail="x"))
        assert (value("dt_faults_total", what="disk"), value("dt_faults_total", what="other")) == (1, 1)
        metrics.emit(events.Chain(block=130, finalized=128))
        seen = value("dt_chain_seen_timestamp_seconds")
        metrics.emit(events.Chain(block=130, finalized=129))
        assert value("dt_chain_seen_timestamp_seconds") == seen and abs(seen - time.time()) < 30
        assert value("dt_chain_finalized_block") == 129 and math.isnan(value("dt_weights_block"))


def test_a_validators_gauges_are_of_the_uids_of_its_newest_cards(tmp_path: Path) -> None:
    card = {"S": 0.1, "G": 0.6, "B": 1.0, "I": 1.0, "weight": 0.5, "reason": "<b>", "note": "round 0: pass"}
    with served(tmp_path, "validator") as (sink, metrics):
        metrics.emit(events.Scores(cards={3: card, 4: card}))
        metrics.emit(events.Scores(cards={4: card}))
        metrics.emit(events.Weights(block=78, weights={4: 1.0}))
        value = sink.registry.get_sample_value
        assert value("dt_uid_score_ratio", {"uid": "4", "term": "weight"}) == 0.5
        assert value("dt_uid_score_ratio", {"uid": "3", "term": "weight"}) is None
        assert (value("dt_weights_block"), value("dt_uid_weight_ratio", {"uid": "4"})) == (78, 1.0)
        metrics.emit(events.Verdict(90, "the run", ("round 1 was discarded",), head_age_s=None, spec_version=461))
        assert value("dt_run_verdict", {"word": "the run"}) == 1
        (node,) = (s.labels for m in sink.registry.collect() for s in m.samples if s.name == "dt_node_info")
        assert node.pop("version") and node == {
            "run": RUN.sha256[:16], "netuid": str(RUN.netuid), "role": "validator", "uid": "3", "hotkey": "5GBb",
            "spec_version": "461",
        }  # fmt: skip


def test_where_it_listens_is_said_in_a_few_ways_and_mistakes_in_a_line(tmp_path: Path) -> None:
    assert [listen(text) for text in ("9101", ":9101", "localhost:9101")] == ["127.0.0.1:9101"] * 3
    assert listen("0.0.0.0:80") == "0.0.0.0:80"
    for wrong in ("", "host", "9101:", "0", "70000", "[::1]:9101", "my.host:9101", "9101x", "127.0.0.1"):
        with pytest.raises(ConfigError, match="expected"):
            listen(wrong)
    with served(tmp_path, port=(port := free_port())):
        with pytest.raises(
            ConfigError, match=rf"^--metrics.prometheus 127.0.0.1:{port}: cannot listen there \(Add.*\)"
        ):
            with served(tmp_path, port=port):
                pass
    with pytest.raises(ConfigError, match="give a free port of an address that this machine has"):
        PrometheusSink(f"192.0.2.1:{port}", RUN, role="miner", uid=3, hotkey="5", folder=tmp_path)
    with served(tmp_path, port=port):
        pass  # a port that was closed is free


def shown() -> dict[str, list[str]]:
    """Expressions of the dashboard and of the rules."""
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    plotted = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(plotted) > 30
    return {"dashboard": plotted, "rules": [(GRAFANA / "alerts.yml").read_text()]}


def test_every_metric_that_is_plotted_or_alerted_on_exists_and_every_rule_is_tested(tmp_path: Path) -> None:
    with served(tmp_path) as (sink, _):
        exported = {name for name in sink.registry._names_to_collectors if name.startswith("dt_")}
    used = {where: {name for text in texts for name in NAME.findall(text)} for where, texts in shown().items()}
    for where, names in used.items():
        assert names <= exported, where
    tested = {a["alertname"] for a in _lines("alerts.test.yml", r"alertname: (?P<alertname>\w+)")}
    assert tested == {a["alert"] for a in _lines("alerts.yml", r"- alert: (?P<alert>\w+)")}


def _lines(name: str, pattern: str) -> list[dict[str, str]]:
    return [m.groupdict() for m in re.finditer(pattern, (GRAFANA / name).read_text())]


def test_fields_and_kinds_of_trouble_are_those_of_the_events() -> None:
    records = {record.__name__.lower(): record for record in events.Record.__args__}
    for name, field in FIELDS:
        assert field in records[name].__dataclass_fields__, (name, field)
    package = Path(distributed_training.__file__).parent
    said = re.compile(r"""Fault\(what="(\w+)"|(?:tell|attempt)\([\w.]+, [\w.(), ]+, "(\w+)",""")
    found = {a or b for path in package.rglob("*.py") for a, b in said.findall(path.read_text("utf-8"))}
    assert len(found) > 12 and found <= set(FAULTS)


@needs("promtool")
def test_promtool_finds_nothing_wrong_and_each_alert_fires_when_it_should(scraping: Scraping) -> None:
    page = _get(f"http://127.0.0.1:{scraping.port}/metrics")
    assert "dt_chain_head_block 700.0" in page
    for arguments, given in (
        (["check", "rules", "alerts.yml"], ""),
        (["check", "config", "prometheus.yml"], ""),
        (["test", "rules", "alerts.test.yml"], ""),
        (["check", "metrics"], page),
    ):
        done = subprocess.run(
            ["promtool", *arguments], cwd=GRAFANA, input=given, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 and not ("metrics" in arguments and done.stderr), done.stdout + done.stderr


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@needs("prometheus")
def test_prometheus_scrapes_a_node_and_understands_rules_and_dashboard(scraping: Scraping) -> None:
    def ask(expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression.replace("$node", ".*")})
        return json.loads(_get(f"{scraping.web}/api/v1/query?{query}"))["data"]["result"]

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError):
            if ask("dt_chain_head_block"):
                break
        time.sleep(0.1)
    (found,) = ask('dt_node_info{job="distributed-training"}')
    assert found["metric"]["role"] == "validator" and found["metric"]["instance"] == f"127.0.0.1:{scraping.port}"
    assert ask("dt_chain_head_block")[0]["value"][1] == "700"
    for expression in shown()["dashboard"]:
        ask(expression)  # raises for one that Prometheus refuses
    rules = json.loads(_get(f"{scraping.web}/api/v1/rules"))["data"]["groups"][0]["rules"]
    assert len(rules) == 12
