from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from distributed_training.errors import DataUnavailable
from distributed_training.metrics.base import Metrics
from distributed_training.roles.auditing.audit import Unread


class Kept:
    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []

    def write(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None: ...


def test_pages_that_cannot_be_read_are_one_fault_a_round(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    unread = Unread(Metrics([kept := Kept()], role="validator", uid=1, threads=False))
    for index, uids in ((4, range(9)), (5, range(0)), (6, range(3, 4))):
        for uid in uids:
            unread.add(index, uid, DataUnavailable("cannot read page 7"))
        unread.close(index)
    assert [(event["round"], event["what"], event["detail"]) for event in kept.events] == [
        (4, "audit", "uid 0 is not audited: cannot read page 7"),
        (6, "audit", "uid 3 is not audited: cannot read page 7"),
    ]
    assert caplog.messages == [
        "pages for audits cannot be read: round 4: uid 0 is not audited: cannot read page 7",
        "pages for audits can be read after 0 s, 9 tries failed",
        "pages for audits cannot be read: round 6: uid 3 is not audited: cannot read page 7",
    ]
