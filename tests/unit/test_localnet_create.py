"""Creating a run: everything follows from the options, and a directory is never overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_training.averaging.codecs.base import wire_bytes
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.plan import layout_of
from distributed_training.chain.keys import derive_keypair, load_hotkey
from distributed_training.chain.local.genesis import chain_params
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.errors import ConfigError
from distributed_training.localnet.judge.chain_view import genesis_time, shares_at, with_chain
from distributed_training.localnet.layout import lock_run
from distributed_training.localnet.options import MAX_BLOCK_S, MIN_BLOCK_S, Options, parse_options
from distributed_training.localnet.run.create import Run, open_or_create
from distributed_training.locks import InUse
from distributed_training.network.identity import PeerIdentity
from distributed_training.protocol.types import Roster
from distributed_training.recipes.build import choose_tokenizer, make_manifest, model_size
from distributed_training.recipes.reading import read_model, read_preset

TINY_GPT2 = read_preset("local").model
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with the same parent share their pages."""
    return tmp_path_factory.mktemp("runs")


def options(run_dir: Path, *flags: str) -> Options:
    return parse_options(["--run-dir", str(run_dir), *flags])


def create(run_dir: Path, *flags: str) -> Run:
    """Without measuring this machine, unless a test asks for that."""
    timed = flags if "--block-seconds" in flags else ("--block-seconds", "1", *flags)
    return open_or_create(options(run_dir, *timed), lambda text: None)


@pytest.fixture(scope="module")
def run(parent: Path) -> Run:
    """Made as the demo does it, which has a lock on the directory from before it is there."""
    with lock_run(parent / "run"):
        made = create(parent / "run", "--speeds", "1,4")
        (parent / "alias").symlink_to(parent / "run")
        for name in ("run", "alias"):
            with pytest.raises(InUse, match=rf"/{name} is in use by process \d+ "):
                lock_run(parent / name)
        return made


def read_roster(run: Run, block: int) -> Roster:
    return with_chain(run.paths, run.manifest, lambda chain: chain.roster(block))


def test_wallets_peer_keys_and_registrations_follow_from_the_seed(run: Run) -> None:
    roster = read_roster(run, 0)
    assert [n.uid for n in roster.neurons] == [0, 1, 2, 3, 4]
    for spec, neuron in zip(run.specs, roster.neurons, strict=True):
        assert neuron.hotkey == derive_keypair(1, spec.name).ss58_address
        assert load_hotkey(run.paths.wallets, "local", spec.name).hotkey == neuron.hotkey
        assert neuron.may_validate == spec.name.startswith("validator")
        assert (neuron.stake > 0) == neuron.may_validate
        assert (run.paths.node(spec.name) / "identity.key").exists()
    assert genesis_time(run.paths) is None


def test_a_spare_wallet_is_there_but_not_registered(run: Run) -> None:
    spare = load_hotkey(run.paths.wallets, "local", "extra")
    assert read_roster(run, 0).by_hotkey(spare.hotkey) is None


def test_the_same_seed_gives_the_same_run_and_another_seed_another(parent: Path, run: Run) -> None:
    again, other = (
        create(parent / "again", "--speeds", "1,4"),
        create(parent / "other", "--speeds", "1,4", "--seed", "2"),
    )
    assert again.manifest == run.manifest
    key = "identity.key"
    keys = [PeerIdentity.load_or_create(r.paths.node("miner-1") / key).public_key for r in (run, again, other)]
    assert keys[0] == keys[1] != keys[2]
    assert other.manifest.model.initial_root != run.manifest.model.initial_root


def test_the_manifest_has_room_for_every_miner_and_asks_for_a_bandwidth(run: Run) -> None:
    manifest = run.manifest
    assert manifest.average.token_cap >= 20 * manifest.tokens_per_step
    assert manifest.inner.max_steps >= 20
    wire = wire_bytes(INT8, layout_of(manifest, model_size(TINY_GPT2)))
    # two miners: each moves half of the wire bytes out and in, in half of the ten seconds between D and X
    assert manifest.scoring.goodput_required == pytest.approx(2 * wire * 0.5 / 5, rel=1e-3)
    assert json.loads(run.paths.run.read_text())["manifest_sha256"] == manifest.sha256


def test_the_block_time_is_measured_once_kept_and_in_no_manifest(parent: Path, run: Run) -> None:
    said: list[str] = []
    unsaid = options(parent / "measured", "--speeds", "1,4")
    measured = open_or_create(unsaid, said.append)
    assert measured.manifest.canonical() == run.manifest.canonical()  # same seed, same root, on any machine
    assert create(parent / "slow", "--speeds", "1,4", "--block-seconds", "7.5").manifest == run.manifest
    assert (
        MIN_BLOCK_S <= measured.block_s <= MAX_BLOCK_S
        and chain_params(measured.paths.chain).block_s == measured.block_s
    )
    stored = json.loads(measured.paths.run.read_text())
    measured.paths.run.write_text(json.dumps(stored | {"block_s": 3.25}))
    assert open_or_create(unsaid, said.append).block_s == 3.25
    assert said.count("measuring how fast this machine is") == 1


def test_an_existing_run_is_opened_unchanged_and_others_are_refused(parent: Path, run: Run) -> None:
    before = {
        path: path.read_bytes() for path in run.paths.root.rglob("*") if path.is_file() and "sqlite" not in path.name
    }
    opened = create(run.paths.root, "--speeds", "1,4", "--rounds", "9")
    assert opened.resumed and opened.manifest == run.manifest
    with pytest.raises(ConfigError, match=r"holds another run \(speeds \[1, 4\] there, \[1, 1\] asked for"):
        create(run.paths.root, "--speeds", "1,1")
    assert before == {path: path.read_bytes() for path in before}


def test_a_directory_with_anything_else_is_refused_and_left_alone(parent: Path) -> None:
    mine = parent / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        create(mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


def test_a_failure_half_way_leaves_no_directory(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(TINY_GPT2 | {"n_positions": 64}))
    with pytest.raises(ConfigError, match=r"a sequence of 256 tokens cannot be computed: .*n_positions is 64"):
        create(parent / "half", "--model", str(tmp_path / "bad.json"))
    assert not [path for path in parent.iterdir() if "half" in path.name]


def test_a_changed_manifest_is_noticed(parent: Path) -> None:
    run = create(parent / "changed")
    changed = run.manifest.model_copy(update={"name": "other"})
    run.paths.manifest.write_bytes(changed.canonical())
    with pytest.raises(ConfigError, match="has sha256"):
        create(parent / "changed")


def test_own_model_and_own_text(parent: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(200):
        (text / f"{number}.txt").write_text("".join(f"{number} times {i} is {number * i}\n" for i in range(250)))
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    flags = ["--miners", "2", "--model", str(tmp_path / "llama.json"), "--text", str(text)]
    run = create(parent / "own", *flags)
    assert run.manifest.model.config.items() >= LLAMA.items()
    assert run.manifest.data.pages_sha256 == LocalPages(run.paths.pages).sha256


def test_too_little_text_says_how_much_is_needed(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a short story\n" * 100)
    with pytest.raises(ConfigError, match="MB of distinct UTF-8 text"):
        create(parent / "little", "--text", str(tmp_path))


def small_pages(directory: Path) -> LocalPages:
    (directory / "text").mkdir()
    for number in range(60):
        (directory / "text" / f"{number}.txt").write_text("".join(f"{number}:{i} " for i in range(400)) + "\n")
    build_pages(directory / "pages", directory / "text", num_pages=None, page_bytes=2000, heldout_bytes=8000)
    return LocalPages(directory / "pages")


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        (TINY_GPT2 | {"vocab_size": 200}, {}, "vocab_size 200 is too small, expected at least 257"),
        (TINY_GPT2 | {"n_positions": 100}, {}, r"a sequence of 256 tokens cannot be computed: .*n_positions is 100"),
        (TINY_GPT2, {"timing": {"map": 52}}, r"timing: map \+ finality <= length - roster_lead"),
        (TINY_GPT2, {"inner": {"clip": 1.0}}, "inner.clip: there is no such name here"),
        (TINY_GPT2, {"outer": {"momentum": "much"}}, "outer.momentum: expected a number"),
        (TINY_GPT2, {"data": {"heldout_sequences": 9999}}, "heldout_sequences is 9999, expected 1 to"),
    ],
)
def test_a_manifest_that_cannot_be_run_is_refused(
    tmp_path: Path, model: dict[str, Any], overrides: dict[str, Any], message: str
) -> None:
    base = {"data": {"heldout_sequences": 4}}
    with pytest.raises(ConfigError, match=message) as caught:
        make_manifest("local", model, small_pages(tmp_path), init_seed=1, overrides=base | overrides)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_follows_from_the_vocabulary() -> None:
    assert choose_tokenizer(TINY_GPT2) == "bytes"
    assert choose_tokenizer(TINY_GPT2 | {"vocab_size": 50257}) == "gpt2"


def test_a_model_file_is_json_or_toml(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('model_type = "gpt2"\nn_layer = 2\n')
    assert read_model(tmp_path / "model.toml") == {"model_type": "gpt2", "n_layer": 2}
    (tmp_path / "model.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="expected an object with fields, not list"):
        read_model(tmp_path / "model.json")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ConfigError, match="names model_type"):
        read_model(tmp_path / "empty.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json: expected JSON"):
        read_model(tmp_path / "broken.json")


def test_shares_are_read_through_the_metagraph(run: Run) -> None:
    shares = with_chain(run.paths, run.manifest, lambda chain: shares_at(chain, 0))
    assert shares.weights == {}
    assert shares.incentive == dict.fromkeys(range(5), 0.0)
