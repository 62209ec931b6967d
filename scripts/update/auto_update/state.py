"""What the launcher remembers, in one file that is written whole: after a kill -9 it goes on from there.

idle -> ready -> switching -> trial -> idle (settled), or trial -> back -> idle (returned, or the newer one kept). While
a release is being prepared the phase stays as it was: that is a process of its own, whose work is there whole or not.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Phase = Literal["idle", "ready", "switching", "trial", "back"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release that is prepared: its folder is whole."""

    tag: str
    path: str
    due: float  # Unix seconds at which this node takes it


@dataclass(frozen=True, slots=True)
class Before:
    """What the node of the former version had reached when it left."""

    last_round: int | None
    spec_version: int | None
    round_s: float | None  # how long its rounds took


@dataclass(frozen=True, slots=True)
class State:
    phase: Phase = "idle"
    candidate: Candidate | None = None  # in ready, switching, trial and back
    former: str | None = None  # folder that `current` named before the switch
    before: Before | None = None
    starts: int = 0  # of the version on trial, or of the former one in back
    bad: dict[str, str] = field(default_factory=dict)  # tag -> why it is not tried again
    handover: dict[str, Any] = field(default_factory=dict)  # {"path", "ok"}: of the last launcher that took over
    line: str = ""  # the last thing that was said
    time: float = 0.0  # Unix seconds of it


def load(path: Path) -> State:
    """A fresh one where there is none; ValueError for a file that is not ours."""
    try:
        doc = json.loads(path.read_text(encoding="utf-8"))
        candidate, before = doc.pop("candidate"), doc.pop("before")
        return State(
            candidate=None if candidate is None else Candidate(**candidate),
            before=None if before is None else Before(**before),
            **doc,
        )
    except FileNotFoundError:
        return State()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def ended(state: State, **changes: Any) -> State:
    """Back in idle, with nothing under way."""
    return replace(state, phase="idle", candidate=None, former=None, before=None, starts=0, **changes)


def write_whole(path: Path, text: str) -> None:
    """On disk before it has its name: also a machine that loses power finds the old or the new. Raises OSError."""
    partial = path.with_name(f"{path.name}.part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def point(link: Path, target: str) -> None:
    """The link names `target` from now on: one rename, before it the old one holds."""
    partial = link.with_name(f"{link.name}.part")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)
