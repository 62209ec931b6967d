"""Several processes that train as one: real ones, over gloo."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import AUDIT, GPT2, batches, loop, manifest, train

from distributed_training.errors import ConfigError, DeviceLost, LocalFault
from distributed_training.gpus import Children, open_team
from distributed_training.preflight import prepare
from distributed_training.protocol.observed import Verdict
from distributed_training.protocol.rules.fidelity import gradient_error, judge
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import Role, StepRecord
from distributed_training.settings.config import load_config
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.lockstep import Follower, Hello, Leader, RankLost
from distributed_training.training.model import build_model
from distributed_training.training.replay import replay
from distributed_training.training.team import Rank, torchrun_rank

RULES = AuditSection.model_validate(AUDIT)
START = to_flat(build_model(GPT2, 7))
NODE = ["--preset", "local", "--wallet.hotkey", "nobody", "--run-dir", "/nowhere"]
# Rank 1 as it is, but it writes down a digest of its parameters after each round, and fails once where a file says so.
OTHER = """
import hashlib, sys
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
from distributed_training.errors import LocalFault
from distributed_training.training.follow import follow
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model
from distributed_training.training.team import Rank

folder = Path(sys.argv[1])

def fail(where, error):
    ask = folder / where
    if ask.exists():
        ask.unlink()
        raise error("as told")

class Told(InnerLoop):
    def __init__(self, model, *given, **more):
        model.register_forward_pre_hook(lambda *_: fail("forward", MemoryError))
        register_optimizer_step_post_hook(lambda *_: fail("update", LocalFault))
        super().__init__(model, *given, **more)

    def run(self, *given, **more):
        result = super().run(*given, **more)
        digest = hashlib.sha256(result.end.tobytes()).hexdigest()
        (folder / "digests").open("a").write(f"{digest} ")
        return result

build_model({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 8}, 0)  # loads what that needs
(folder / "here").touch()
sys.exit(follow(Rank(int(sys.argv[3]), int(sys.argv[4]), sys.argv[2]), Told))
"""


@dataclass(frozen=True)
class Pair:
    """This process, and another one that was started."""

    children: Children
    folder: Path

    @property
    def pid(self) -> int:
        return self.children.processes[0].pid

    def digests(self, count: int) -> list[str]:
        """The first ones of the other's parameters, which it writes after rank 0 has its own."""
        file, until = self.folder / "digests", time.monotonic() + 20
        while time.monotonic() < until and file.read_text().count(" ") < count:
            time.sleep(0.01)
        return file.read_text().split()[:count]

    @contextmanager
    def joined(self, timeout_s: float, optimizer: str) -> Iterator[tuple[Leader, InnerLoop]]:
        while not (self.folder / "here").exists():  # it loads torch
            time.sleep(0.02)
        torch.set_num_threads(1)
        tiny, team = manifest(GPT2, optimizer=optimizer), Leader(Rank(0, 2, self.children.meet), timeout_s)
        try:
            team.join(Hello(tiny, cuda=False, threads=1))
            yield team, InnerLoop(build_model(GPT2, 7), tiny, "cpu", 4, team)
        finally:
            team.close()


def start_other(folder: Path) -> Pair:
    return Pair(Children(2, (sys.executable, "-c", OTHER, str(folder))), folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Pair]]:
    """Both at once: most of their time is the load of torch."""
    started = [start_other(tmp_path_factory.mktemp("pair")) for _ in range(2)]
    yield started
    for pair in started:
        pair.children.close()


@pytest.fixture(scope="module")
def team(pairs: list[Pair]) -> Iterator[tuple[Leader, InnerLoop]]:
    with pairs[0].joined(timeout_s=60, optimizer="adamw") as joined:
        yield joined


@pytest.fixture
def both(team: tuple[Leader, InnerLoop]) -> InnerLoop:
    return team[1]


@pytest.fixture
def other(pairs: list[Pair]) -> Pair:
    return pairs[0]


def check_two_against_one(other: Pair, both: InnerLoop, optimizer: str) -> None:
    one = train(loop(GPT2, optimizer=optimizer), START, batches(1), 6)
    two, again = train(both, START, batches(1), 6), train(both, START, batches(1), 6)
    result = judge(two.steps, one.steps, depth=6, audit=RULES)
    assert (result.verdict, result.quality) == (Verdict.PASS, 1.0), "every error is below ok"
    for together, alone in zip(two.steps, one.steps, strict=True):
        assert together.losses == pytest.approx(alone.losses, abs=2e-3), "in the same order"
    assert np.linalg.norm(two.end - one.end) < 1e-3 * np.linalg.norm(one.end - START)
    assert two.steps == again.steps and two.end.tobytes() == again.end.tobytes()
    assert other.digests(2) == [hashlib.sha256(two.end.tobytes()).hexdigest()] * 2, "the other's parameters"


def test_two_processes_log_what_one_does_and_end_at_the_same_bytes(other: Pair, both: InnerLoop) -> None:
    check_two_against_one(other, both, "adamw")


def test_a_shift_between_two_steps_moves_both(other: Pair, both: InnerLoop) -> None:
    vector = np.full_like(START, 0.01)
    moved = train(both, START, batches(1), 4, shift=lambda step: vector if step == 2 else None)
    plain = train(both, START, batches(1), 4)
    assert moved.shifted_at == 2 and moved.steps[:2] == plain.steps[:2] and moved.steps[2] != plain.steps[2]
    assert hashlib.sha256(moved.end.tobytes()).hexdigest() in other.digests(4), "after two rounds of the test before"


def test_an_auditor_replays_in_two_processes_too(both: InnerLoop) -> None:
    asked = {"applied_rounds": 0, "sketch_seed": b"seed", "depth": 6}
    stopped = replay(both, START, batches(1), enough=lambda r: r.step == 1, **asked)  # pyright: ignore
    assert stopped.steps == train(both, START, batches(1), 6).steps[:2]
    one = loop(GPT2, micro_batch=4)
    rough, alone = (replay(each, START, batches(1), otherwise=True, **asked) for each in (both, one))  # pyright: ignore
    apart = gradient_error(stopped.steps[0], alone.steps[0])
    assert gradient_error(rough.steps[0], alone.steps[0]) < apart / 10, "both processes round otherwise"
    with pytest.raises(LocalFault, match="cancelled"):
        replay(both, START, batches(1), cancelled=lambda: True, **asked)  # pyright: ignore
    assert len(train(both, START, itertools.islice(batches(1), 3), 6).steps) == 3, "the data end"


def test_what_fails_in_one_fails_in_both_and_the_next_round_goes_well(other: Pair, both: InnerLoop) -> None:
    (other.folder / "forward").touch()
    with pytest.raises(MemoryError, match=r"process 1 of 2: MemoryError: as told"):
        train(both, START, batches(1), 6)
    assert both.shrink() and both.micro_batch == 2
    seen: list[StepRecord] = []
    (other.folder / "update").touch()
    with pytest.raises(LocalFault, match=r"process 1 of 2: LocalFault: as told"):
        train(both, START, batches(1), 6, on_step=lambda record, seconds: seen.append(record))
    assert seen == [], "a step is done when all have done it"
    start = START.copy()
    start[0] = np.nan
    with pytest.raises(LocalFault, match="not finite"):
        train(both, start, iter([np.zeros((8, 32), dtype=np.int64)]), 2)
    assert len(train(both, START, batches(1), 6).steps) == 6


def test_a_killed_process_ends_the_team_at_once(pairs: list[Pair], team: tuple[Leader, InnerLoop]) -> None:
    pid, both = pairs[0].pid, team[1]

    def kill(record: StepRecord, seconds: float) -> None:
        if record.step == 2:
            os.kill(pid, signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(DeviceLost) as lost:  # which a miner tells as a fault, and which ends its node
        train(both, START, batches(1), 6, on_step=kill)
    line = "one of the 2 processes that train together is gone; a new start of the node has all of them"
    assert str(lost.value) == line
    with pytest.raises(RankLost):
        train(both, START, batches(1), 6)
    team[0].close()  # the next test has another
    assert time.monotonic() - began < 5


def test_a_process_that_hangs_after_some_rounds_of_muon_is_waited_for_no_longer_than_told(pairs: list[Pair]) -> None:
    with pairs[1].joined(timeout_s=4, optimizer="muon") as (_, both):
        check_two_against_one(pairs[1], both, "muon")
        os.kill(pairs[1].pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(RankLost, match="gave no answer in 4 s; a new start"):
            train(both, START, batches(1), 6)
        assert time.monotonic() - began < 10


def test_every_tensor_is_updated_by_one_process_and_each_has_about_as_much_to_do() -> None:
    parameters = list(build_model(GPT2, 7).parameters())
    parts = [Follower(Rank(number, 3, "")).divide(parameters) for number in range(3)]
    assert [sum(p in part for part in parts) for p in parameters] == [1] * len(parameters)
    load = [sum(p.numel() for p in parameters if p in part) for part in parts]
    assert max(load) - min(load) <= 0.2 * sum(load) / 3


def test_torchrun_says_which_process_this_is() -> None:
    assert torchrun_rank({}) is None and torchrun_rank({"RANK": "1", "WORLD_SIZE": "2"}) is None
    said = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert torchrun_rank(said) == Rank(1, 2, "env://")
    assert torchrun_rank(said | {"WORLD_SIZE": "1"}) is None
    with pytest.raises(ConfigError, match="one machine"):
        torchrun_rank(said | {"WORLD_SIZE": "4"})


def test_what_cannot_train_together_is_said_in_one_line() -> None:
    tiny = manifest(GPT2)

    def said(*flags: str) -> str:
        with pytest.raises(ConfigError) as refused:
            open_team(load_config(Role.MINER, [*NODE, *flags]), tiny, AsyncExitStack())
        return str(refused.value)

    assert said("--gpus", "3") == "--gpus 3: a step of this run has 8 sequences to share evenly; give one of 1, 2, 4, 8"
    assert said("--gpus", "2", "--device", "cuda:1").startswith("--device cuda:1: each process has a GPU of its own")
    if not torch.cuda.is_available():
        asked = said("--gpus", "2", "--device", "auto")
        assert asked.endswith("processes on the CPU have to be asked for with --device cpu")
    assert open_team(load_config(Role.MINER, NODE), tiny, AsyncExitStack()) is None
    with pytest.raises(ConfigError, match=r"--gpus 2: an owner trains nothing"):
        prepare(Role.OWNER, [*NODE, "--gpus", "2"])
