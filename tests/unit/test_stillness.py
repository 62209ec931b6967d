"""What a node says after it could not run for a while."""

from __future__ import annotations

from distributed_training.stillness import LEAST_S, pause


def test_a_pause_is_said_in_one_line_with_whose_it_was() -> None:
    lost = "; a round that ended meanwhile is lost to this node"
    assert pause(70.2, 0.1) == "stood still for 70 s: this machine slept, or its clock was set" + lost
    assert pause(70.2, 70.1) == "stood still for 70 s: this process was stopped" + lost
    assert pause(LEAST_S - 0.1, LEAST_S - 0.1) is None and pause(-3600.0, 0.0) is None  # busy; a clock set back
