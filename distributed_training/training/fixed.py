"""What of a config is no part of the function that a run trains, and what the protocol fixes whatever a file says."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from typing import Any

from distributed_training.errors import ConfigError
from distributed_training.training.fields import near, plain

# How a file is kept and loaded, code and kernels from elsewhere, and labels: nothing of this is part of the function.
_ASIDE = {"architectures", "attn_implementation", "auto_map", "distributed_config", "dtype", "experts_implementation"}
_ASIDE |= {"id2label", "label2id", "name_or_path", "num_labels", "output_attentions", "problem_type"}
_ASIDE |= {"quantization_config", "torch_dtype", "transformers_version"}
# A run has its own ids for where texts begin and end; every forward pass gives logits and keeps nothing.
_FIXED: dict[str, Any] = {"use_cache": False, "bos_token_id": None, "eos_token_id": None}
_FIXED |= {"return_dict": True, "output_hidden_states": False}
# Part of the names of its fields. Other noise may shape the function too; evaluation mode ends it.
_DROPOUT = "drop"


def is_aside(name: str, declared: Container[str]) -> bool:
    """A field of no effect on what is trained. `declared`: the fields of its class; others with such names are the
    library's own notes."""
    return name in _ASIDE or (name.startswith("_") and name not in declared)


def is_fixed(name: str) -> bool:
    """A field whose value the protocol has the last word on."""
    return name in _FIXED or name == "pad_token_id" or _DROPOUT in name


def check_meant(config_class: Any, name: str, fields: dict[str, Any], known: set[str]) -> None:
    """Raises ConfigError for a field that nobody reads if it was meant for one spelled alike that has another value,
    given or by default."""
    meant = near(name, known)
    if meant is None or is_aside(name, known) or is_aside(meant, known) or is_fixed(meant):
        return
    if fields.get(meant, getattr(config_class, meant, name)) != fields[name]:
        raise ConfigError(f"model.config: {config_class.model_type} has no field {name}; did you mean {meant}?")


def fix(config: Any) -> set[str]:
    """Set what the protocol fixes in a transformers config and those in it; the names of what had another value. Ids
    and switches that only generation reads are not named.

    The id of padding stays where it is a token: positions of some models are counted from it, and nothing else is
    (`training.model` sees to that). An id outside the vocabulary is none.
    """
    wanted = dict(_FIXED)
    pad, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(pad, int) and isinstance(vocabulary, int) and not 0 <= pad < vocabulary:
        wanted["pad_token_id"] = None
    for name, value in vars(config).items():
        if isinstance(value, int | float) and type(value) is not bool and _DROPOUT in name:
            wanted[name] = 0.0
    changed: set[str] = set()
    for name in sorted(wanted.keys() & vars(config).keys()):
        if getattr(config, name) != wanted[name]:
            changed |= {name} - _FIXED.keys()
            try:
                setattr(config, name, wanted[name])
            except Exception:  # theirs have no common root; this class wants a number for an id
                setattr(config, name, 0)
    return changed.union(*(fix(part) for _, part in _parts(config)))


def document(config: Any) -> dict[str, Any]:
    """All fields of a transformers config that have to do with the function, as JSON."""
    declared = type(config).__dataclass_fields__
    found = {name: value for name, value in config.to_dict().items() if not is_aside(name, declared)}
    found |= {name: document(part) for name, part in _parts(config) if name in found}
    return json.loads(json.dumps(plain(found)))


def _parts(config: Any) -> Iterator[tuple[str, Any]]:
    """Configs in a config."""
    return ((name, value) for name, value in vars(config).items() if hasattr(value, "to_diff_dict"))
