"""A run from what a person chose: the one path of the demo and of `scripts/create_run.py`.

Mistakes that can be seen without the text come first. What nobody chose is then fitted to the text, with a line that
says so; what somebody did choose and the text cannot give is refused with the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distributed_training.data import tokens
from distributed_training.data.reading import TablePages
from distributed_training.data.tokens import Tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.recipes.build import (
    NOTHING_ASKED,
    First,
    check_timing,
    choose_tokenizer,
    draft_manifest,
    make_manifest,
    model_size,
    of_uplink,
    try_model,
)
from distributed_training.recipes.naming import default_name, name_problem
from distributed_training.recipes.reading import Preset
from distributed_training.recipes.subnet_fit import check_start, check_subnet
from distributed_training.recipes.timing import Asked
from distributed_training.settings.flags import find, merge

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts  # alone: it loads bittensor

Say = Callable[[str], None]
FEW_STEPS = 8  # a smaller batch is taken before a uid does fewer steps a round than this
_SURE = 0.9  # of the tokens that the held-out text promises for a page of as many bytes


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person chose. `overrides` are fields of the manifest: they stay as they are, or are refused."""

    preset: Preset
    model: Mapping[str, Any]
    tokenizer: Tokenizer
    seed: int
    overrides: Mapping[str, Any]
    steps: int | None = None  # inner steps a round of the fastest miner; None: the nominal ones
    asked: Asked = NOTHING_ASKED
    expected_reducers: int | None = None  # None: the preset's
    facts: SubnetFacts | None = None  # of the subnet where it will be, if a chain was asked
    start: First | None = None  # what the run begins with; None: seeded numbers


class NamedTokenizer(NamedTuple):
    tokenizer: Tokenizer
    file: Path | None  # its tokenizer.json, which every node needs; None: it is shipped


class Created(NamedTuple):
    manifest: RunManifest
    parameters: int
    steps: int  # a round that the pages allow to each uid


class Supply(NamedTuple):
    """What a page set holds for everybody, in tokens of the run's tokeniser."""

    heldout: int
    each_uid: int  # in every round, whichever pages it draws
    most_uid: int  # no uid draws more
    text_bytes: int  # of all pages
    bytes_per_token: float


def find_tokenizer(
    named: str | None, eos: int | str | None, pages: Path | None, model: Mapping[str, Any]
) -> NamedTokenizer:
    """The one that was named, or lies beside the `pages`, or fits the model. Raises ConfigError."""
    beside = None if pages is None else pages / tokens.TOKENIZER_FILE
    if named is None and beside is not None and beside.is_file():
        named = str(beside)
    if named is None and eos is not None:
        raise ConfigError(f"--eos {eos}: it is for a tokenizer.json, name one with --tokenizer")
    chosen = tokens.choose(named or choose_tokenizer(model), eos)
    return NamedTokenizer(chosen, tokens.tokenizer_path(named) if named and chosen.kind == "file" else None)


def create_manifest(choices: Choices, open_pages: Callable[[], TablePages], say: Say) -> Created:
    """The manifest of the run that was chosen, over the pages that `open_pages` builds or finds; each line of `say` is
    something that the person may not expect. Raises ConfigError, in one line, and DataUnavailable."""
    preset, asked = choices.preset, choices.asked
    draft = draft_manifest(preset, choices.model, choices.tokenizer, choices.overrides, asked=asked)
    if choices.facts is None:
        check_timing(draft, asked.tempo or preset.tempo)
    else:
        check_start(draft, choices.facts)
        check_subnet(draft, choices.facts)
    if (line := _of_uplink(draft, choices)) is not None:
        say(line)
    size = model_size(draft.model.config)
    overrides = {**choices.overrides, "name": _name(draft, choices, size, say)}
    if (loss := tokens.loss_of_text(choices.tokenizer)) is not None:
        say(f"note: {loss}")
    tried = try_model(choices.model, draft, choices.seed, say, choices.start)
    pages = open_pages()
    has = supply(pages, choices.tokenizer, draft.max_uids)
    manifest = make_manifest(
        preset,
        choices.model,
        pages,
        init_seed=choices.seed,
        tokenizer=choices.tokenizer,
        overrides=merge(fitted(draft, choices, has, say), overrides),
        expected_reducers=choices.expected_reducers or (asked.expect or preset.expect).reducers,
        asked=asked,
        tried=tried,
    )
    return Created(manifest, size, has.each_uid // manifest.tokens_per_step)


def _of_uplink(draft: RunManifest, choices: Choices) -> str | None:
    """What goes with the codec that miners send with, unless somebody chose it."""
    table = of_uplink(choices.preset, choices.overrides)
    keys = [f"{section}.{key}" for section, fields in table.items() for key in fields]
    taken = [f"{key} {find(table, key):g}" for key in keys if find(choices.overrides, key) is None]
    if not taken:
        return None
    return f"note: {', '.join(taken)}: measured for average.uplink {draft.average.uplink} (docs/codecs.md)"


def _name(draft: RunManifest, choices: Choices, size: int, say: Say) -> str:
    """The chosen one; the preset's, unless that is another model's. Raises ConfigError for a chosen one that is."""
    model_type = draft.model.config["model_type"]
    problem = name_problem(draft.name, model_type, size)
    if problem is None:
        return draft.name
    if "name" in choices.overrides:
        raise ConfigError(f"{problem}; choose a name that fits it")
    name = default_name(model_type, size)
    say(f"note: the run is called {name}, because the preset's {problem}")
    return name


def supply(pages: TablePages, tokenizer: Tokenizer, max_uids: int) -> Supply:
    """By the bytes of text that the page manifest names (where it does not, of compressed text) and by what the
    tokeniser makes of the held-out set. Raises DataUnavailable."""
    heldout = pages.heldout()
    num_tokens = len(tokens.packed(heldout, tokenizer))
    text_bytes = max(1, sum(len(document.encode()) for document in heldout))
    columns, pieces = pages.table.columns, pages.table.header.heldout
    ratio = text_bytes / sum(piece.length for piece in pieces)
    sizes = np.where(columns.text_bytes > 0, columns.text_bytes, columns.length * ratio)
    fewest = pages.num_pages // max_uids
    by_size = np.sort(sizes)
    least, largest = float(by_size[:fewest].sum()), float(by_size[-fewest - 1 :].sum())
    per_token = text_bytes / num_tokens / _SURE
    most = math.ceil(largest / per_token / _SURE**2)
    return Supply(num_tokens, int(least / per_token), most, int(sizes.sum()), per_token)


def fitted(draft: RunManifest, choices: Choices, has: Supply, say: Say) -> dict[str, Any]:
    """Fields, other than the preset's, with which the text suffices; those that were chosen are not among them. Raises
    ConfigError when there are none."""
    heldout = _fit_heldout(draft, choices.overrides, has, say)
    steps = _fit_steps(draft, choices, has, say)
    batch = steps.get("data", {}).get("batch_size", draft.data.batch_size)
    most = min(draft.inner.max_steps, max(1, has.most_uid // (batch * draft.data.sequence_length)))
    if "max_steps" in choices.overrides.get("inner", {}) or most < draft.inner.nominal_steps:
        most = draft.inner.max_steps
    return merge({"data": {"heldout_sequences": heldout}, "inner": {"max_steps": most}}, steps)


def _fit_heldout(draft: RunManifest, overrides: Mapping[str, Any], has: Supply, say: Say) -> int:
    length, wanted = draft.data.sequence_length, draft.data.heldout_sequences
    count = has.heldout // length
    if count < 1 or (wanted > count and "heldout_sequences" in overrides.get("data", {})):
        raise ConfigError(
            f"data.heldout_sequences is {wanted}, but the held-out text has {has.heldout:,} tokens, {count} sequences "
            f"of {length}: choose at most so many, a shorter data.sequence_length, or more text"
        )
    if wanted > count:
        say(f"note: data.heldout_sequences is {count}, not {wanted}: the held-out text has no more of {length} tokens")
    return min(wanted, count)


def _fit_steps(draft: RunManifest, choices: Choices, has: Supply, say: Say) -> dict[str, Any]:
    length, batch, nominal = draft.data.sequence_length, draft.data.batch_size, draft.inner.nominal_steps
    batch_chosen = "batch_size" in choices.overrides.get("data", {})
    steps_chosen = choices.steps is not None or "nominal_steps" in choices.overrides.get("inner", {})
    steps = choices.steps or nominal
    if has.each_uid >= steps * batch * length:
        return {}
    least = steps if steps_chosen else min(FEW_STEPS, steps)
    while not batch_chosen and batch > 1 and has.each_uid < least * batch * length:
        batch //= 2
    possible = min(steps, has.each_uid // (batch * length))
    if possible < (steps if steps_chosen else 1):
        raise ConfigError(_too_little(draft, batch, steps if steps_chosen else 1, has))
    changed = {"batch_size": (draft.data.batch_size, batch)} | ({} if steps_chosen else {"steps": (steps, possible)})
    told = ", ".join(f"{name} {now}, not {was}" for name, (was, now) in changed.items() if now != was)
    say(
        f"note: {told}: the text has {has.each_uid:,} tokens a round for each of {draft.max_uids} uids; more text or "
        "fewer uids (max_uids) allow more"
    )
    return {"data": {"batch_size": batch}} | ({} if steps_chosen else {"inner": {"nominal_steps": possible}})


def _too_little(draft: RunManifest, batch: int, steps: int, has: Supply) -> str:
    length = draft.data.sequence_length
    needed = steps * batch * length
    there, more = has.text_bytes / 1e6, needed * has.bytes_per_token * draft.max_uids / 1e6
    if has.each_uid:  # held-out text and whole pages take their part
        more = max(more, there * needed / has.each_uid)
    return (
        f"too little text: {has.each_uid:,} tokens a round for each of {draft.max_uids} uids, but {steps} steps of "
        f"{batch} x {length} tokens need {needed:,}; expected about {more:,.1f} MB of text, not {there:,.1f}, or fewer "
        "uids (max_uids), fewer steps (inner.nominal_steps), smaller batches (data.batch_size, data.sequence_length)"
    )
