"""What a published state writes, beside which other one, and what is said of a prompt that it cannot take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from tiny_training import GPT2, manifest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from distributed_training.checkpoints.benchmarks import FILE, Result, add_results, read_results, table
from distributed_training.data.tokens import ByteTokenizer, JsonTokenizer, Tokenizer
from distributed_training.errors import ConfigError, LocalFault
from distributed_training.operator.box import answer
from distributed_training.operator.published import newest_run
from distributed_training.operator.sample import State, earlier, write
from distributed_training.training.generate import Sampling
from distributed_training.training.model import build_model

CONFIG = GPT2 | {"vocab_size": 257}
BOLD = Sampling(temperature=10, top_k=0)


def state(tokenizer: Tokenizer | None = None) -> State:
    return State(4, "here", "00" * 32, manifest(CONFIG), build_model(CONFIG, 7), tokenizer or ByteTokenizer())


@pytest.mark.parametrize(
    ("rounds", "newest", "expected"),
    [
        (range(31), 30, 20),
        ([0, 4, 8, 24, 30], 30, 8),
        ([2, 4, 6], 6, 2),
        ([25, 30, 40], 30, 25),
        ([30], 30, None),
        ([], 30, None),
    ],
)
def test_it_stands_beside_the_state_of_ten_rounds_ago_or_the_oldest(
    rounds: list[int], newest: int, expected: int | None
) -> None:
    assert earlier(rounds, newest) == expected


def test_the_pieces_are_the_text_whatever_characters_come_out_of_it() -> None:
    pieces, tried = list[str](), state()
    for seed in range(3):
        pieces.clear()
        done = write(tried, "caf\u00e9", Sampling(temperature=10, top_k=0, seed=seed), 40, on_text=pieces.append)
        assert "".join(pieces) == done.text
        assert (done.num_tokens, done.stopped) == (40, "length") or done.stopped == "end"


def test_a_text_ends_when_it_is_asked_to_and_when_its_time_is_up() -> None:
    looks = count()
    asked = write(state(), "", Sampling(0), 1000, stop=lambda: next(looks) == 3)
    assert (asked.num_tokens, asked.stopped) == (3, "asked")
    late = write(state(), "", Sampling(0), 1000, limit_s=0)
    assert (late.text, late.stopped) == ("", "time")


def test_how_much_of_a_long_prompt_was_cut_is_said() -> None:
    tried = state()
    assert write(tried, "a" * tried.context, Sampling(0), 3).num_cut == 1, "what ends the document before it"
    assert write(tried, "a", Sampling(0), 3).num_cut == 0


def test_a_prompt_that_the_tokeniser_would_lose_is_refused() -> None:
    backend = Backend(models.WordLevel({"one": 0, "two": 1, "[UNK]": 2, "<eos>": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    backend.add_special_tokens(["<eos>"])
    words = state(JsonTokenizer(backend.to_str().encode(), "<eos>", "words"))
    assert write(words, "one  two", BOLD, 5).num_tokens <= 5
    with pytest.raises(ConfigError, match="nothing for '€'") as caught:
        write(words, "one €", BOLD, 5)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected text"):
        write(state(), "\udc80", BOLD, 5)


def test_the_newest_run_is_the_one_that_was_made_last(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run in .*demo\.sh"):
        newest_run(tmp_path)
    for made, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_bytes(b"{}")
        os.utime(tmp_path / name / "manifest.json", (made, made))
    (tmp_path / "c").mkdir()
    assert newest_run(tmp_path) == tmp_path / "a"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ([], "expected a table"),
        ({}, "prompt: it is missing"),
        ({"prompt": 3}, "prompt: expected a text"),
        ({"prompt": "a" * 2001}, "at most 2000"),
        ({"prompt": "a", "max_tokens": 201}, "max_tokens: expected a number of at most 200"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens: expected a whole number"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature: expected a finite number"),
        ({"prompt": "a", "top_p": 0.0}, "top_p: expected a number greater than"),
        ({"prompt": "a", "device": "cuda"}, "device: there is no such name"),
        ({"prompt": "a"}, "no checkpoint is there yet"),
    ],
)
def test_the_page_s_box_says_in_one_line_what_it_cannot_do(body: object, why: str, tmp_path: Path) -> None:
    said = answer(str(tmp_path), body)
    assert list(said) == ["error"] and why in said["error"] and "\n" not in said["error"], said


def result(index: int, value: float, task: str = "piqa") -> Result:
    return Result(
        tag=f"run-01234567.{index}", round=index, state_root="ab" * 32, task=task, metric="acc", value=value,
        stderr=None, samples=8, num_fewshot=0,
    )  # fmt: skip


def test_results_of_benchmarks_are_kept_beside_each_other(tmp_path: Path) -> None:
    file = tmp_path / FILE
    assert read_results(file) == []
    add_results(file, [result(4, 0.5), result(4, 0.25, "arc_easy")])
    add_results(file, [result(2, 0.125), result(4, 0.75)])
    found = read_results(file)
    assert [(r.task, r.round, r.value) for r in found] == [("arc_easy", 4, 0.25), ("piqa", 2, 0.125), ("piqa", 4, 0.75)]
    assert table(found).splitlines() == [
        "| task | metric | round 2 | round 4 |",
        "|---|---|---|---|",
        "| arc_easy | acc |  | 0.2500 |",
        "| piqa | acc | 0.1250 | 0.7500 |",
    ]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b'{"version": 2, "results": []}', b'{"results": []}', b'{"results": [{"task": "|"}]}']
)
def test_a_file_that_holds_no_results_is_read_as_none_and_never_replaced(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_bytes(data)
    assert read_results(file) == []
    with pytest.raises(LocalFault, match="no results of benchmarks"):
        add_results(file, [result(4, 0.5)])
    assert file.read_bytes() == data


def test_the_box_s_process_does_not_outlive_a_server_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from distributed_training.dashboard.sampling import Sampler\n"
        "box = Sampler(Path(sys.argv[1])); print(box({})['error']); print(*box._pool._processes, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    said, pid = done.stdout.splitlines()
    assert said == "prompt: it is missing"
    deadline = time.monotonic() + 10
    while lives(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(int(pid))


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
