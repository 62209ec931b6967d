"""verify_checkpoint.py, evaluate.py and sample.py of scripts/ on what a run published, in its folder and on the Hub."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
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

from distributed_training.checkpoints.benchmarks import FILE, read_results
from distributed_training.checkpoints.description import STATE_FILE, run_name, tag_name
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.errors import ConfigError
from distributed_training.operator.box import answer

pytestmark = pytest.mark.alone

shared = pytest.mark.asyncio(loop_scope="session")
SCRIPTS = Path(__file__).parents[2] / "scripts"
REPO = "org/run"
# Runs every command of argv[1] and prints [exit code, output, errors] of each: starting costs more than most of them.
ONE_PROCESS = """
import contextlib, io, json, runpy, sys
said = []
for sys.argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            said.append((end.code, out.getvalue(), err.getvalue()))
print(json.dumps(said))
"""


def main_of(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


VERIFY, EVALUATE, SAMPLE = (main_of(name) for name in ("verify_checkpoint", "evaluate", "sample"))


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
async def test_the_newest_checkpoint_writes_beside_an_earlier_one(
    finished_subnet: Subnet, capsys: pytest.CaptureFixture[str]
) -> None:
    root = finished_subnet.root
    code, text = await said(SAMPLE, capsys, root, "one two", "--tokens", 20, "--temperature", 0)
    assert code == 0
    newest, before = text.split("--- round ")[1:]
    assert newest.startswith("2\none two") and before.startswith("0, 2 rounds before (the nearest there is)\none two")
    assert newest.count(" tokens/s") == before.count(" tokens/s") == 1
    boxed = await asyncio.to_thread(
        answer, str(root / "checkpoints"), {"prompt": "one two", "max_tokens": 20, "temperature": 0}
    )
    assert (boxed["newest"]["round"], boxed["before"]["round"]) == (2, 0)
    assert boxed["newest"]["text"] in newest and boxed["newest"]["num_tokens"] == 20
    code, text = await said(SAMPLE, capsys, root / "checkpoints" / "round-000000", "one", "--tokens", 1)
    assert code == 0 and "no earlier checkpoint" in text


@shared
async def test_a_chat_goes_on_until_its_end(
    finished_subnet: Subnet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo and three and four\n"))
    assert SAMPLE([str(finished_subnet.root), "--chat", "--tokens", "5"]) == 0
    first, second = capsys.readouterr().out.split("> ")[1:3]
    assert "tokens/s)" in first and "tokens before it were cut, the context is 16)" in second


TASK = """\
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: words.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{before}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ASKED = """\
task: asked
dataset_path: json
dataset_kwargs: {data_files: {test: [words.jsonl]}}
test_split: test
output_type: generate_until
doc_to_text: "{{before}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["z"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
READ = """\
task: read
dataset_path: json
dataset_kwargs: {data_files: {test: words.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{before}}{{choices[0]}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
ROWS = (("one two ", ["three", "qqq"]), ("", ["one", "\u00e9\u00e9\u00e9"]), ("a" * 40, ["b", "cd"]))


@shared
async def test_benchmarks_of_all_checkpoints_lie_beside_them(
    finished_subnet: Subnet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    places = [tmp_path / "checkpoints" / f"round-{index:06d}" for index in (0, 2)]
    for place in places:
        shutil.copytree(finished_subnet.root / "checkpoints" / place.name, place)
    task, *others = (tmp_path / f"{name}.yaml" for name in ("words", "asked", "read"))
    for path, text in zip((task, *others), (TASK, ASKED, READ), strict=True):
        path.write_text(text)
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"before": b, "choices": c}) + "\n" for b, c in ROWS))
    options = ("--tasks", ",".join(map(str, (task, *others))), "--all-tags", "--cache", tmp_path / "cache")
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(ConfigError, match=r"not installed here; in the checkout: .*\[evaluate\]"):
            await said(EVALUATE, capsys, tmp_path / "checkpoints", *options)
        pytest.skip("lm-evaluation-harness is not installed (the extra `evaluate`)")
    code, text = await said(EVALUATE, capsys, tmp_path / "checkpoints", *options)
    found = read_results(tmp_path / "checkpoints" / FILE)
    assert code == 0 and [(r.task, r.metric, r.round, r.samples) for r in found] == [
        (name, metric, index, len(ROWS))
        for name, metric in (("asked", "exact_match"), ("read", "bits_per_byte"), ("words", "acc"))
        for index in (0, 2)
    ]
    assert text.count("(3 samples)") == 6
    for broken, why in ((TASK + "process_docs: !function utils.f\n", "without functions"), ("[]", "a task of")):
        task.write_text(broken)
        with pytest.raises(ConfigError, match=why) as caught:
            await said(EVALUATE, capsys, tmp_path / "checkpoints", *options)
        assert "\n" not in str(caught.value)


@shared
async def test_on_the_hub_nothing_changes_but_the_endpoint(finished_subnet: Subnet, tmp_path: Path) -> None:
    root, run = finished_subnet.root, finished_subnet.manifest
    name = run_name(run.name, run.sha256)
    tag = tag_name(name, 2)

    with TestHub(tmp_path / "hub") as hub:
        store = HubCheckpoints(REPO, name, tmp_path / "own", token="hf_test", endpoint=hub.endpoint)
        store.check(write=True)
        store.publish(2, root / "checkpoints" / "round-000002")
        hub.put("models", "org/other", {"a.txt": b"a"})
        commands = [
            ["verify_checkpoint", REPO, "--revision", tag, "--run-dir", root],
            ["evaluate", f"hub:{REPO}@{tag}", "--pages", root / "pages", "--tokens", 0],
            ["verify_checkpoint", REPO, "--revision", "v9"],
            ["verify_checkpoint", "org/nothing"],
            ["verify_checkpoint", "org/other"],
        ]
        words = [[f"{SCRIPTS / name}.py", *map(str, rest), "--cache", str(tmp_path / "c")] for name, *rest in commands]
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-c", ONE_PROCESS, json.dumps(words)],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(SCRIPTS.parent)},
            stdout=PIPE,
        )
        (code, verified, _), (other, evaluated, _), *wrong = json.loads((await process.communicate())[0])
    assert code == 0 and verdicts(verified) == ["proven"] * 6, verified
    assert other == 0 and "perplexity" in evaluated, evaluated
    reasons = ("no such revision", "check the name", "holds no checkpoint")
    for (code, _, err), why in zip(wrong, reasons, strict=True):
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
    with pytest.raises(ConfigError, match=f"--device {device}: (it cannot be used here|.*no GPU)") as caught:
        EVALUATE(["org/run", "--pages", "pages", "--device", device])
    assert "\n" not in str(caught.value)
