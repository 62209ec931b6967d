"""The benchmarks of the all-reduce, at a size of seconds; and what they compute from what nodes tell."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import allreduce, allreduce_wire
from benchmarks.namespaces import unavailable
from distributed_training.settings.arguments import Parser


def asked(*flags: str) -> argparse.Namespace:
    parser = Parser(prog="allreduce", description=allreduce.DESCRIPTION)
    allreduce.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.mark.alone
def test_all_nodes_reach_one_state_beside_the_bare_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    result = allreduce.run(asked("--params", "200000", "--peers", "3", "--rounds", "2", "--no-others"))
    (row,) = result["rows"]
    assert row["identical"] and result["failures"] == []
    assert row["bare_s"] > 0 and row["ours_s"] > 0 and 0 < row["codec_cpu_s"] < row["ours_s"]
    assert row["cpu_ns_per_param"] >= 0 and row["peak_mb"] > 50 and row["gloo_fp32_s"] is None
    assert {phase["phase"] for phase in result["phases"]} == {phase for _, _, phase in allreduce.PHASES}
    shown = capsys.readouterr().out
    assert "by the bare exchange and the codec" in shown and "CPU ns a parameter" in shown


@pytest.mark.alone
@pytest.mark.skipif(unavailable() is not None, reason=f"network namespaces: {unavailable()}")
def test_the_exchange_over_shaped_lines_is_beside_the_limit_and_plain_tcp() -> None:
    flags = ("--netns", "--params", "200000", "--peers", "2", "--observers", "1", "--rate", "20mbit", "--rounds", "1")
    result = allreduce.run(asked(*flags))
    (row,) = result["rows"]
    assert row["identical"] and result["failures"] == []
    assert row["wire_ratio"] > 1 and row["tcp_ratio"] > 0.9 and row["bare_ratio"] > 0.9
    assert {line["node"] for line in result["timeline"]} == {"miner0", "miner1", "observer0"}


def test_the_wires_limit_is_that_of_the_most_loaded_peer() -> None:
    # 4 miners, 1 observer: 3/4 of its vector leaves a miner, and 4 times its slice; both of 3/4 enter it
    assert allreduce_wire.wire_limit_s(400, 400, 4, 1, 100.0) == pytest.approx(7.0)
    assert allreduce_wire.wire_limit_s(400, 400, 4, 0, 100.0) == pytest.approx(6.0)
    # a sparse uplink: an observer receives more than a miner sends
    assert allreduce_wire.wire_limit_s(0, 400, 4, 1, 100.0) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("100mbit", 12_500_000), ("1gbit", 125_000_000), ("8kbit", 1000), ("1.5mbit", 187_500)]
)
def test_rates_are_spelled_as_tc_spells_them(text: str, bytes_per_s: int) -> None:
    assert asked("--rate", text).rate == bytes_per_s


@pytest.mark.parametrize("flags", [("--rate", "fast"), ("--rate", "0mbit"), ("--rtt", "50"), ("--loss", "0.01")])
def test_wrong_units_are_refused(flags: tuple[str, str]) -> None:
    with pytest.raises(Exception, match=r"expected"):
        asked(*flags)


def test_missed_goals_are_named() -> None:
    row = {"ours_s": 3.0, "bare_s": 1.0, "codec_cpu_s": 0.1, "hivemind_fp32_s": 6.0, "cpu_ns_per_param": 21.0}
    lines = allreduce.goals(row, 4)
    assert [line.partition(":")[0] for line in lines] == ["MISSED", "MISSED", "MISSED"]
    met = row | {"ours_s": 1.0, "cpu_ns_per_param": 19.0}
    assert [line.partition(":")[0] for line in allreduce.goals(met, 4)] == ["met", "met", "met"]
