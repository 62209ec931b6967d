"""scripts/verify_checkpoint.py and scripts/evaluate.py on what a run published, in its folder and on the Hub."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub import TestHub
from subnet import Subnet

from distributed_training.checkpoints.description import STATE_FILE, run_name, tag_name
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.errors import ConfigError

shared = pytest.mark.asyncio(loop_scope="session")
SCRIPTS = Path(__file__).parents[2] / "scripts"
REPO = "org/run"


def main_of(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


VERIFY, EVALUATE = main_of("verify_checkpoint"), main_of("evaluate")


async def said(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str]:
    """Exit code and what was printed; the subnet's loop goes on meanwhile."""
    capsys.readouterr()
    code = await asyncio.to_thread(main, [str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def verdicts(text: str) -> list[str]:
    return [line.split(":")[0] for line in text.splitlines()[1:]]


@shared
async def test_a_run_s_checkpoint_is_proven_line_by_line(
    finished_subnet: Subnet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, cache = finished_subnet.root, ("--cache", tmp_path / "cache")
    code, text = await said(VERIFY, capsys, root / "checkpoints", "--run-dir", root, *cache)
    assert code == 0 and verdicts(text) == ["proven"] * 6, text
    assert "state root in round 2" in text
    code, text = await said(VERIFY, capsys, root / "checkpoints" / "round-000002", *cache)
    assert code == 0 and verdicts(text) == ["proven"] * 3 + ["NOT proven"], text
    assert "no chain was asked" in text
    code, text = await said(VERIFY, capsys, root / "checkpoints" / "round-000000", "--run-dir", root, *cache)
    assert code == 0 and verdicts(text)[:5] == ["proven"] * 5, "the chain named it before the one of round 2"


@shared
async def test_what_is_altered_is_not_proven(
    finished_subnet: Subnet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = finished_subnet.root
    folder = tmp_path / "round-000002"
    for name, why in (("model.safetensors", "sha256"), (STATE_FILE, "other fields"), ("README.md", "sha256")):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / "checkpoints" / "round-000002", folder)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).unlink()
        (folder / name).write_bytes(data)
        code, text = await said(VERIFY, capsys, folder, "--run-dir", root, "--cache", tmp_path / "cache")
        assert code == 1 and verdicts(text)[-1] == "FAILED", (name, why, text)


@shared
async def test_the_loss_is_the_run_s_own_and_a_sample_is_the_same_each_time(
    finished_subnet: Subnet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = finished_subnet.root
    events = finished_subnet.nodes["owner"].events
    (measured,) = [e["heldout_loss"] for e in events if e["event"] == "evaluation" and e["round"] == 1]
    arguments = (
        root / "checkpoints",
        "--run-dir",
        root,
        "--prompt",
        "one two",
        "--tokens",
        20,
        "--cache",
        tmp_path / "c",
    )
    code, text = await said(EVALUATE, capsys, *arguments)
    loss = re.search(r"held-out loss +([\d.]+)", text)
    assert code == 0 and loss is not None
    assert abs(float(loss[1]) - measured) < 1e-4
    sample = text.partition("--- a sample")[2]
    assert "one two" in sample
    _, again = await said(EVALUATE, capsys, *arguments)
    assert again.partition("--- a sample")[2] == sample
    _, other = await said(EVALUATE, capsys, *arguments, "--seed", 1)
    assert other.partition("--- a sample")[2] != sample


@shared
async def test_on_the_hub_nothing_changes_but_the_endpoint(finished_subnet: Subnet, tmp_path: Path) -> None:
    root, run = finished_subnet.root, finished_subnet.manifest
    name = run_name(run.name, run.sha256)
    tag = tag_name(name, 2)

    async def run_script(script: str, *arguments: Any) -> tuple[int, str, str]:
        command = [sys.executable, SCRIPTS / f"{script}.py", *arguments, "--cache", tmp_path / "cache"]
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(SCRIPTS.parent)}
        process = await asyncio.create_subprocess_exec(
            *[str(word) for word in command], env=environment, stdout=PIPE, stderr=PIPE
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    with TestHub(tmp_path / "hub") as hub:
        store = HubCheckpoints(REPO, name, tmp_path / "own", token="hf_test", endpoint=hub.endpoint)
        store.check(write=True)
        store.publish(2, root / "checkpoints" / "round-000002")
        hub.put("models", "org/other", {"a.txt": b"a"})
        code, out, _ = await run_script("verify_checkpoint", REPO, "--revision", tag, "--run-dir", root)
        assert code == 0 and verdicts(out) == ["proven"] * 6, out
        code, out, _ = await run_script("evaluate", f"hub:{REPO}@{tag}", "--pages", root / "pages", "--tokens", 0)
        assert code == 0 and "perplexity" in out, out
        for place, why in (
            ((REPO, "--revision", "v9"), "no such revision"),
            (("org/nothing",), "check the name"),
            (("org/other",), "holds no checkpoint"),
        ):
            code, _, err = await run_script("verify_checkpoint", *place)
            assert code == 2 and why in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing-here"], "expected ORG/NAME"),
        ([str(SCRIPTS)], "expected a folder with"),
        ([str(SCRIPTS), "--revision", "x"], "is a folder"),
        (["a/b", "--netuid", "3"], "go together"),
    ],
)
def test_what_a_person_did_wrong_is_said(arguments: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        VERIFY(arguments)
    assert "\n" not in str(caught.value)


def test_evaluate_needs_held_out_text() -> None:
    with pytest.raises(ConfigError, match="--pages, or --run-dir"):
        EVALUATE(["org/run"])


@pytest.mark.parametrize("device", ["nope", "cuda:99", "mps:7", "meta"])
def test_a_device_that_is_not_there_is_said_first(device: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {device}: it cannot be used here") as caught:
        EVALUATE(["org/run", "--pages", "pages", "--device", device])
    assert "\n" not in str(caught.value)
