"""The model of the run, built from the manifest, and its flat view. Nothing outside this file knows which model it is.

Legend: d parameters; B sequences; T tokens a sequence. "Flat" is one float32 vector [d] of all parameters in
`named_parameters()` order; a tied weight appears once, at its first name.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from distributed_training.errors import ConfigError
from distributed_training.protocol.rules.sketch import ParameterGroup
from distributed_training.training.bounds import bounded, check_integers

Flat = npt.NDArray[np.float32]

# sdpa is bit-stable on the CPU for a fixed thread count and up to twice as fast as eager.
ATTENTION = "sdpa"
_IGNORED_LABEL = -100
# Fields that choose a dtype or an outcome of the run elsewhere; the protocol fixes them.
_FIXED: dict[str, Any] = {"use_cache": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def build_model(config: dict[str, Any], init_seed: int) -> nn.Module:
    """A causal language model with seeded weights: float32, on the CPU, no dropout, no cache, in training mode.

    `config` is a transformers config as JSON and must name `model_type`. The global random state is left as it was.
    Raises ConfigError for a model type transformers cannot build as a causal LM, a field that type does not have,
    a value it refuses, or a model that looks ahead.
    """
    resolved = _resolve(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        with _building(config):
            model: nn.Module = AutoModelForCausalLM.from_config(
                resolved, attn_implementation=ATTENTION, dtype=torch.float32, trust_remote_code=False
            )
    model.train()
    _require_causal(model, vocab_size(config))
    return model


def parameter_shapes(config: dict[str, Any], most: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of all parameters in the order of the flat vector. Holds no parameter. Raises ConfigError as
    build_model does, and for more than `most` parameters, as soon as it has more."""
    resolved = _resolve(config)
    with torch.device("meta"), bounded(most), _building(config):
        model = AutoModelForCausalLM.from_config(resolved, dtype=torch.float32, trust_remote_code=False)
    return named_shapes(model)


def named_shapes(model: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """`parameter_shapes` of a model that is there."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())


def config_files(model: nn.Module) -> dict[str, bytes]:
    """config.json, and generation_config.json of a model that generates, as transformers' `save_pretrained` does it."""
    known: Any = model
    config = copy.deepcopy(known.config)
    config.architectures, config.dtype = [type(model).__name__], "float32"
    files = {"config.json": config.to_json_string().encode()}
    if known.can_generate():
        files["generation_config.json"] = known.generation_config.to_json_string().encode()
    return files


def chosen_fields(config: dict[str, Any]) -> dict[str, Any]:
    """What a manifest's `model.config` chooses, as config.json spells it; what the protocol fixes has its value."""
    resolved = _resolve(config)
    known = json.loads(resolved.to_json_string(use_diff=False))
    names = {resolved.attribute_map.get(name, name) for name in config}
    return {name: known[name] for name in sorted(names) if name in known}


def vocab_size(config: dict[str, Any]) -> int:
    """Number of token ids the model takes and predicts. Raises ConfigError as build_model does."""
    return int(_resolve(config).vocab_size)


def num_parameters(model: nn.Module) -> int:
    """Length d of the flat vector; tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def to_flat(model: nn.Module) -> Flat:
    """A copy of all parameters, float32 [d]."""
    return np.concatenate([p.detach().cpu().numpy().reshape(-1) for p in model.parameters()])


def load_flat(model: nn.Module, flat: Flat) -> None:
    """Overwrite all parameters with `flat`, float32 [d]. Raises ValueError for another length or dtype."""
    if flat.shape != (num_parameters(model),) or flat.dtype != np.float32:
        raise ValueError(f"expected float32 [{num_parameters(model)}], got {flat.dtype} {list(flat.shape)}")
    source = torch.from_numpy(np.require(flat, requirements=["C", "W"]))
    with torch.no_grad():
        for parameter, start, stop in _ranges(model):
            parameter.copy_(source[start:stop].view_as(parameter))


def bind_flat_gradient(model: nn.Module) -> torch.Tensor:
    """Make every gradient a view of one float32 tensor [d] on the model's device, zero at first, and return it.

    Backward passes add into it; call `zero_()` on it, never `zero_grad(set_to_none=True)`. Call after `model.to`.
    """
    first = next(model.parameters())
    gradient = torch.zeros(num_parameters(model), dtype=torch.float32, device=first.device)
    for parameter, start, stop in _ranges(model):
        parameter.grad = gradient[start:stop].view_as(parameter)
    return gradient


def groups(model: nn.Module) -> tuple[ParameterGroup, ...]:
    """Contiguous ranges that cover [0, d): embeddings, each transformer block, final norm and untied head.

    GPT-2 with 12 layers gives 14. Raises ConfigError when the model's blocks do not lie one after the other.
    """
    prefix = _blocks_prefix(model)
    found: list[ParameterGroup] = []
    position = 0
    for name, parameter in model.named_parameters():
        label = _label(name, prefix, after_blocks=any(g.name.startswith("block") for g in found))
        start, position = position, position + parameter.numel()
        if found and found[-1].name == label:
            found[-1] = ParameterGroup(label, found[-1].start, position)
        else:
            found.append(ParameterGroup(label, start, position))
    if len({group.name for group in found}) != len(found):
        raise ConfigError("model.config: parameters of one transformer block do not lie together")
    return tuple(found)


def loss_per_sequence(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of each sequence, nats, float32 [B], for int64 tokens [B, T].

    Position t predicts token t + 1, so a sequence holds T - 1 predictions. Tokens come unshifted.
    """
    logits = model(input_ids=tokens, use_cache=False).logits
    labels = functional.pad(tokens[:, 1:], (0, 1), value=_IGNORED_LABEL)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED_LABEL, reduction="none"
    )
    return losses.view_as(labels).sum(dim=1) / (tokens.shape[1] - 1)


@contextmanager
def _building(config: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # a config can make any line of a model fail
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"model.config: {config['model_type']} cannot be built: {said}") from None


def _resolve(config: dict[str, Any]) -> PreTrainedConfig:
    """The transformers config of a manifest's `model.config`, with the fields the protocol fixes set."""
    check_integers(config)
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ConfigError("model.config must name model_type, for example gpt2 or llama")
    try:
        known = AutoConfig.for_model(model_type)
    except (ValueError, KeyError):
        raise ConfigError(f"model.config: transformers knows no model_type {model_type!r}") from None
    if type(known) not in AutoModelForCausalLM._model_mapping:  # there is no public membership test
        raise ConfigError(f"model.config: {model_type} is not a causal language model")
    unknown = sorted(set(fields) - set(known.to_dict()) - set(known.attribute_map))
    if unknown:
        raise ConfigError(f"model.config: {model_type} has no field {', '.join(unknown)}")
    fixed = {name: value for name, value in _FIXED.items() if hasattr(known, name)} | fields | {"use_cache": False}
    fixed |= {name: 0.0 for name, value in known.to_dict().items() if _is_dropout(name, value)}
    try:
        return AutoConfig.for_model(model_type, **fixed)
    except Exception as error:  # the validators of transformers raise a family of types without a common root
        raise ConfigError(f"model.config: {model_type}: {' '.join(str(error).split())[:300]}") from None


def _is_dropout(name: str, value: object) -> bool:
    return ("drop" in name) and isinstance(value, int | float) and not isinstance(value, bool)


def _ranges(model: nn.Module) -> Iterator[tuple[nn.Parameter, int, int]]:
    position = 0
    for parameter in model.parameters():
        yield parameter, position, position + parameter.numel()
        position += parameter.numel()


def _blocks_prefix(model: nn.Module) -> str:
    """Name of the module list that holds most parameters: the transformer's blocks."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError("model.config: the model has no list of transformer blocks")
    return max(lists, key=lambda item: num_parameters(item[1]))[0] + "."


def _label(name: str, prefix: str, *, after_blocks: bool) -> str:
    if name.startswith(prefix):
        return f"block {name[len(prefix) :].split('.', 1)[0]}"
    return "final" if after_blocks else "embeddings"


def _require_causal(model: nn.Module, vocab: int) -> None:
    """Refuse a model whose first logits depend on its last token: it could read what it has to predict."""
    one = torch.zeros((1, 4), dtype=torch.int64)
    other = one.clone()
    other[0, -1] = vocab - 1
    with torch.no_grad(), _building({"model_type": type(model).__name__}):
        difference = model(input_ids=one).logits[0, :-1] - model(input_ids=other).logits[0, :-1]
    if float(difference.abs().max()) > 1e-4:
        raise ConfigError("model.config: the model looks ahead; a causal language model is needed")
