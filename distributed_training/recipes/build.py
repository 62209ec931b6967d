"""Run manifests from a few choices: a preset, a model config, a page set, and overrides by section.

`creation.py` fits one to the text there is. Everything here is a function of files and values: the same input
gives the same manifest, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from torch import nn

from distributed_training import PROTOCOL_VERSION
from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import output_bytes, step_bytes, uplink_bytes
from distributed_training.data.base import PinnedPages
from distributed_training.data.loader import heldout_sequences
from distributed_training.data.pages import check_trust
from distributed_training.data.tokens import Tokenizer, TokenizerKind, load_tokenizer
from distributed_training.errors import ConfigError, expected
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.quota import least_length, quota_problem
from distributed_training.recipes.reading import PRESET_PARTS, Preset, read_preset
from distributed_training.recipes.timing import ANY_ROUND, Asked, Where, Work, choose, slowest_goodput
from distributed_training.settings.flags import find, merge, options
from distributed_training.settings.words import nearest
from distributed_training.training.flat import to_flat
from distributed_training.training.model import (
    attention_of,
    build_model,
    constants_sha256,
    model_size,
    read_config,
    vocab_size,
)
from distributed_training.training.optimizers import KINDS, build, options_of
from distributed_training.training.outer import RunState, initial_state, state_root
from distributed_training.training.trial import try_out

GPT2_VOCABULARY = 50257
NOTHING_ASKED = Asked()
# The state of round 0 of a run on this model, and what to know of it, a line each. Raises ConfigError.
First = Callable[[nn.Module, RunManifest], tuple[RunState, Sequence[str]]]
_FREE = ("model.", "inner.options.")  # names that their own code knows
_FOLLOWS = ("tokenizer", "tokenizer_sha256", "eos_id", "pages_sha256", "num_pages")


def choose_tokenizer(config: Mapping[str, Any]) -> TokenizerKind:
    """GPT-2's BPE when the model has room for it, bytes otherwise."""
    return "gpt2" if vocab_size(dict(config)) >= GPT2_VOCABULARY else "bytes"


def make_manifest(
    preset: Preset | str,
    model: Mapping[str, Any],
    pages: PinnedPages,
    *,
    init_seed: int,
    tokenizer: Tokenizer | None = None,
    overrides: Mapping[str, Any] | None = None,
    expected_reducers: int = 4,
    asked: Asked = NOTHING_ASKED,
    tried: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RunManifest:
    """The manifest of a run over `pages`. Raises ConfigError for whatever cannot be run, in one line.

    `preset`: a name is one that is shipped. `tokenizer` None: the one that `choose_tokenizer` takes. `tried`: what
    `try_model` gave for the same choices; None: it is asked, with `say`.
    """
    preset = read_preset(preset) if isinstance(preset, str) else preset
    draft = draft_manifest(preset, model, tokenizer, overrides or {}, pages, asked)
    tokenizer = tokenizer or load_tokenizer(draft.data.tokenizer)
    check_trust(pages.missing_digests, draft.data.page_trust)
    fields = draft.model_dump()
    heldout_sequences(pages, tokenizer, draft.data.sequence_length, draft.data.heldout_sequences)
    fields["model"] |= tried or try_model(model, draft, init_seed, say)
    if "goodput_required" not in (overrides or {}).get("scoring", {}):
        size, expect = model_size(draft.model.config), asked.expect or preset.expect
        needed = goodput(draft, size, expected_reducers, asked.block_s or preset.block_s)
        fields["scoring"]["goodput_required"] = min(needed, slowest_goodput(expect))
    return validated(fields)


def draft_manifest(
    preset: Preset | str,
    model: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    overrides: Mapping[str, Any],
    pages: PinnedPages | None = None,
    asked: Asked = NOTHING_ASKED,
) -> RunManifest:
    """All of a manifest but what follows from the built model: quick. `pages` None: as if there were enough of them.

    Raises ConfigError, as `make_manifest` does.
    """
    preset = read_preset(preset) if isinstance(preset, str) else preset
    _refuse_what_follows(overrides, preset)
    config = read_config(dict(model)).config
    tokenizer = tokenizer or load_tokenizer(choose_tokenizer(config))
    check_vocabulary(config, tokenizer.vocab_size)
    sha256, num_pages, missing = "00" * 32, 1 << 20, 0
    if pages is not None:
        sha256, num_pages, missing = pages.sha256, pages.num_pages, pages.missing_digests

    def filled(*layers: Mapping[str, Any]) -> RunManifest:
        fields = merge({"protocol_version": PROTOCOL_VERSION}, *map(deepcopy, layers))
        fields["inner"]["options"] = options_of(fields["inner"]["optimizer"], fields["inner"]["options"])
        fields["data"] |= {
            "tokenizer": tokenizer.kind,
            "tokenizer_sha256": tokenizer.sha256,
            "eos_id": tokenizer.eos,
            "pages_sha256": sha256,
            "page_trust": fields["data"].get("page_trust") or ("commit" if missing else "digest"),
            "num_pages": num_pages,
        }
        fields["model"] = {"config": config, "init_seed": 0}
        fields["model"] |= {"attention": "eager", "constants_sha256": "00" * 32, "initial_root": "00" * 32}
        fields["scoring"].setdefault("goodput_required", 1.0)
        return validated(fields)

    optimizer = merge(_of_optimizer(preset, overrides), _of_overlap(preset, overrides), of_uplink(preset, overrides))
    if "length" in preset.sections["timing"] and not asked.anything:
        return filled(preset.sections, optimizer, overrides)
    optimizer.pop("timing", None)  # offsets that a preset names for overlap are of its own round
    others = ({k: v for k, v in layer.items() if k != "timing"} for layer in (preset.sections, overrides))
    wanted = replace(asked, overlap=asked.overlap or find(overrides, "timing.overlap") is True)
    chosen = round_of(filled(ANY_ROUND, next(others), optimizer, next(others)), preset, wanted)
    layers = (preset.sections, chosen) if asked.anything else (chosen, preset.sections)
    return filled(*layers, optimizer, overrides)


def round_of(draft: RunManifest, preset: Preset, asked: Asked) -> dict[str, Any]:
    """Sections with the shortest round for a run whose other constants are those of `draft`. Raises ConfigError."""
    size, tempo = model_size(draft.model.config), asked.tempo or preset.tempo
    least = least_length(tempo, asked.quota_bytes)
    if least is None:
        raise ConfigError(f"the chain allows {asked.quota_bytes} commitment bytes an epoch: no round fits in them")
    layout = layout_of(draft, size)
    sizes = uplink_bytes(draft, layout), output_bytes(draft, layout)
    work = Work(size, *sizes, draft.tokens_per_step, step_bytes(draft))
    where = Where(asked.block_s or preset.block_s, preset.finality, least)
    nominal = draft.inner.nominal_steps
    steps = asked.steps or (None if nominal == ANY_ROUND["inner"]["nominal_steps"] else nominal)
    return choose(work, where, asked.expect or preset.expect, replace(asked, steps=steps))


def try_model(
    config: Mapping[str, Any],
    draft: RunManifest,
    init_seed: int,
    say: Callable[[str], None] = lambda line: None,
    start: First | None = None,
) -> dict[str, Any]:
    """What the manifest's `model` says of the model of `config`, which is built and tried at the draft's length.

    `start`: what round 0 is, None: the numbers of the seed. `say` gets a line for each thing to know of the
    model. For a large one that takes minutes and, by estimate, memory for three times its parameters. Raises
    ConfigError for one that cannot be trained (training.trial).
    """
    for note in read_config(dict(config)).notes:
        say(f"model: {note}")
    model = build_model(draft.model.config, init_seed)
    build(draft.inner, model)  # has it anything to do there?
    for note in try_out(model, vocab_size(draft.model.config), draft.data.sequence_length):
        say(f"model: {note}")
    state, notes = (initial_state(to_flat(model), draft.average), ()) if start is None else start(model, draft)
    for note in notes:
        say(f"model: {note}")
    root = state_root(state, draft.average.chunk_coords)
    return {
        "init_seed": init_seed,
        "attention": attention_of(model),
        "constants_sha256": constants_sha256(model),
        "initial_root": root.hex(),
    }


def _of_optimizer(preset: Preset, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset says of the optimiser that was chosen; of one that it does not know, nothing."""
    name = find(overrides, "inner.optimizer") or preset.sections["inner"]["optimizer"]
    return merge({"inner": {"options": {}}}, *(table for other, table in preset.optimizers.items() if other == name))


def _of_overlap(preset: Preset, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset says of a run whose rounds overlap."""
    wanted = find(overrides, "timing.overlap")
    return preset.overlap if (preset.sections["timing"].get("overlap") if wanted is None else wanted) else {}


def of_uplink(preset: Preset, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset says of the codec that miners send with; whatever a person chooses is laid over it."""
    name = find(overrides, "average.uplink") or preset.sections["average"]["uplink"]
    return preset.uplinks.get(name, {})


def _refuse_what_follows(overrides: Mapping[str, Any], preset: Preset) -> None:
    """Raises ConfigError for a field that cannot be chosen, because it follows from model, tokeniser and pages; for a
    section that is none; and for a name that nothing has."""
    data = overrides.get("data")
    wrong = [f"data.{key}" for key in _FOLLOWS if isinstance(data, dict) and key in data] + ["model"] * (
        "model" in overrides
    )
    if wrong:
        raise ConfigError(f"{wrong[0]} cannot be set: it follows from --model, --pages, --tokenizer and --seed")
    known = [option.key for option in options(RunManifest)]
    for optimizer in preset.optimizers:
        if optimizer not in KINDS:
            raise ConfigError(f"preset {preset.name}: optimizers.{optimizer}: expected one of {', '.join(KINDS)}")
    for layer in (preset.sections, *preset.optimizers.values(), *preset.uplinks.values(), overrides):
        for name, value in layer.items():
            if name in PRESET_PARTS:
                raise ConfigError(f"{name} cannot be set: change it in a copy of the preset (--show-preset NAME)")
            if isinstance(preset.sections.get(name), dict) and not isinstance(value, dict):
                raise ConfigError(f"run manifest: {name}: expected a section with fields, not {value!r}")
            for key in (f"{name}.{field}" for field in value) if isinstance(value, dict) else (name,):
                if key not in known and not key.startswith(_FREE):
                    raise ConfigError(f"run manifest: {key}: there is no such name here{nearest(key, known)}")


def validated(fields: Mapping[str, Any]) -> RunManifest:
    """Raises ConfigError naming the first wrong field, or the constraint between fields that does not hold."""
    try:
        return RunManifest.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"run manifest: {where + ': ' if where else ''}{expected(first)}") from None


def check_vocabulary(config: Mapping[str, Any], vocabulary: int) -> None:
    """Does the model have room for the tokenizer? Raises ConfigError with both numbers."""
    size = vocab_size(dict(config))
    if size < vocabulary:
        raise ConfigError(
            f"model.config: vocab_size {size} is too small, expected at least {vocabulary} for the run's tokenizer"
        )


def check_timing(manifest: RunManifest, tempo: int) -> None:
    """Refuse a round length whose commitments exceed the chain's quota. Raises ConfigError."""
    problem = quota_problem(manifest.timing.length, tempo)
    if problem is not None:
        raise ConfigError(f"run manifest: {problem}")


def goodput(manifest: RunManifest, num_coords: int, reducers: int, block_s: float) -> float:
    """Bytes/s a miner needs: both ways of its share of the wire bytes in half of the averaging time
    (docs/scoring.md)."""
    layout = layout_of(manifest, num_coords)
    wire = uplink_bytes(manifest, layout) + output_bytes(manifest, layout)
    seconds = (manifest.timing.output - manifest.timing.commit) * block_s
    return round(wire * (reducers - 1) / reducers / (0.5 * seconds), 1)
