"""The model of the run: what transformers understands of a config file, and the module it builds. Nothing outside this
file knows transformers.

A run pins what was understood, whole (`read_config`), so that it says in full what it trains. A node whose transformers
reads that otherwise refuses (`run_model`).
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from distributed_training.errors import ConfigError
from distributed_training.protocol.sections import ModelSection
from distributed_training.training.bounds import MOST_PARAMETERS, bounded, check_integers
from distributed_training.training.export import Place, SavedForm, digest_of
from distributed_training.training.fields import difference, names_read, numbers, shown
from distributed_training.training.fixed import check_meant, document, fix, is_aside
from distributed_training.training.flat import named_shapes, raw, trained
from distributed_training.training.shards import Tensor
from distributed_training.training.wording import in_one_line

_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_TYPES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
_TYPES |= {torch.uint8: "U8", torch.bool: "BOOL"}


@dataclass(frozen=True, slots=True)
class Reading:
    """`config`: all that transformers understood of a file, as JSON. `notes`: what it says that is no part of that, a
    line each."""

    config: dict[str, Any]
    notes: tuple[str, ...]


def read_config(fields: dict[str, Any]) -> Reading:
    """A `config.json`, as published or as this function gave it. Raises ConfigError, in one line."""
    resolved, left_out, fixed = _resolve(fields)
    notes = []
    if left_out:
        notes.append(f"left out, no code that trains {resolved.model_type} reads it: {', '.join(map(shown, left_out))}")
    if fixed:
        notes.append(f"fixed by the protocol, whatever the file says: {', '.join(fixed)}")
    if type(resolved) is not _config_class(fields):
        notes.append(f"of {fields['model_type']}, its text part is trained: {resolved.model_type}")
    return Reading(document(resolved), tuple(notes))


def run_model(section: ModelSection) -> nn.Module:
    """The model that a run pins, with its initial weights, as `build_model` gives it.

    Raises ConfigError where this transformers reads the config otherwise, or makes other constants from it.
    """
    found = difference(section.config, read_config(section.config).config)
    if found is not None:
        name, pinned, here = (str(part)[:80] for part in found)
        raise ConfigError(
            f"model.config: {name} is {pinned} in the run, transformers {transformers.__version__} here reads {here}; "
            "install the version the run was made with"
        )
    model = build_model(section.config, section.init_seed, section.attention)
    constants = constants_sha256(model)
    if constants != section.constants_sha256:
        raise ConfigError(
            f"model.constants_sha256: the run has {section.constants_sha256[:16]}..., this machine makes "
            f"{constants[:16]}... of the same config; install the versions the run was made with"
        )
    return model


def build_model(config: dict[str, Any], init_seed: int, attention: str | None = None) -> nn.Module:
    """A causal language model with seeded weights: float32, on the CPU, no cache, in evaluation mode.

    Evaluation mode, also to train: it is the function that is published and used, and nothing in it is random. The
    global random state is left as it was. `attention` None: sdpa where the class has it, else its own. Raises
    ConfigError for a model type transformers cannot build as a causal LM, or a value it refuses.
    """
    resolved = _resolve(config)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        model = _build(resolved, attention)
    return model.eval()


def parameter_shapes(config: dict[str, Any], most: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of all parameters in the order of the flat vector. Holds no parameter. Raises ConfigError as
    build_model does, and for more than `most` parameters, as soon as it has more."""
    return named_shapes(_hollow(config, None, most))


def model_size(config: Mapping[str, Any]) -> int:
    """Number of parameters that are trained."""
    return sum(math.prod(shape) for _, shape in parameter_shapes(dict(config), MOST_PARAMETERS))


def saved_form(section: ModelSection, most: int) -> SavedForm:
    """How a state of the run's model is saved. Raises as parameter_shapes does."""
    model = _hollow(section.config, section.attention, most)
    with in_one_line(f"{model.config.model_type} cannot be saved", model.config):
        learnt, rest = (
            tuple(_told(name, value) for name, value in _saved(model, part).items()) for part in _state(model)
        )
    config = config_files(model, section.config)["config.json"]
    return SavedForm(config, learnt, rest, section.constants_sha256, lambda: _places(model))


def saved_constants(model: nn.Module) -> dict[str, bytes]:
    """What a state holds beside the flat vector, as it is saved: frozen parameters and persistent buffers."""
    return {name: raw(value) for name, value in _saved(model, _state(model)[1]).items()}


def constants_sha256(model: nn.Module) -> str:
    """What a run pins as `model.constants_sha256`."""
    return digest_of((_told(name, v), raw(v)) for name, v in _saved(model, _state(model)[1]).items())


def attention_of(model: nn.Module) -> str:
    """What a run pins as `model.attention`."""
    known: Any = model
    return known.config._attn_implementation


def config_files(model: nn.Module, fields: dict[str, Any]) -> dict[str, bytes]:
    """config.json, and generation_config.json of a model that generates, as transformers' `save_pretrained` does it.

    `fields`: what the model was built of, which is written where the part of it that the class keeps for itself is
    nothing that could be loaded.
    """
    known: Any = model
    loadable = type(known.config) in AutoModelForCausalLM._model_mapping
    config = copy.deepcopy(known.config) if loadable else _resolve(fields)[0]
    config.architectures, config.dtype = [type(model).__name__], "float32"
    files = {"config.json": config.to_json_string().encode()}
    if known.can_generate():
        files["generation_config.json"] = known.generation_config.to_json_string().encode()
    return files


def vocab_size(config: dict[str, Any]) -> int:
    """Number of token ids the model takes and predicts. Raises ConfigError as build_model does."""
    resolved = _resolve(config)[0]
    size = getattr(_text_of(resolved), "vocab_size", None)
    if not isinstance(size, int):
        raise ConfigError(f"model.config: {resolved.model_type} has no vocab_size, it is no model of text")
    return size


def _build(config: PreTrainedConfig, attention: str | None) -> nn.Module:
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    chosen = attention or ("sdpa" if model_class._supports_sdpa else "eager")
    with in_one_line(f"{config.model_type} cannot be built", config):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=chosen, dtype=torch.float32, trust_remote_code=False
        )
    rows = model.get_input_embeddings().weight.shape[0]
    for module in model.modules():  # no token of a run is padding: nor has its row zeros, and no gradient
        if isinstance(module, nn.Embedding) and module.num_embeddings == rows and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = torch.randn(module.embedding_dim) * module.weight.data.std()
            module.padding_idx = None
    return model


def _hollow(config: dict[str, Any], attention: str | None, most: int) -> Any:
    """The model without memory for its numbers."""
    with torch.device("meta"), bounded(most):
        return _build(_resolve(config)[0], attention)


def _state(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What is saved of the model's state, each tensor once: those trained, and the others."""
    state = {k: v for k, v in model.state_dict().items() if k not in (model._keys_to_ignore_on_save or ())}
    names = remove_tied_weights_from_state_dict(state, model)
    ours = {id(parameter) for _, parameter in trained(model)}
    values = {name: value for name, value in model.state_dict(keep_vars=True).items() if name in names}
    learnt = {name: value for name, value in values.items() if id(value) in ours}
    return learnt, {name: value for name, value in values.items() if name not in learnt}


def _saved(model: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Named and arranged as published checkpoints are: each expert by itself, for instance."""
    return revert_weight_conversion(model, {name: value.detach() for name, value in values.items()})


def _places(model: Any) -> dict[str, Place]:
    """Saved name -> where its numbers lie in the flat vector."""
    start, ranges = 0, {}
    for _, parameter in trained(model):
        ranges[id(parameter)] = slice(start, start := start + parameter.numel())
    at = {name: (ranges[id(value)], value.shape) for name, value in _state(model)[0].items()}
    if not get_model_conversion_mapping(model, add_legacy=False):
        return {name: place for name, (place, _) in at.items()}
    numbered = {name: torch.arange(place.start, place.stop).view(shape) for name, (place, shape) in at.items()}
    return {name: value.reshape(-1).numpy() for name, value in _saved(model, numbered).items()}


def _told(name: str, value: torch.Tensor) -> Tensor:
    return Tensor(name, tuple(value.shape), _TYPES[value.dtype])


def _resolve(fields: dict[str, Any]) -> tuple[PreTrainedConfig, list[str], list[str]]:
    """The transformers config of a document with the fields that the protocol fixes set; the names it left out; the
    names given that the protocol fixes."""
    config_class = _config_class(fields)
    given, left_out = _readable(config_class, fields)
    del given["model_type"]
    check_integers(given)
    with in_one_line(f"{config_class.model_type} refuses it", given):
        resolved = config_class.from_dict(numbers(given))
    resolved = _text_part(resolved)
    fixed = fix(resolved)
    return resolved, left_out, sorted(fixed & set(given))


def _config_class(fields: dict[str, Any]) -> type[PreTrainedConfig]:
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError("model.config must name model_type, for example gpt2 or llama")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in fields:
            more = "its code comes with its repository (auto_map), and such code is never run"
        else:
            alike = difflib.get_close_matches(model_type, list(CONFIG_MAPPING.keys()), n=1)
            other = "an older or newer one may, or code that comes with a repository, which is never run"
            more = f"did you mean {alike[0]}?" if alike else other
        raise ConfigError(
            f"model.config: transformers {transformers.__version__} knows no model_type {model_type!r}; {more}"
        )
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in AutoModelForCausalLM._model_mapping:  # there is no public membership test
        raise ConfigError(f"model.config: {model_type} is not a causal language model")
    return config_class


def _readable(config_class: type[PreTrainedConfig], fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What some code reads of the fields of a file, and the names of the others. Raises ConfigError for one that nobody
    reads and that was meant for another."""
    model_class: Any = AutoModelForCausalLM._model_mapping.get(config_class, None)
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    read = known | names_read(config_class, *([] if model_class is None else [model_class]))
    sampling = set(GenerationConfig._get_default_generation_params()) - known
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in fields.items():
        part = _part_class(config_class, name, value)
        if is_aside(name, known) or name in sampling or name not in read:
            if name not in sampling:
                check_meant(config_class, name, fields, known)
            left_out.append(name)
        elif part is not None:
            kept[name], inner = _readable(part, value)
            left_out += [f"{name}.{each}" for each in inner]
        else:
            kept[name] = value
    return kept, left_out


def _part_class(config_class: type[PreTrainedConfig], name: str, value: object) -> type[PreTrainedConfig] | None:
    """The class of a nested config, None for a field that is none."""
    parts: Any = config_class.sub_configs
    if name not in parts or not isinstance(value, dict):
        return None
    known = CONFIG_MAPPING[value["model_type"]] if value.get("model_type") in CONFIG_MAPPING else parts[name]
    return known if issubclass(known, PreTrainedConfig) else None


def _text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config itself, or of a model of text and more the part that its causal class is made of. Raises ConfigError
    where that class trains on more than text."""
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    text = _text_of(config)
    if text is config or type(text) not in AutoModelForCausalLM._model_mapping:
        return config
    if model_class.config_class is type(text):
        return text
    if others := sorted(name for name in config.sub_configs if getattr(config, name, None) is not text):
        raise ConfigError(
            f"model.config: {config.model_type} is a model of text and of more ({', '.join(others)}); its text part is "
            f"a causal language model: give the fields of its text_config, with model_type {text.model_type}"
        )
    return config


def _text_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that is about the text that a model writes: most are that as a whole."""
    return config.get_text_config(decoder=True) if config.sub_configs else config
