"""One path to a manifest: what nobody chose is fitted to the text, what somebody chose is kept or refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.tokens import load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.recipes.creation import Choices, create_manifest, find_tokenizer
from distributed_training.recipes.reading import read_preset
from distributed_training.roles.mining.work import assigned_batches
from distributed_training.settings.flags import merge

SHIPPED = read_preset("local")
# Numbers of its own: what is shipped may change.
LOCAL = replace(SHIPPED, sections=merge(SHIPPED.sections, {"data": {"batch_size": 8}, "inner": {"nominal_steps": 5}}))
MODEL = LOCAL.model | {"n_embd": 16, "n_layer": 1, "n_head": 2}


def write_text(root: Path, num_bytes: int) -> Path:
    """Distinct lines in files of 10 kB."""
    root.mkdir()
    random_words = random.Random(5)
    for number in range(num_bytes // 10_000):
        lines = [f"{random_words.random()} of {number}, {random_words.random()}\n" for _ in range(220)]
        (root / f"{number}.txt").write_text("".join(lines)[:10_000])
    return root


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> LocalPages:
    """Half a megabyte: less than 5 steps of 8 x 256 tokens for each of 256 uids, enough for 16."""
    folder = tmp_path_factory.mktemp("creation")
    build_pages(folder / "pages", write_text(folder / "text", 500_000), num_pages=None)
    return LocalPages(folder / "pages")


def create(pages: LocalPages, **chosen: Any) -> tuple[RunManifest, list[str]]:
    said: list[str] = []
    steps = chosen.pop("steps", None)
    choices = Choices(LOCAL, MODEL, load_tokenizer("bytes"), 1, chosen, steps=steps)
    return create_manifest(choices, lambda: pages, said.append).manifest, said


def fewest_steps(manifest: RunManifest, pages: LocalPages) -> int:
    """That any uid can do in round 7."""
    done: list[int] = []
    for uid in range(manifest.max_uids):
        with assigned_batches(manifest, pages, load_tokenizer("bytes"), uid, b"\1" * 32, 7) as batches:
            done.append(sum(1 for _ in batches))
    return min(done)


def test_enough_text_is_taken_as_the_preset_says(pages: LocalPages) -> None:
    manifest, said = create(pages, data={"heldout_sequences": 64})
    assert (manifest.data.batch_size, manifest.inner.nominal_steps, said) == (8, 5, [])
    assert fewest_steps(manifest, pages) >= 5


def test_what_was_measured_for_a_codec_comes_with_it_and_gives_way_to_what_somebody_chose(pages: LocalPages) -> None:
    plain, _ = create(pages, data={"heldout_sequences": 64})
    table = SHIPPED.uplinks["sparse"]
    assert (plain.outer.learning_rate, plain.outer.momentum, plain.average.feedback_decay) == (0.8, 0.8, 1.0)
    sparse, said = create(pages, data={"heldout_sequences": 64}, average={"uplink": "sparse"})
    assert merge({}, sparse.outer.model_dump()) == table["outer"]
    assert sparse.average.feedback_decay == table["average"]["feedback_decay"] < 1
    (line,) = said
    for word in ("outer.learning_rate", "outer.momentum", "average.feedback_decay", "measured", "sparse"):
        assert word in line
    chosen = {"average": {"uplink": "sparse", "feedback_decay": 1.0}, "outer": {"momentum": 0.7}}
    mine, said = create(pages, data={"heldout_sequences": 64}, **chosen)
    assert (mine.outer.momentum, mine.average.feedback_decay) == (0.7, 1.0)
    assert mine.outer.learning_rate == table["outer"]["learning_rate"]
    assert "momentum" not in said[0] and "decay" not in said[0] and "outer.learning_rate" in said[0]
    every = merge(chosen, {"outer": {"learning_rate": 0.6}, "data": {"heldout_sequences": 64}})
    assert create(pages, **every)[1] == []


def test_what_nobody_chose_is_fitted_so_that_every_uid_can_do_its_steps(pages: LocalPages) -> None:
    manifest, said = create(pages, max_uids=80, inner={})
    assert manifest.data.heldout_sequences == 109
    assert manifest.data.batch_size < 8
    assert fewest_steps(manifest, pages) >= manifest.inner.nominal_steps == 5
    assert [line.split(": ")[1] for line in said] == [
        "data.heldout_sequences is 109, not 128",
        f"batch_size {manifest.data.batch_size}, not 8",
    ]
    manifest, said = create(pages, max_uids=30, data={"batch_size": 8, "heldout_sequences": 4})
    assert fewest_steps(manifest, pages) >= manifest.inner.nominal_steps == 3
    assert said[0].startswith("note: steps 3, not 5: the text has ")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"max_uids": 80, "inner": {"nominal_steps": 50}, "data": {"batch_size": 8}}, "50 steps of 8 x 256 .*102,400;"),
        ({"max_uids": 80, "steps": 50}, r"about \d\.\d MB of text, not 0\.5, or fewer uids \(max_uids\)"),
        (
            {"max_uids": 4000},
            r"0 tokens a round for each of 4000 uids.*expected about 1\.\d MB of text",
        ),
        ({"data": {"heldout_sequences": 999}}, "heldout_sequences is 999, but .* tokens, 109 sequences of 256"),
    ],
)
def test_what_somebody_chose_and_the_text_cannot_give_is_refused(
    pages: LocalPages, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create(pages, **chosen)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": {"batch": 1}}, "data.batch: there is no such name"),
        ({"data": 5}, "data: expected a section with fields, not 5"),
        ({"data": {"sequence_length": "long"}}, "sequence_length: expected a whole number"),
        ({"timing": {"map": 52}}, "timing: map"),
        ({"data": {"sequence_length": 512}}, "a sequence of 512 tokens .*n_positions is 256"),
    ],
)
def test_cheap_mistakes_come_before_pages_are_built(overrides: dict[str, Any], message: str) -> None:
    def never() -> NoReturn:
        raise AssertionError("pages were built")

    with pytest.raises(ConfigError, match=message):
        create_manifest(Choices(LOCAL, MODEL, load_tokenizer("bytes"), 1, overrides), never, print)


def test_a_tokenizer_is_named_or_lies_beside_the_pages_or_fits_the_model(tmp_path: Path) -> None:
    assert find_tokenizer(None, None, tmp_path, MODEL).tokenizer.kind == "bytes"
    assert find_tokenizer("gpt2", None, None, MODEL).tokenizer.kind == "gpt2"
    with pytest.raises(ConfigError, match=r"--eos <end>: it is for a tokenizer\.json"):
        find_tokenizer(None, "<end>", tmp_path, MODEL)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"{tmp_path}/tokenizer\.json: expected"):
        find_tokenizer(None, None, tmp_path, MODEL)
