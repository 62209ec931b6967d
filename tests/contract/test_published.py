"""A published state back from its files, in a folder and on the Hub; and what strangers put in its place."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_rig import SETTINGS
from hub import TestHub
from safetensors.numpy import load_file, save_file
from tiny_training import GPT2, LLAMA, manifest
from transformers import AutoModelForCausalLM, AutoTokenizer

from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.checkpoints.checking import facts_of
from distributed_training.checkpoints.description import STATE_FILE, parse_description, run_name, tag_name
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.checkpoints.local import LocalCheckpoints, local_ref
from distributed_training.data.tokens import GPT2_SHA256, load_tokenizer, tokenizer_json
from distributed_training.errors import WireError
from distributed_training.operator.verify import verify_files, verify_numbers
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Carry
from distributed_training.roles.exporting import Exporter
from distributed_training.roles.joining.published import check_published, load_published
from distributed_training.training.export import StateLayout, tokenizer_files
from distributed_training.training.flat import to_flat
from distributed_training.training.model import build_model, config_files, saved_constants, saved_form
from distributed_training.training.outer import RunState, state_root

ROUND = 3
KEYS = tuple(sorted(hashlib.sha256(bytes([i])).digest() for i in range(3)))
CARRY = Carry(2.5, ((), KEYS[2:]))
LARGE = GPT2 | {"vocab_size": 50257, "n_embd": 8}


def run_of(config: dict[str, Any], tokenizer: str = "bytes") -> RunManifest:
    document = manifest(config).model_dump()
    known = load_tokenizer(tokenizer)  # type: ignore[arg-type]
    document["data"] |= {"tokenizer": tokenizer, "tokenizer_sha256": known.sha256, "eos_id": known.eos}
    return RunManifest.model_validate(document)


def some_state(config: dict[str, Any]) -> RunState:
    params = to_flat(build_model(config, 5))
    momentum = np.random.default_rng(1).standard_normal(len(params)).astype(np.float32)
    return RunState(params, momentum, 2, CARRY)


def export(folder: Path, run: RunManifest, state: RunState, shard_bytes: int = 20_000) -> Path:
    model = build_model(run.model.config, 1)
    tokenizer = tokenizer_json(run.data.tokenizer, folder)
    files = config_files(model, run.model.config) | tokenizer_files(tokenizer, run.data.eos_id)
    layout = StateLayout(saved_form(run.model, 1 << 30), shard_bytes)
    folder.mkdir(parents=True)
    Exporter(run, layout, files, saved_constants(model), {-1: 4.0}, "org/run").write(
        folder, ROUND, state, state_root(state, 4096)
    )
    return folder


RUN, STATE = run_of(GPT2), some_state(GPT2)


class Place:
    """A store and how a checkpoint comes there without being published by us: `put` a folder, and its reference."""

    def __init__(self, store: CheckpointStore, put: Callable[[Path], CheckpointRef], cache: Path) -> None:
        self.store, self.put, self.cache = store, put, cache


@pytest.fixture(params=["local", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place(LocalCheckpoints(tmp_path / "store"), local_ref, tmp_path / "none")
        return
    name = run_name(RUN.name, RUN.sha256)
    with TestHub(tmp_path / "hub", settings=SETTINGS) as hub:
        store = HubCheckpoints("org/run", name, tmp_path / "cache", token="hf_test", endpoint=hub.endpoint)

        def put(folder: Path) -> CheckpointRef:
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            hub.put("models", "org/run", files, tag=tag_name(name, ROUND))
            ref = store.find(ROUND, None)
            assert ref is not None
            return ref

        store.check(write=True)
        yield Place(store, put, tmp_path / "cache")


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_the_state_comes_back_bit_for_bit(
    config: dict[str, Any], shard_bytes: int, place: Place, tmp_path: Path
) -> None:
    run, state = run_of(config), some_state(config)
    ref = place.store.publish(ROUND, export(tmp_path / "out", run, state, shard_bytes))
    found = load_published(place.store, ref, run)
    assert (found.applied, found.carry) == (state.applied, state.carry)
    assert found.params.tobytes() == state.params.tobytes() and found.momentum.tobytes() == state.momentum.tobytes()
    root = state_root(state, run.average.chunk_coords)
    assert state_root(found, run.average.chunk_coords) == root
    if config is GPT2:
        assert check_published(place.store, ROUND, root, run) == ref
    said, opened = verify_files(place.store, ref, run)
    assert [str(f)[:6] for f in [*said, *verify_numbers(opened)]] == ["proven"] * 3


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [export(tmp_path / name, RUN, STATE) for name in "ab"]
    a, b = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert a == b
    assert set(a) > {STATE_FILE, "README.md", "manifest.json", "config.json", "outer_momentum.safetensors.index.json"}


def test_plain_transformers_loads_model_and_tokenizer(tmp_path: Path) -> None:
    run = run_of(LARGE, "gpt2")
    state = some_state(LARGE)
    folder = export(tmp_path / "out", run, state, 1_000_000)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert to_flat(model).tobytes() == state.params.tobytes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Two words.")["input_ids"] == load_tokenizer("gpt2").encode("Two words.")


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_the_card_s_own_lines_load_the_model(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LARGE if tokenizer == "gpt2" else GPT2 | {"vocab_size": 257, "n_positions": 128}
    run = run_of(config | {"n_positions": 128}, tokenizer)
    folder = export(tmp_path / "out", run, some_state(run.model.config), 1 << 30)
    lines = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    tag = tag_name(run_name(run.name, run.sha256), ROUND)
    assert f'"org/run", revision="{tag}"' in lines
    exec(lines.replace(f'"org/run", revision="{tag}"', repr(str(folder))), {})  # noqa: S102 (as a person would)
    assert capsys.readouterr().out.startswith("Once upon a time")


# --- repositories of strangers --------------------------------------------------------------------------------------


def nan_in_momentum(folder: Path) -> None:
    path = sorted(folder.glob("outer_momentum-*.safetensors"))[0]
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    next(iter(tensors.values())).flat[0] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})


def retyped(dtype: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = sorted(folder.glob("model-*.safetensors"))[0]
        save_file({k: v.astype(dtype) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})

    return change


def grown(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = load_file(path)
    save_file(tensors | {"extra": np.zeros(300_000, np.float32)}, path, metadata={"format": "pt"})


def renamed(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[-1]
    tensors = load_file(path)
    first = sorted(tensors)[0]
    tensors[first[:-1] + ("u" if first[-1] != "u" else "v")] = tensors.pop(first)
    save_file(tensors, path, metadata={"format": "pt"})


def config_with(**more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | more))

    return change


def put_file(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def drop_file(pattern: str) -> Callable[[Path], object]:
    return lambda folder: sorted(folder.glob(pattern))[0].unlink()


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a number that is not finite": (nan_in_momentum, "not finite"),
    "half precision": (retyped(np.float16), "this model's has"),
    "integers": (retyped(np.int32), "names, shapes or types"),
    "a tensor more": (grown, "this model's has"),
    "another name": (renamed, "names, shapes or types"),
    "code in the config": (config_with(auto_map={"AutoModelForCausalLM": "evil.Model"}), "asks for code"),
    "another model": (config_with(model_type="llama"), "another model_type"),
    "another width": (config_with(n_embd=64), "another n_embd"),
    "no config at all": (put_file("config.json", b"[[["), "no config"),
    "a list as config": (put_file("config.json", b"[]"), "no config"),
    "a config without end": (put_file("config.json", b" " * (2 << 20)), "at most"),
    "a tokenizer that is another": (put_file("tokenizer.json", b"{}"), "tokenizer.json is not that"),
    "another manifest": (put_file("manifest.json", b"{}"), "manifest.json is not that"),
    "one more file of numbers": (put_file("extra.safetensors", b"x"), "is no file of this model"),
    "no momentum": (drop_file("outer_momentum-*"), "is missing"),
    "no config": (drop_file("config.json"), "config.json is missing"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_stranger_s_checkpoint_is_refused_with_the_reason(what: str, place: Place, tmp_path: Path) -> None:
    """Each with a training_state.json that names exactly what is there, as its maker would write it."""
    change, why = STRANGE[what]
    folder = export(tmp_path / "out", RUN, STATE)
    change(folder)
    describe_anew(folder)
    before = {path for path in tmp_path.rglob("*") if "hub" not in path.parts}
    ref = place.put(folder)
    with pytest.raises(WireError, match=why):
        load_published(place.store, ref, RUN)
    with pytest.raises(WireError, match=why):
        verify_numbers(verify_files(place.store, ref, RUN)[1])
    written = {path for path in tmp_path.rglob("*") if "hub" not in path.parts} - before
    assert all(path.is_relative_to(place.cache) for path in written)


def describe_anew(folder: Path) -> None:
    said = parse_description((folder / STATE_FILE).read_bytes())
    (folder / STATE_FILE).unlink()
    there = {path.name: facts_of(path) for path in folder.iterdir()}
    (folder / STATE_FILE).write_bytes(replace(said, files=there).encode())


def test_what_the_maker_says_of_the_state_is_checked_too(place: Place, tmp_path: Path) -> None:
    folder = export(tmp_path / "out", RUN, STATE)
    said = parse_description((folder / STATE_FILE).read_bytes())
    for changed, why in (
        (replace(said, applied=3), "have state root"),
        (replace(said, state_root="00" * 32), "have state root"),
        (replace(said, manifest_sha256="00" * 32), "of the run with manifest 0000"),
        (replace(said, shard_bytes=1), "is no file of this model"),
    ):
        (folder / STATE_FILE).write_bytes(changed.encode())
        ref = place.put(folder)
        with pytest.raises(WireError, match=why):
            verify_numbers(verify_files(place.store, ref, RUN)[1])


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a width below nothing": ({"n_embd": -5}, "cannot be built"),
    "an activation that is none": ({"activation_function": "nope"}, "cannot be built"),
    "layers without end": ({"n_layer": 10_000_000}, "n_layer 10000000, at most"),
    "more layers than its files could hold": ({"n_layer": 200}, "parameters expected"),
    "more numbers than its files could hold": ({"n_embd": 1 << 20}, "parameters expected"),
    "a vocabulary without end": ({"vocab_size": 1 << 40}, "vocab_size 1099511627776, at most"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_stranger_s_manifest_is_refused_in_one_line_and_soon(what: str, tmp_path: Path) -> None:
    """Without a manifest of one's own, that of the repository is read."""
    change, why = HOSTILE[what]
    folder = export(tmp_path / "out", RUN, STATE)
    document = json.loads((folder / "manifest.json").read_bytes())
    document["model"]["config"] |= change
    hostile = RunManifest.model_validate(document)
    (folder / "manifest.json").write_bytes(hostile.canonical())
    said = parse_description((folder / STATE_FILE).read_bytes())
    (folder / STATE_FILE).write_bytes(replace(said, manifest_sha256=hostile.sha256).encode())
    describe_anew(folder)
    started = time.monotonic()
    with pytest.raises(WireError, match=why) as caught:
        verify_files(LocalCheckpoints(tmp_path), local_ref(folder), None)
    assert "\n" not in str(caught.value) and time.monotonic() - started < 20


@pytest.mark.parametrize(("count", "size"), [(1, (1 << 20) + 1), (20, 1 << 20)])
def test_large_files_beside_the_numbers_are_refused_before_they_are_fetched(
    count: int, size: int, place: Place, tmp_path: Path
) -> None:
    folder = export(tmp_path / "out", RUN, STATE)
    for index in range(count):
        (folder / f"notes{index}.md").write_bytes(bytes(size))
    describe_anew(folder)
    ref = place.put(folder)
    with pytest.raises(WireError, match=r"at most \d+ expected"):
        load_published(place.store, ref, RUN)
    assert not place.cache.exists()


def test_a_tokenizer_config_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    run = run_of(LARGE, "gpt2")
    assert run.data.tokenizer_sha256 == GPT2_SHA256
    folder = export(tmp_path / "out", run, some_state(LARGE), 1 << 30)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tok", None]}}))
    describe_anew(folder)
    with pytest.raises(WireError, match=r"tokenizer_config.json: it asks for code"):
        verify_files(LocalCheckpoints(tmp_path), local_ref(folder), run)
