"""A config as published: what transformers understands of it is what a run pins, and the function is plain
transformers' own."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import GPT2, LLAMA, batches, manifest, model_section
from transformers import AutoConfig, AutoModelForCausalLM

from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.sections import ModelSection
from distributed_training.recipes.reading import read_model
from distributed_training.training.flat import bind_flat_gradient, load_flat, loss_per_sequence, to_flat, trained
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import (
    attention_of,
    build_model,
    read_config,
    run_model,
    saved_constants,
    vocab_size,
)

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}  # fmt: skip
KEPT = {"architectures": ["X"], "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": True}
# Fields as published files have them. Each changes the function, or is read by no code of transformers (last part).
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (
        SIZES | {"rope_theta": 500000.0, "head_dim": 16, "bos_token_id": 128000, "eos_token_id": [1, 2],
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
                         "original_max_position_embeddings": 128}},
        {},
    ),
    "gpt_neox": (
        {name: size for name, size in SIZES.items() if "key_value" not in name}
        | {"rotary_pct": 0.5, "rotary_emb_base": 500, "use_parallel_residual": True},
        {"some_flag": True},
    ),
    "qwen3_moe": (
        SIZES | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "rope_theta": 1000000, "rope_scaling": None, "decoder_sparse_step": 1, "norm_topk_prob": True},
        {"mlp_kind": "dense"},
    ),
    "bloom": (
        {"vocab_size": 64, "n_embed": 32, "n_layer": 2, "num_attention_heads": 4, "pad_token_id": 3},
        {"masked_softmax_fusion": True, "seq_length": 2048},
    ),
    "gemma2": (
        SIZES | {"head_dim": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "pad_token_id": 0,
        "query_pre_attn_scalar": 8, "sliding_window": 8, "rope_theta": 100.0, "cache_implementation": "hybrid"},
        {},
    ),
    "mamba2": (
        {"vocab_size": 64, "hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1,
        "num_hidden_layers": 2, "chunk_size": 8, "time_step_limit": [0.0, float("inf")], "pad_token_id": 0},
        {"rms_norm": True},
    ),
    "deepseek_v3": (
        SIZES | {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "original_max_position_embeddings": 64}},
        {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
}  # fmt: skip


def file_of(model_type: str) -> dict[str, Any]:
    read, unread = PUBLISHED[model_type]
    return {"model_type": model_type, **KEPT, **read, **unread}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_a_published_file_is_the_function_of_plain_transformers(model_type: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(file_of(model_type)))  # Infinity as Python spells it
    given = read_model(path)
    pinned = read_config(given).config
    ours = build_model(pinned, 3)
    plain: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), dtype=torch.float32).eval()
    plain.load_state_dict(ours.state_dict())
    tokens = torch.from_numpy(next(batches(1, size=2, length=48)))
    with torch.no_grad():
        assert torch.equal(ours(input_ids=tokens).logits, plain(input_ids=tokens).logits)


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_what_is_pinned_is_json_that_reads_as_itself(model_type: str) -> None:
    pinned = read_config(file_of(model_type)).config
    again = read_config(json.loads(json.dumps(pinned, allow_nan=False)))
    assert (again.config, again.notes) == (pinned, ())
    assert "transformers_version" not in pinned


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_what_has_no_part_in_it_is_named_in_one_line(model_type: str) -> None:
    notes = read_config(file_of(model_type)).notes
    left_out = next(note for note in notes if note.startswith("left out"))
    named = set(left_out.partition(": ")[2].split(", "))
    assert named == {"architectures", "torch_dtype", "transformers_version", *PUBLISHED[model_type][1]}


def test_code_from_a_repository_is_never_asked_for() -> None:
    code = {"auto_map": {"AutoModelForCausalLM": "a.b"}, "attn_implementation": "org/kernel"}
    read = read_config(LLAMA | code | {"quantization_config": {"quant_method": "fp8"}})
    assert read.config == read_config(LLAMA).config
    assert read.notes == (
        "left out, no code that trains llama reads it: auto_map, attn_implementation, quantization_config",
    )
    with pytest.raises(ConfigError, match="its code comes with its repository"):
        read_config({"model_type": "chatglm", **code})


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GPT2 | {"n_layers": 3}, "gpt2 has no field n_layers; did you mean n_layer?"),
        (LLAMA | {"num_hidden_layer": 4}, "llama has no field num_hidden_layer; did you mean num_hidden_layers?"),
        ({"model_type": "qwen22"}, "knows no model_type 'qwen22'; did you mean qwen2?"),
        ({"model_type": "gemma3"}, "with model_type gemma3_text"),
        (LLAMA | {"num_attention_heads": 0}, r"ZeroDivisionError: .* \(num_attention_heads is 0\)"),
    ],
)
def test_what_cannot_be_read_says_what_was_meant(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        read_config(config)
    assert "\n" not in str(caught.value)


def test_a_field_said_twice_alike_is_no_mistake() -> None:
    assert read_config(GPT2 | {"n_layers": 2}).config == read_config(GPT2).config


def test_of_a_model_of_text_and_images_the_text_part_is_trained() -> None:
    text = SIZES | {"head_dim": 16, "layer_types": ["full_attention", "full_attention"]}
    read = read_config({"model_type": "llama4", "text_config": {"model_type": "llama4_text"} | text})
    assert read.config["model_type"] == "llama4_text" and vocab_size(read.config) == 64
    assert "of llama4, its text part is trained: llama4_text" in read.notes


def test_attention_is_what_the_class_offers() -> None:
    assert attention_of(build_model(LLAMA, 1)) == "sdpa"
    bloom = build_model(read_config(file_of("bloom")).config, 1)
    assert attention_of(bloom) == "eager"


def test_no_token_is_padding() -> None:
    for pad in (0, 300):  # a token of the model, and none
        config = LLAMA | {"pad_token_id": pad}
        model = build_model(read_config(config).config, 1)
        bind_flat_gradient(model)
        loss_per_sequence(model, torch.zeros((1, 8), dtype=torch.int64)).mean().backward()
        known: Any = model
        assert known.get_input_embeddings().weight.grad[0].abs().sum() > 0


PEGASUS = {"model_type": "pegasus", "vocab_size": 64, "d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 32,
           "decoder_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip


def steps(config: dict[str, Any], count: int = 2) -> tuple[InnerLoop, Any, np.ndarray]:
    torch.set_num_threads(1)
    run = manifest(config)
    model = run_model(run.model)
    loop, start = InnerLoop(model, run), to_flat(model)
    data: dict[str, Any] = {"applied_rounds": 3, "sketch_seed": b"s", "max_steps": count, "should_stop": lambda: False}
    result = loop.run(start, batches(5), **data)
    again = loop.run(start, batches(5), **data)
    assert result.end.tobytes() == again.end.tobytes() and result.steps == again.steps
    return loop, model, result.end


@pytest.mark.parametrize("model_type", ["phimoe", "mixtral"])
def test_experts_are_chosen_the_same_way_again(model_type: str) -> None:
    steps(
        LLAMA | {"model_type": model_type, "num_key_value_heads": 2, "num_local_experts": 4, "input_jitter_noise": 0.1}
    )


def test_what_a_model_freezes_is_neither_trained_nor_decayed() -> None:
    table = "model.decoder.embed_positions.weight"
    model = build_model(PEGASUS, 7)
    assert table not in dict(trained(model)) and set(saved_constants(model)) == {table}
    before = saved_constants(model)
    _, after, end = steps(PEGASUS)
    assert saved_constants(after) == before
    assert len(end) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    load_flat(after, end)
    assert saved_constants(after) == before


def section(**changes: Any) -> ModelSection:
    return ModelSection.model_validate(model_section(LLAMA) | changes)


def test_a_node_that_reads_the_run_s_config_otherwise_refuses() -> None:
    pinned = copy.deepcopy(section().config)
    pinned["rope_parameters"]["rope_theta"] = "20"  # as if another version had kept text
    with pytest.raises(ConfigError, match=r"model\.config: "):
        run_model(section(config=pinned))
    with pytest.raises(ConfigError, match=r"model\.config: new_field is 1 in the run, transformers .* reads nothing;"):
        run_model(section(config=section().config | {"new_field": 1}))
    del pinned["mlp_bias"]
    pinned["rope_parameters"]["rope_theta"] = 10000.0
    with pytest.raises(ConfigError, match=r"mlp_bias is nothing in the run, transformers .* here reads False"):
        run_model(section(config=pinned))


def test_a_node_that_makes_other_constants_refuses() -> None:
    with pytest.raises(ConfigError, match=r"model\.constants_sha256: the run has 1111111111111111\.\.\., this machine"):
        run_model(section(constants_sha256="11" * 32))
    assert to_flat(run_model(section())).tobytes() == to_flat(build_model(LLAMA, 7)).tobytes()


def test_a_manifest_says_the_whole_config() -> None:
    run = manifest(LLAMA)
    assert run.model.config["rms_norm_eps"] == 1e-6 and run.model.attention == "sdpa"
    assert RunManifest.model_validate_json(run.canonical()) == run


def test_a_field_with_an_effect_counts_whatever_it_is_called() -> None:
    opt = {"model_type": "opt", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    opt |= {"ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
    pinned = read_config(opt | {"_remove_final_layer_norm": True, "_name_or_path": "x"}).config
    assert pinned["_remove_final_layer_norm"] is True and "_name_or_path" not in pinned
    assert not any(
        "final_layer_norm" in name for name, _ in build_model(pinned, 0).named_parameters() if "layers" not in name
    )


@pytest.mark.parametrize("field", [{"tie_encoder_decoder": False}, {"id2label2": 1}])
def test_what_older_versions_wrote_is_no_slip(field: dict[str, Any]) -> None:
    assert read_config(LLAMA | field).notes == (f"left out, no code that trains llama reads it: {next(iter(field))}",)


def test_names_of_a_file_stay_in_their_line() -> None:
    (note,) = read_config(LLAMA | {"a\nerror: b": 1, "q" * 9999: 1}).notes
    assert note.isprintable() and len(note) < 300


def test_the_library_says_nothing_beside_the_line() -> None:
    said: list[logging.LogRecord] = []
    handler, library = logging.Handler(), logging.getLogger("transformers")
    handler.emit = lambda record: said.append(record)
    library.addHandler(handler)
    falcon = {"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "vocab_size": 64}
    try:
        with pytest.raises(ConfigError, match="falcon refuses it"):
            read_config(falcon)
    finally:
        library.removeHandler(handler)
    assert said == []


def test_a_choice_that_there_is_not_is_named_with_its_field() -> None:
    with pytest.raises(ConfigError, match=r"KeyError: 'nope' \(hidden_act is 'nope'\)"):
        build_model(LLAMA | {"hidden_act": "nope"}, 0)


def test_layers_of_a_part_are_bounded_like_others() -> None:
    with pytest.raises(ConfigError, match="num_hidden_layers 5000, at most 4096"):
        read_config({"model_type": "blt", "global_config": {"num_hidden_layers": 5000}})


@pytest.mark.parametrize("data", [json.dumps(LLAMA).encode("utf-8-sig"), json.dumps(LLAMA).encode("utf-16")])
def test_a_config_file_with_a_mark_in_front_is_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    assert read_model(tmp_path / "config.json") == LLAMA


def test_a_config_file_that_is_nested_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="expected JSON"):
        read_model(tmp_path / "config.json")
