"""docs/launch.md, as written: a run of one's own on the subnet of a demo, seen by everybody, and one that goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from subnet import free_port

from distributed_training import runs
from distributed_training.chain.keys import derive_coldkey, derive_keypair, write_wallet
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain, start_clock
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.protocol.manifest import load_manifest
from distributed_training.roles.exporting import exporter_of
from distributed_training.training.flat import to_flat
from distributed_training.training.model import run_model
from distributed_training.training.outer import initial_state, state_root

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
MODELS = ("gpt2-small", "qwen2.5-small", "llama3-small")  # with the fields of the published files
NAMES = ("owner", "validator-0", "miner-0")


def create_run() -> Callable[[Sequence[str]], int]:
    spec = importlib.util.spec_from_file_location("create_run", ROOT / "scripts" / "create_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def block(heading: str) -> list[list[str]]:
    """The words of the commands below a heading of the document."""
    text = (ROOT / "docs" / "launch.md").read_text().split(f"## {heading}\n")[1]
    return [shlex.split(line) for line in re.split("```(?:bash)?\n", text)[1].splitlines()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with books, where a demo left its chain and wallets."""
    demo, cold = tmp_path / "runs" / "NAME", derive_coldkey(7, "local").ss58_address
    for name in NAMES:
        write_wallet(demo / "wallets", "local", name, 7)
    keys = [derive_keypair(7, name).ss58_address for name in NAMES]
    create_chain(
        demo / "chain.sqlite", seed=7, block_s=1.0, netuid=1, tempo=54, weights_rate_limit=20, version_key=1,
        max_uids=16, owner_hotkey=keys[0], owner_coldkey=cold,
        neurons=[GenesisNeuron(key, cold, 1000.0 * (i == 1), i == 1) for i, key in enumerate(keys)],
    )  # fmt: skip
    start_clock(demo / "chain.sqlite")
    (tmp_path / "books").mkdir()
    for number in range(60):
        (tmp_path / "books" / f"{number}.txt").write_text("".join(f"{number} and {i}\n" for i in range(400)))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_document_launch_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create, owner, look, *_others = block("In ten minutes, on the subnet of a demo")
    main = create_run()
    for model in MODELS:
        words = [word.replace("qwen2.5-small", model).replace("runs/mine/", f"runs/{model}/") for word in create[2:]]
        assert main(words) == 0
        said = capsys.readouterr().out
        assert "subnet 1 (local), at block " in said and ": it pays\n" in said
        assert "is the hotkey of the subnet's owner, uid 0" in said and "steps a round to each of 16 uids" in said
    (home / "runs" / "qwen2.5-small").rename(home / "runs" / "mine")
    manifest = json.loads((home / "runs" / "mine" / "manifest.json").read_text())
    assert manifest["public"]["run_key"] == bytes(derive_keypair(7, "owner").public_key).hex()
    owner = [str(free_port()) if word == "9300" else word for word in owner]
    command = [sys.executable, str(ROOT / owner[1]), *owner[2:]]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) as node:
        try:
            wait_for_the_run(look, capsys, node)
        finally:
            node.send_signal(signal.SIGTERM)
    assert node.returncode == 0
    write_checkpoint(home / "runs" / "mine")
    (go_on,) = block("Go on with a run under new constants")
    assert main(go_on[2:]) == 0
    assert "goes on with round 3 of run" in capsys.readouterr().out
    assert (
        json.loads((home / "runs" / "next" / "manifest.json").read_text())["continues"]
        == load_manifest(home / "runs" / "mine" / "manifest.json").sha256
    )


def write_checkpoint(run_dir: Path) -> None:
    """As the owner's node does: of round 3."""
    manifest = load_manifest(run_dir / "manifest.json")
    model = run_model(manifest.model)
    state = initial_state(to_flat(model), manifest.average)
    (run_dir / "new").mkdir()
    root = state_root(state, manifest.average.chunk_coords)
    exporter_of(run_dir, manifest, model, {}, None).write(run_dir / "new", 3, state, root)
    LocalCheckpoints(run_dir / "checkpoints").publish(3, run_dir / "new")


def wait_for_the_run(look: list[str], capsys: pytest.CaptureFixture[str], node: subprocess.Popen[bytes]) -> None:
    """Until the third command shows it, announced by the owner."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and node.poll() is None:
        assert runs.main(look[3:]) == 0
        if "(the owner)" in capsys.readouterr().out:
            return
        time.sleep(0.2)
    raise AssertionError("the owner's node announced nothing")
