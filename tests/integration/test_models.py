"""Models as they are published, and one family for each kind of surprise: all that a run does with a model, beside
plain transformers. The whole tables: scripts/bench.py models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.model_case import Case, try_file
from benchmarks.model_families import family_config
from benchmarks.model_forks import Forks
from benchmarks.models import PUBLISHED, published_files

# Attention of their own; none; noise in routers; buffers and frozen tables that a checkpoint needs; Infinity; tables of
# positions; parts that get no gradient.
FAMILIES = [
    "bart",
    "deepseek_v3",
    "falcon_mamba",
    "gpt_neo",
    "mamba2",
    "mpt",
    "apertus",
    "pegasus",
    "phimoe",
    "roberta",
]
FILES = [
    "gpt2",
    "pythia-70m",
    "opt-350m",
    "llama-3.2-1b-instruct",
    "mistral-nemo",
    "qwen3-30b-a3b",
    "phi-3-mini-128k-longrope",
    "gemma-3-1b",
    "deepseek-v3",
    "mamba2-370m",
]
REFUSED = {
    "bert-base": "looks ahead",
    "gemma-3-4b": "gemma3_text",
    "t5-small": "not a causal language model",
    "chatglm3-remote": "knows no model_type 'chatglm'",
}


@pytest.fixture(scope="module")
def another() -> Iterator[Forks]:
    """A process with another hash seed."""
    with Forks(hash_seed=2) as forks:
        yield forks


def tried(config: dict[str, Any], folder: Path, another: Forks) -> Case:
    torch.set_num_threads(1)
    work = folder / "work"
    work.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    case = try_file(folder / "config.json", work)
    assert case.result in ("right", "warned"), case
    assert another.ask("replay", str(work)) == {"digest": case.digest}
    return case


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_replays_and_is_published_as_plain_transformers_has_it(
    family: str, tmp_path: Path, another: Forks
) -> None:
    assert tried(family_config(family), tmp_path, another).equal == "bits"


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_accepted_as_it_is_and_stays_the_same_function(
    name: str, tmp_path: Path, another: Forks
) -> None:
    assert tried(published_files()[f"{name}.json"], tmp_path, another).equal == "bits"


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_run_can_train_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((PUBLISHED / f"{name}.json").read_text())
    case = try_file(tmp_path / "config.json", tmp_path)
    assert case.result == "refused" and REFUSED[name] in case.what, case


def test_a_case_that_dies_is_an_answer(another: Forks, tmp_path: Path) -> None:
    assert "cannot read the run manifest" in another.ask("replay", str(tmp_path))["died"]
