"""A published state's files: what transformers reads, and the same numbers back, bit for bit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from tiny_training import GPT2, LLAMA, batches, model_section
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from distributed_training.data.tokens import load_tokenizer, tokenizer_json
from distributed_training.errors import LocalFault, WireError
from distributed_training.protocol.sections import ModelSection
from distributed_training.protocol.types import Carry
from distributed_training.training.export import SavedForm, StateLayout, digest_of, tokenizer_files
from distributed_training.training.flat import load_flat, loss_per_sequence, named_shapes, to_flat
from distributed_training.training.model import (
    build_model,
    config_files,
    parameter_shapes,
    saved_constants,
    saved_form,
)
from distributed_training.training.outer import RunState
from distributed_training.training.shards import Tensor, index_files, read_shards, shards_of, write_shards

TIED = LLAMA | {"tie_word_embeddings": True}
QWEN = {"model_type": "qwen2", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip


# What else a state holds: buffers in bfloat16, frozen tables, a constant per expert, experts that are saved one by one.
APERTUS = LLAMA | {"model_type": "apertus", "max_position_embeddings": 16384}
PEGASUS = {"model_type": "pegasus", "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2,
           "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
           "max_position_embeddings": 32}  # fmt: skip
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_key_value_heads": 1, "num_local_experts": 3}
GLM = LLAMA | {"model_type": "glm4_moe", "num_key_value_heads": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
               "moe_intermediate_size": 16, "first_k_dense_replace": 1}  # fmt: skip


def layout(config: dict[str, Any], shard_bytes: int = 1 << 30) -> StateLayout:
    """How a state of this model is saved."""
    return StateLayout(saved_form(ModelSection.model_validate(model_section(config)), 1 << 20), shard_bytes)


def state(flat: np.ndarray) -> RunState:
    return RunState(flat, np.arange(len(flat), dtype=np.float32), 3, Carry(1.0, ()))


def export(folder: Path, config: dict[str, Any], flat: np.ndarray, shard_bytes: int) -> None:
    """What stands in a checkpoint for transformers."""
    folder.mkdir(exist_ok=True)
    model = build_model(config, 2)
    layout(config, shard_bytes).write(folder, state(flat), saved_constants(model))
    for path in folder.glob("outer_momentum*"):
        path.unlink()
    for name, data in config_files(model, config).items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
@pytest.mark.parametrize("config", [GPT2, LLAMA, TIED, QWEN, APERTUS, PEGASUS, MIXTRAL, GLM])
def test_transformers_reads_it_without_a_warning_and_every_tensor_is_the_same(
    config: dict[str, Any], shard_bytes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(config, 1)
    trained = to_flat(model)
    export(tmp_path / "ours", config, trained, shard_bytes)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").addHandler(caplog.handler)
        both: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
        logging.getLogger("transformers").removeHandler(caplog.handler)
    loaded, told = both
    assert caplog.records == [] and not any(told.values()), (caplog.text, told)
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    tokens = torch.from_numpy(next(batches(1, size=4, length=16)))
    with torch.no_grad():
        losses = [loss_per_sequence(one.eval(), tokens) for one in (model, loaded)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [GPT2, LLAMA, TIED, APERTUS, PEGASUS, MIXTRAL, GLM])
def test_the_files_are_those_of_save_pretrained(config: dict[str, Any], tmp_path: Path) -> None:
    model: Any = build_model(config, 1)
    export(tmp_path / "ours", config, to_flat(model), 1 << 30)
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / side).iterdir()} for side in ("ours", "theirs"))
    assert ours == theirs


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=6),
    shard_bytes=st.integers(1, 400),
)
def test_what_is_written_is_what_the_library_writes_and_is_read_back(
    shapes: list[tuple[int, ...]], shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rng, labels, dtypes = np.random.default_rng(len(shapes)), ("F32", "I64", "U8"), (np.float32, np.int64, np.uint8)
    names = [f"layer.{i * 7 % 5}.{i}" for i in range(len(shapes))]
    arrays = {name: np.asarray(rng.integers(99, size=shapes[i]), dtypes[i % 3]) for i, name in enumerate(names)}
    told = [Tensor(name, arrays[name].shape, labels[i % 3]) for i, name in enumerate(names)]
    shards = shards_of("model", told, shard_bytes)
    write_shards(folder, shards, lambda tensor: arrays[tensor.name].tobytes())
    for shard in shards:
        tensors = {t.name: arrays[t.name] for t in shard.tensors}
        assert (folder / shard.name).read_bytes() == save(tensors, metadata={"format": "pt"})
        assert shard.num_bytes == (folder / shard.name).stat().st_size
        assert len(shard.tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= shard_bytes
    back = {tensor.name: bytes(data) for tensor, data in read_shards(folder, shards)}
    assert back == {name: array.tobytes() for name, array in arrays.items()}
    index = index_files("model", shards)
    assert bool(index) == (len(shards) > 1)
    for data in index.values():
        assert set(json.loads(data)["weight_map"]) == set(arrays)


@pytest.mark.parametrize("config", [GPT2, LLAMA, TIED])
def test_shapes_are_known_without_a_model(config: dict[str, Any]) -> None:
    assert parameter_shapes(config, 1 << 20) == named_shapes(build_model(config, 1))


PLACES = {"b": slice(0, 6), "a": slice(6, 10)}
LAYOUT = StateLayout(SavedForm(b"{}", (Tensor("b", (2, 3)), Tensor("a", (4,))), (), digest_of(()), lambda: PLACES))
NUMBERS = np.arange(10, dtype=np.float32)


def read(folder: Path) -> RunState:
    return LAYOUT.read(folder, 3, Carry(1.0, ()))


def written(folder: Path) -> Path:
    LAYOUT.write(folder, state(NUMBERS), {})
    assert read(folder).params.tobytes() == NUMBERS.tobytes()
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"b": NUMBERS[:6].reshape(2, 3), "a": NUMBERS[6:].astype(np.float16)}, "size"),
        ({"b": NUMBERS[:6].reshape(3, 2), "a": NUMBERS[6:]}, "names, shapes or types"),
        ({"c": NUMBERS[:6].reshape(2, 3), "a": NUMBERS[6:]}, "names, shapes or types"),
        ({"b": NUMBERS[:6].reshape(2, 3).view(np.int32), "a": NUMBERS[6:].view(np.int32)}, "names, shapes or types"),
        ({"b": NUMBERS[:6].reshape(2, 3)}, "size"),
        ({"b": np.zeros((200, 300), np.float32), "a": NUMBERS[6:]}, "size"),
        ({"b": NUMBERS[:6].reshape(2, 3), "a": np.array([1, 2, np.nan, 4], np.float32)}, "a has a number"),
        ({"b": NUMBERS[:6].reshape(2, 3), "a": np.array([1, 2, 3, -np.inf], np.float32)}, "a has a number"),
    ],
)
def test_a_file_that_we_would_not_write_is_refused(tensors: dict[str, Any], why: str, tmp_path: Path) -> None:
    written(tmp_path).write_bytes(save(tensors, metadata={"format": "pt"}))
    with pytest.raises(WireError, match=why):
        read(tmp_path)


def test_a_file_that_is_not_there_is_our_own_trouble(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="cannot read"):
        read(tmp_path)


def trained_tokenizer() -> bytes:
    """A small tokenizer.json with an end of document."""
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens(["</s>"])
    return backend.to_str().encode()


@pytest.mark.parametrize("kind", ["gpt2", "file"])
def test_auto_tokenizer_gives_the_ids_of_the_run(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    path.write_bytes(trained_tokenizer())
    ours = load_tokenizer(kind, path)
    folder = tmp_path / "out"
    folder.mkdir()
    files = config_files(build_model(GPT2, 1), GPT2) | tokenizer_files(tokenizer_json(kind, path), ours.eos)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "  Two words\n\n and: 3,14 \u20ac don't "
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.eos


def test_bytes_have_no_tokenizer_file(tmp_path: Path) -> None:
    assert tokenizer_json("bytes", tmp_path) is None
    assert tokenizer_files(None, 256) == {}


@pytest.mark.parametrize("config", [LLAMA, TIED, APERTUS, PEGASUS, MIXTRAL, GLM])
def test_the_numbers_come_back_into_a_model(config: dict[str, Any], tmp_path: Path) -> None:
    model, other = build_model(config, 1), build_model(config, 2)
    there = layout(config, 1000)
    assert there.form.num_coords == len(to_flat(model))
    there.write(tmp_path, state(to_flat(model)), saved_constants(model))
    back = there.read(tmp_path, 3, Carry(1.0, ()))
    assert back.momentum.tobytes() == state(to_flat(model)).momentum.tobytes()
    load_flat(other, back.params)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("config", [APERTUS, PEGASUS])
def test_other_constants_than_the_run_s_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    model = build_model(config, 1)
    there = layout(config)
    changed = {name: bytes(len(data)) for name, data in saved_constants(model).items()}
    there.write(tmp_path, state(to_flat(model)), changed)
    with pytest.raises(WireError, match="what no step trains has other numbers than the run's"):
        there.read(tmp_path, 3, Carry(1.0, ()))
