"""A tiny config for every causal LM family that transformers has, from the defaults of its config class.

Sizes are found by what a field's name means; `families.json` holds what one family needs beside that.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 384  # more than the 257 ids of the byte tokeniser
OVERRIDES = Path(__file__).with_name("families.json")
# What a field is called -> the size to stay at or under. The first name that fits whole decides.
_SIZES = tuple(
    (re.compile(names), most)
    for names, most in (
        (r"(unpadded_|decoder_|audio_)?vocab_size(_per_layer_input)?|encoder_hash_byte_group_vocab", VOCABULARY),
        (r".*(key_value_heads|kv_n_heads|num_kv_heads|num_query_groups)", 2),
        (r".*(attention_heads|n_heads?|num_heads|mamba_heads|linear_num_(key|value)_heads)", 4),
        (r".*(experts_per_tok(en)?|top_?k|moe_k|n_group|topk_blocks|n_groups|mamba_ngroups)|topk_group", 2),
        (r".*(num_(local_)?experts|n_routed_experts|num_expert_group|zero_expert_num)", 4),
        (r".*shared_experts", 1),
        (r".*(head_dim|d_head|dim_head|headdim|head_size|attention_head_dim|kv_channels|d_kv)|attn_hidden_size", 16),
        (r"qk_rope_head_dim|rotary_dim", 8),
        (r"qk_head_dim", 24),
        (r".*(_rank|state_size|d_state|d_rel|lowrank)", 16),
        (r".*(period|interval|every_n_layers|sliding_window_pattern|layer_group_size|decoder_sparse_step)", 2),
        (r".*(layer_offset|dense_replace|num_dense_layers|moe_layer_(start|end)_index|num_kv_shared_layers)", 1),
        (r"num_nextn_predict_layers|ngram_vocab_size_base|split_ngram_parts", 1),
        (r".*(hidden_layers|n_layers?|num_layers|coder_layers|num_blocks|layers_per_stack|depth)", 2),
        (r"(mamba_)?chunk_size|.*(chunk_length|block_size|sliding_window(_size)?)|(attention_)?window_size", 16),
        (r".*(intermediate_size(_mlp)?|ffn_dim|d_ff|dff|dim_ff|d_inner|hidden_dimension|feed_forward_size)", 96),
        (r"(.*_)?(hidden_size(_.*)?|d_model|n_embd|emb_dim|embedding_(size|dim)|embed_dim|lru_width|proj_dim)", 64),
        (r"ffn_hidden_size|expert_ffn_hidden_size|dim_model_base|mamba_d_ssm|ple_embed_dim", 64),
        (r"n_positions|n_ctx|max_seq_len|max_(target|source)_positions|context_length", 256),
    )
)
_TOKEN = re.compile(r".*token_(id|index)|(unk|mask|lang)_(index|id)")
_LOW_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def families() -> list[str]:
    """Every model type that AutoModelForCausalLM knows, in order."""
    return sorted(AutoModelForCausalLM._model_mapping._model_mapping)  # there is no public list


def family_config(model_type: str) -> dict[str, Any]:
    """The fields of a config.json for a tiny model of this type; what is not said is the family's default."""
    special = json.loads(OVERRIDES.read_text())
    return {"model_type": model_type} | _laid_over(shrunk(CONFIG_MAPPING[model_type]), special.get(model_type, {}))


def with_vocabulary(config: dict[str, Any], size: int) -> dict[str, Any]:
    """A config with fewer token ids, for where a large table would take too long; ids that it names lie inside."""
    small = {
        name: min(value, size - 1) for name, value in config.items() if _TOKEN.fullmatch(name) and type(value) is int
    }
    return config | small | {"vocab_size": min(config.get("vocab_size", size), size)}


def shrunk(config_class: Any) -> dict[str, Any]:
    """The fields of a config class that are sizes, small, and those of its nested configs."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        made = field.default_factory() if callable(field.default_factory) else field.default
        if isinstance(made, int) and not isinstance(made, bool):
            small = _small(field.name, made)
            if small != made:
                found[field.name] = small
    names = {field.name for field in dataclasses.fields(config_class)}
    if "is_decoder" in names and "encoder_layers" not in names:
        found["is_decoder"] = True
    if "kv_lora_rank" in names:  # latent attention has as many of both
        found["num_key_value_heads"] = found["num_attention_heads"]
    for name, nested in config_class.sub_configs.items():
        if dataclasses.is_dataclass(nested):
            found[name] = shrunk(nested)
    return found


def _small(name: str, value: int) -> int:
    if _TOKEN.fullmatch(name):
        return value if value < VOCABULARY else _LOW_TOKENS.get(name, VOCABULARY - 1)
    return next((min(value, most) for names, most in _SIZES if names.fullmatch(name)), value)


def _laid_over(fields: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """`special` over `fields`, by key; a value of "-" takes a field away."""
    merged = dict(fields)
    for name, value in special.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _laid_over(merged[name], value)
        elif value == "-":
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged
