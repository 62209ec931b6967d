"""The launcher with real releases, real keys and a small node: from version to version, back, and after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from auto_update.child import Child
from auto_update.launcher import Launcher, Paces
from auto_update.node import Base, Seen
from auto_update.prepare import Asked, Home, look_once
from auto_update.state import Before, Candidate, State, point, write_whole
from auto_update.trial import Patience, judge
from product import Product

pytestmark = pytest.mark.alone

LIMIT_S = 60.0


def no_look() -> Child:
    raise OSError("no look in this test")


class Rig:
    """A product that is installed, a release beside it that is ready, and the launcher in this process."""

    def __init__(self, folder: Path) -> None:
        self.product = Product(folder)
        self.clone = self.product.install()
        self.home = Home(self.clone / ".update")
        self.launcher: Launcher | None = None
        self.ahead_s = 0.0  # of our clock
        patience = Patience(rounds=3, start_s=900.0, starts=2)
        clock = lambda: time.time() + self.ahead_s  # noqa: E731
        self.paces = Paces(1e9, 0.0, border_s=1e9, again_s=0.0, patience=patience, clock=clock)

    def begin(self) -> Launcher:
        base = Base(self.clone, Path(sys.executable))
        self.launcher = Launcher(self.home, base, ["miner", str(self.product.run)], self.paces, no_look, self.clone)
        self.launcher.recover()
        return self.launcher

    def publish(self, version: str, how: str = "good") -> Path:
        """Released, looked for and found."""
        self.product.release(version, how=how)
        asked = Asked(str(self.product.origin), self.clone, 4, {})
        found = look_once(self.home, asked, ["miner", str(self.product.run)], only_say=False, say=print)
        assert found["kind"] == "ready", found
        folder = self.home.node("1-w-h")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "found.json", json.dumps({**found, "now": True}))
        return Path(found["path"])

    def until(self, done: Callable[[], bool]) -> int | None:
        assert self.launcher is not None
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            code = self.launcher.step()
            if code is not None or done():
                return code
            time.sleep(0.01)
        raise AssertionError(f"not in time: {self.launcher.memory.state}, started {self.product.started()}")

    def wait_in_vain(self, version: str) -> None:
        """The version settles nothing for longer than it may take."""
        told = self.product.verdicts()
        self.until(lambda: self.product.started()[-1] == version and self.product.verdicts() > told)
        self.ahead_s += 1e5

    def settled_in(self, version: Path) -> bool:
        assert self.launcher is not None
        return self.launcher.memory.state.phase == "idle" and self.launcher.current == version

    def line(self) -> str:
        assert self.launcher is not None
        return self.launcher.memory.state.line

    def crash(self) -> None:
        """What a kill -9 leaves: no word to anybody. The node gets SIGTERM from the kernel."""
        assert self.launcher is not None
        self.launcher.close()
        self.launcher = None


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    if made.launcher is not None:
        made.launcher.close()


def test_from_one_release_to_the_next_between_two_rounds(rig: Rig) -> None:
    rig.begin()
    rig.until(lambda: rig.product.last_round() >= 3)
    second = rig.publish("0.2.0")
    rig.until(lambda: rig.settled_in(second))
    assert rig.line().startswith("v0.2.0 runs and has settled round ")
    assert rig.product.started() == ["clone", "v0.2.0"]
    third = rig.publish("0.3.0")
    rig.until(lambda: rig.settled_in(third))
    assert sorted(path.name for path in rig.home.versions.iterdir()) == ["v0.3.0"], "what nobody returns to is gone"
    told = json.loads((rig.product.node / "update.json").read_text())
    assert told["line"] == rig.line() and told["phase"] == "idle"


@pytest.mark.parametrize("how", ["crash", "refuse", "hang"])
def test_a_broken_release_is_left_again_and_not_tried_twice(rig: Rig, how: str) -> None:
    rig.begin()
    rig.until(lambda: rig.product.last_round() >= 3)
    rig.publish("0.2.0", how)
    if how == "hang":
        rig.wait_in_vain("v0.2.0")
    before = rig.product.last_round()
    rig.until(lambda: "v0.2.0" in rig.launcher.memory.state.bad)  # type: ignore[union-attr]
    assert rig.settled_in(rig.clone) and rig.product.last_round() > before
    assert rig.line() == "the former version runs again; v0.2.0 is not tried again"
    assert rig.product.started()[-1] == "clone"
    assert rig.product.started().count("v0.2.0") == (2 if how == "crash" else 1)


def test_a_chain_that_moved_keeps_the_newer_one(rig: Rig) -> None:
    rig.begin()
    rig.until(lambda: rig.product.last_round() >= 3)
    second = rig.publish("0.2.0", "hang")
    rig.product.verdict("all well", 462)
    rig.wait_in_vain("v0.2.0")
    rig.until(lambda: rig.settled_in(second))
    assert rig.line() == (
        "v0.2.0 has settled no round, but the chain's runtime is 462 now and was 461: "
        "the former version could not either, v0.2.0 stays"
    )
    assert rig.product.started() == ["clone", "v0.2.0"]


def test_a_former_version_that_settles_nothing_either_makes_way_again(rig: Rig) -> None:
    rig.begin()
    rig.until(lambda: rig.product.last_round() >= 3)
    second = rig.publish("0.2.0", "crash")
    rig.until(lambda: rig.launcher.memory.state.phase == "trial")  # type: ignore[union-attr]
    (rig.product.run / "stands_still").touch()
    rig.wait_in_vain("clone")
    rig.until(lambda: rig.settled_in(second))
    assert "gets through no round either: the chain or the run moved, v0.2.0 stays" in rig.line()
    assert rig.launcher is not None and not rig.launcher.memory.state.bad


def test_after_a_kill_at_every_state_the_right_version_runs(rig: Rig) -> None:
    second = rig.publish("0.2.0")
    folder = rig.home.node("1-w-h")
    (folder / "found.json").unlink()
    link, candidate = folder / "current", Candidate("v0.2.0", str(second), 0.0)
    before = Before(0, 461, 0.02)
    left = State(candidate=candidate, former=str(rig.clone), before=before)
    cases = [
        (replace(left, phase="ready"), rig.clone, second),
        (replace(left, phase="switching"), rig.clone, second),  # before the rename
        (replace(left, phase="switching"), second, second),  # after it
        (replace(left, phase="trial", starts=1), second, second),
        (replace(left, phase="back"), second, rig.clone),
        (replace(left, phase="back", starts=1), rig.clone, rig.clone),
    ]
    for state, current, end in cases:
        point(link, str(current))
        rig.begin().memory.save(state)
        rig.crash()
        began = rig.product.last_round()
        rig.begin()
        rig.until(lambda end=end: rig.settled_in(end))
        rig.until(lambda began=began: rig.product.last_round() > began)
        rig.crash()


def test_a_node_that_a_killed_launcher_left_is_ended_and_no_other(rig: Rig) -> None:
    sleepers = [subprocess.Popen(["sleep", "60"], process_group=0) for _ in range(2)]
    (rig.product.node / "lock").write_text(f"{sleepers[0].pid}\nnode\n")
    folder = rig.home.node("1-w-h")
    folder.mkdir(parents=True)
    (folder / "child").write_text(f"{sleepers[1].pid}\n")
    rig.begin()
    assert [process.poll() for process in sleepers] == [None, None], "a number alone is no proof"
    (folder / "child").write_text(f"{sleepers[0].pid}\n")
    reaped = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, reaped.pid, os.WEXITED)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as a child of nobody's it is waited for by the system
    try:
        rig.begin()
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert sleepers[1].poll() is None
    with pytest.raises(ProcessLookupError):
        os.kill(sleepers[0].pid, 0)
    sleepers[1].kill()
    sleepers[1].wait()


def test_a_folder_that_cannot_be_written_leaves_the_node_alone(rig: Rig) -> None:
    rig.begin()
    rig.until(lambda: rig.product.last_round() >= 1)
    rig.publish("0.2.0")
    partial = rig.home.node("1-w-h") / "state.json.part"
    partial.mkdir()
    said: list[str] = []
    rig.launcher.memory.say = lambda line, node=None: said.append(line)  # type: ignore[union-attr]
    seen = rig.product.last_round()
    rig.until(lambda: rig.product.last_round() > seen + 5)
    assert said and "state.json.part: Is a directory; the node runs on" in said[0] and len(said) == 1
    assert rig.product.started() == ["clone"]


def test_exit_codes_and_stops_are_the_nodes(rig: Rig) -> None:
    (rig.clone / "behaviour").write_text("refuse")
    rig.begin()
    assert rig.until(lambda: False) == 2
    (rig.clone / "behaviour").write_text("crash")
    rig.begin()
    assert rig.until(lambda: False) == 1
    (rig.clone / "behaviour").write_text("good")
    for number in (signal.SIGUSR1, signal.SIGTERM):
        launcher = rig.begin()
        before = rig.product.last_round()
        rig.until(lambda before=before: rig.product.last_round() > before)
        launcher.stop(number)
        assert rig.until(lambda: False) == 0


BEFORE = Before(last_round=10, spec_version=461, round_s=60.0)


@pytest.mark.parametrize(
    ("seen", "now", "starts", "gone", "verdict"),
    [
        (Seen(last_round=11), 10.0, 1, False, "settled"),
        (Seen(last_round=10), 10.0, 1, False, "wait"),
        (Seen(last_round=10), 10.0, 1, True, "wait"),
        (Seen(last_round=10), 10.0, 3, True, "failed"),
        (Seen(last_round=10), 1000.0, 1, False, "wait"),
        (Seen(last_round=10), 1081.0, 1, False, "failed"),
        (Seen(last_round=10, spec_version=461, word="all well", word_time=5.0), 1081.0, 1, False, "failed"),
        (Seen(last_round=10, spec_version=462), 1081.0, 1, False, "chain moved"),
        (Seen(last_round=10, word="the chain", word_time=5.0), 1081.0, 1, False, "chain moved"),
        (Seen(last_round=10, word="the run", word_time=-5.0), 1081.0, 1, False, "failed"),  # said before the trial
        (Seen(), 1081.0, 1, False, "failed"),
    ],
)
def test_when_a_version_is_well(seen: Seen, now: float, starts: int, gone: bool, verdict: str) -> None:
    assert judge(BEFORE, seen, 0.0, now, starts, gone, Patience()) == verdict


def test_the_program_itself_updates_hands_over_and_survives_a_kill(tmp_path: Path) -> None:
    product = Product(tmp_path)
    clone = product.install(launcher=True)
    words = [sys.executable, str(clone / "scripts" / "launch.py"), "miner", str(product.run)]
    log = (tmp_path / "log").open("wb")
    environment = os.environ | {"PYTHONPATH": "", "DT_UPDATE_URL": str(product.origin)}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, stderr=log, env=environment)

    def until(done: Callable[[], bool]) -> None:
        limit = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < limit, (tmp_path / "log").read_text()
            time.sleep(0.02)

    launcher = start()
    until(lambda: product.last_round() >= 1)
    product.release("0.2.0")
    by_hand = [*words[:2], "--check", *words[2:]]
    checked = subprocess.run(by_hand, env=environment, capture_output=True, text=True, check=True).stdout
    assert checked.startswith("v0.2.0 (") and "is signed and admitted" in checked
    by_hand[2] = "--update"
    subprocess.run(by_hand, env=environment, capture_output=True, check=True)
    until(lambda: "v0.2.0 runs and has settled" in (tmp_path / "log").read_text())
    launcher.kill()  # -9: the node leaves by itself, the next launcher is v0.2.0's
    launcher.wait()
    launcher = start()
    until(lambda: product.started() == ["clone", "v0.2.0", "v0.2.0"])
    before = product.last_round()
    until(lambda: product.last_round() > before)
    state = json.loads((clone / ".update" / "nodes" / "1-w-h" / "state.json").read_text())
    assert state["handover"] == {"path": str(clone / ".update" / "versions" / "v0.2.0"), "ok": True}
    second = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 2 and "another launcher runs this node" in second.stderr
    launcher.terminate()
    assert launcher.wait(20) == 0
    log.close()
