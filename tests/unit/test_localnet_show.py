"""What a run's picture and last lines say: names off the data, equal lines as one, what the numbers bear out."""

from __future__ import annotations

import copy
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from localnet_recording import RECORDING, recorded_summary

from distributed_training.localnet.layout import RunPaths
from distributed_training.localnet.names import called, nodes_of
from distributed_training.localnet.run.page import Page, address
from distributed_training.localnet.run.stop import StopRequest
from distributed_training.localnet.show.curves import LABEL_GAP, Line, end_labels, equal, events, few, spikes, spread
from distributed_training.localnet.show.report import write_report
from distributed_training.localnet.show.story import story_lines

Summary = dict[str, Any]


@pytest.fixture
def summary() -> Summary:
    return copy.deepcopy(recorded_summary())


@given(st.lists(st.floats(0, 1), max_size=15))
def test_labels_stand_in_order_and_never_on_one_another(wanted: list[float]) -> None:
    places = spread(sorted(wanted))
    assert len(places) == len(wanted) and all(place <= 1 + 1e-9 for place in places)
    assert all(b - a >= LABEL_GAP - 1e-9 for a, b in pairwise(places))


def test_a_label_that_has_room_stands_at_its_line() -> None:
    assert spread([0.1, 0.5, 0.9]) == [0.1, 0.5, 0.9]


def test_a_loss_that_stands_out_is_found_and_neither_end_is_one() -> None:
    assert spikes(Line("", {0: 5.4, 1: 4.0, 2: 3.0, 3: 3.9, 4: 3.0}, "grey")) == [3]
    assert spikes(Line("", {0: 5.4, 1: 4.0, 2: 4.05, 3: 3.0}, "grey")) == []
    assert spikes(Line("", {}, "grey")) == []


def test_equal_lines_are_one_group_and_many_labels_are_a_few() -> None:
    values = {"3": {1: 0.0, 2: 25.0}, "4": {1: 0.0, 2: 25.001}, "5": {1: 25.0, 2: 25.0}}
    assert equal(values) == [["3", "4"], ["5"]]
    labels = [(float(i), str(i), "red") for i in range(40)]
    assert len(few(labels)) == 8 and few(labels)[0] == labels[0] and few(labels)[-1] == labels[-1]
    alone = [Line("", {0: 1.0, 1: 2.0 + i}, "#7b7b7b") for i in range(3)]
    assert [text for _, text, _ in end_labels(alone)] == [" 2.000", " 3.000", " 4.000"]


def test_a_node_is_called_the_same_everywhere(summary: Summary) -> None:
    summary["nodes"]["miner-3"]["adversary"] = "free-rider"
    summary["joined"] = {"newcomer": {"role": "miner", "uid": 7}}
    names = ["miner-0 (uid 3)", "miner-1 (uid 4)", "miner-2 (uid 5)", "miner-3 (uid 6, free-rider)", "newcomer (uid 7)"]
    assert list(nodes_of(summary, "miner").values()) == names
    assert called(summary, [6, "0", 99]) == "miner-3 (uid 6, free-rider), owner (uid 0), uid 99"


def test_what_the_curves_may_show_is_told_where_it_happened(summary: Summary) -> None:
    summary["faults"] = [{"name": "miner-2", "round": 1}, {"name": "owner", "round": 1}]
    summary["rounds"][2]["applied"] = False
    summary["joined"] = {"newcomer": {"role": "miner", "uid": 7, "start_round": 1}}
    summary["failed_audits"] = [{"uid": 6, "round": 1}, {"uid": 6, "round": 0}]
    assert events(summary) == {
        0.75: "miner-3: audit failed", 1.25: "newcomer joined", 1.5: "miner-2 killed\nowner killed",
        3: "round discarded",
    }  # fmt: skip


def test_the_picture_is_drawn_of_many_miners_with_long_names_and_of_a_single_round(
    summary: Summary, tmp_path: Path
) -> None:
    like = summary["nodes"].pop("miner-3")
    for uid in range(6, 30):
        summary["nodes"][f"{'long-' * 20}{uid}"] = like | {"uid": uid}
        summary["baseline_losses"]["solo"][str(uid)] = {"-1": 5.4, "0": 4.0 + uid / 100}
    summary["rounds"] = summary["rounds"][:1]
    write_report(tmp_path / "many.png", summary)
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_lines_say_what_the_numbers_bear_out(summary: Summary) -> None:
    text = " ".join(story_lines(summary))
    assert "4 miners, 3 rounds, 245,760 tokens, 2.7 minutes (gpt2, 860 k parameters)" in text
    assert "fell from 5.38 to 3.02 nats per token; 3.20 for a miner alone" in text
    assert "All 7 nodes held the same model" in text and "each miner its share" in text
    assert "killed" not in text and "failed" not in text


def test_the_last_lines_claim_nothing_that_failed(summary: Summary) -> None:
    summary["checks"] |= {"same_state_root": False, "incentive_proportional": False}
    summary["details"] |= {"same_state_root": "round 1: 2 different roots", "incentive_proportional": "nothing paid"}
    summary["final_heldout_loss"] = 6.0
    text = " ".join(story_lines(summary))
    assert "did not fall: it went from 5.38 to 6.00" in text
    assert "together was no better than alone: averaging did not pay here" in text
    assert "did not all hold the same model: round 1: 2 different roots" in text
    assert "Pay did not follow the work: nothing paid" in text and "2 checks failed" in text
    assert "All 7" not in text and "each miner its share" not in text
    summary["final_heldout_loss"] = None
    assert "was not measured" in story_lines(summary)[0]


def test_the_last_lines_name_who_cheated_and_who_was_killed(summary: Summary) -> None:
    summary["nodes"]["miner-3"]["adversary"] = "free-rider"
    summary["final"]["incentive"]["6"] = 0.0
    assert "miner-3 (uid 6, free-rider) cheated, was not found out and got 0.0 %" in " ".join(story_lines(summary))
    summary["failed_audits"] = [{"uid": 6, "round": 2, "reason": "gradient"}]
    summary["faults"] = [{"rejoined_round": 2}, {"rejoined_round": None}]
    text = " ".join(story_lines(summary))
    assert "was found out in round 2 (gradient)" in text and "2 nodes were killed on purpose; 1 took part again" in text


def test_the_page_beside_the_demo_is_named_and_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "nodes" / "miner-0").mkdir(parents=True)
    (tmp_path / "nodes" / "miner-0" / "events.jsonl").write_bytes(RECORDING.read_bytes()[:2000])
    said, shown = list[str](), list[str]()
    with Page(RunPaths(tmp_path), said.append, StopRequest(), shown.append) as page:
        page.open()
        url = address(said[0])
        assert url is not None and urllib.request.urlopen(url, timeout=10).status == 200
        page.stay()  # nobody is at a terminal
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)
    assert said == [f"page {url}"] and shown == [url]


def test_a_page_that_cannot_be_is_a_line_and_no_more(tmp_path: Path) -> None:
    said = list[str]()
    with Page(RunPaths(tmp_path), said.append, StopRequest()) as page:
        page.open()
        page.stay()
    assert len(said) == 1 and said[0].startswith("no page: error: ")
