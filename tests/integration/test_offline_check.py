"""The offline check on a run of a whole subnet: it agrees with honest nodes and finds a single changed byte."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from subnet import FINISHED_ROUNDS, Subnet

from distributed_training.localnet.judge.offline import check_run, main, result
from distributed_training.localnet.layout import RunPaths
from distributed_training.snapshots.statefile import decode_state, encode_state
from distributed_training.training.outer import RunState

pytestmark = pytest.mark.alone

ROUNDS = FINISHED_ROUNDS


@pytest.fixture(scope="module")
def kept(finished_subnet: Subnet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run of four miners and two validators keeps.

    Its databases are open: to close a file of theirs would end this process's locks on them, so SQLite copies those.
    """
    root = tmp_path_factory.mktemp("offline") / "run"
    shutil.copytree(finished_subnet.root, root, ignore=shutil.ignore_patterns("*.sqlite*"))
    for path in finished_subnet.root.rglob("*.sqlite"):
        target = root / path.relative_to(finished_subnet.root)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    return root


def problems(root: Path) -> list[str]:
    return result(*check_run(RunPaths(root), ROUNDS))["problems"]


def test_it_recomputes_every_round_slice_and_state(kept: Path) -> None:
    rounds, nodes = check_run(RunPaths(kept))
    assert [(r.index, r.applied, r.counted, r.recomputed, r.committed) for r in rounds] == [
        (index, True, 4, 4, 2) for index in range(ROUNDS)
    ]
    assert len(nodes) == 7
    assert all(n.states[ROUNDS] == rounds[-1].root for n in nodes)
    assert result(rounds, nodes)["ok"]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def wire(root: Path) -> None:
    flip(root / "nodes" / "miner-1" / "rounds" / "000001" / "wire", 100)


def wire_gone(root: Path) -> None:
    (root / "nodes" / "miner-1" / "rounds" / "000000" / "wire").unlink()


def output(root: Path) -> None:
    """Every copy of every slice, those too that were amended later and count for nothing; one changed copy among good
    ones hurts nobody."""
    for path in root.glob("nodes/*/rounds/000001/output-*.chunks"):
        flip(path, 70)


def state(root: Path) -> None:
    path = max((root / "nodes" / "owner" / "state").glob("*.safetensors"))
    index, found = decode_state(path.read_bytes())
    momentum = found.momentum.copy()
    momentum[3] += 1e-6
    path.write_bytes(encode_state(index, RunState(found.params, momentum, found.applied, found.carry)))


def work(root: Path) -> None:
    for path in root.glob("nodes/*/rounds/000000/work-*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (wire, "does not keep the wire bytes it committed"),
        (wire_gone, "does not keep the wire bytes it committed"),
        (output, "round 1: slice"),
        (state, "owner: its state at the start of round 3 has root"),
        (work, "nobody keeps the work record"),
    ],
)
def test_it_finds_what_was_changed_or_lost(
    kept: Path, tmp_path: Path, damage: Callable[[Path], None], found: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(kept, root)
    assert problems(root) == []
    damage(root)
    assert any(found in problem for problem in problems(root))


def test_the_command_exits_1_on_a_difference(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "run"
    shutil.copytree(kept, root)
    assert main([str(root)]) == 0
    assert "every round and every node agrees" in capsys.readouterr().out
    state(root)
    assert main([str(root)]) == 1
    assert "owner: its state" in capsys.readouterr().out


@pytest.mark.parametrize(("known", "wrong"), [((), []), (("late",), ["late: no saved state of a round that was"])])
def test_who_joined_and_went_on_after_the_run_is_not_compared(
    kept: Path, tmp_path: Path, known: tuple[str, ...], wrong: list[str]
) -> None:
    root = tmp_path / "run"
    shutil.copytree(kept, root)
    names = [folder.name for folder in (root / "nodes").iterdir()]
    (root / "run.json").write_text(json.dumps({"nodes": {name: {} for name in [*names, *known]}}))
    (newest,) = sorted((root / "nodes" / "owner" / "state").glob("*.safetensors"))[-1:]
    later = root / "nodes" / "late" / "state" / "later.safetensors"
    later.parent.mkdir(parents=True)
    later.write_bytes(encode_state(ROUNDS + 4, decode_state(newest.read_bytes())[1]))
    found = problems(root)
    assert len(found) == len(wrong) and all(f.startswith(w) for f, w in zip(found, wrong, strict=True))
