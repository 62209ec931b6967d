"""The run that another one goes on with: its newest checkpoint, proven against its state root, and its constants."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distributed_training.data.tokens import TOKENIZER_FILE
from distributed_training.errors import ConfigError, LocalFault, WireError, said
from distributed_training.operator.published import find
from distributed_training.operator.verify import verified_state, verify_files
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.protocol.types import Carry
from distributed_training.recipes.build import First
from distributed_training.recipes.reading import Preset
from distributed_training.settings.places import PREFIX, parse_place
from distributed_training.training.outer import RunState

# Of the former manifest, these follow anew or belong to it alone.
_FOLLOW_ANEW = ("protocol_version", "model", "continues")
_DATA_ANEW = ("tokenizer", "tokenizer_sha256", "eos_id", "pages_sha256", "num_pages")


@dataclass(frozen=True, slots=True, eq=False)
class Former:
    manifest: RunManifest
    round: int  # the state at the start of this round
    state: RunState
    folder: Path  # of the checkpoint
    pages: Path | None  # beside it, if they are

    @property
    def tokenizer(self) -> tuple[str, int | None]:
        """As `find_tokenizer` takes it."""
        data = self.manifest.data
        return (data.tokenizer, None) if data.tokenizer != "file" else (str(self.folder / TOKENIZER_FILE), data.eos_id)

    @property
    def bandwidth(self) -> dict[str, Any]:
        """What was asked of links, which is right as long as the round's length is."""
        return {"scoring": {"goodput_required": self.manifest.scoring.goodput_required}}

    def preset(self, other: Preset) -> Preset:
        """The former constants; `other` says what a manifest does not: of the chain, and of other optimisers."""
        m = self.manifest
        sections: dict[str, Any] = {k: v for k, v in m.model_dump().items() if k not in _FOLLOW_ANEW}
        sections["data"] = {k: v for k, v in sections["data"].items() if k not in _DATA_ANEW}
        del sections["scoring"]["goodput_required"], sections["timing"]["first_block"]
        sections["continues"] = m.sha256
        optimizers = {**other.optimizers, m.inner.optimizer: {}}
        return replace(other, name=m.name, model=m.model.config, optimizers=optimizers, sections=sections)

    def first(self, nominal_steps: int) -> First:
        """Round 0 of a run with so many nominal steps: parameters, momentum and clip threshold as they were, the
        learning-rate clock where it stood. Whose slices failed is of the former miners."""
        former = self.manifest

        def first(model: nn.Module, draft: RunManifest) -> tuple[RunState, Sequence[str]]:
            applied = round(self.state.applied * former.inner.nominal_steps / nominal_steps)
            kept = draft.outer.momentum == former.outer.momentum
            momentum = self.state.momentum if kept else np.zeros_like(self.state.momentum)
            state = RunState(self.state.params, momentum, applied, Carry(self.state.carry.tau, ()))
            notes = [
                f"goes on with round {self.round} of run {former.name} ({former.sha256[:16]}), after "
                f"{self.state.applied} applied rounds of {former.inner.nominal_steps} nominal steps: the learning-rate "
                f"clock begins at step {applied * nominal_steps:,}"
            ]
            if not kept:
                notes.append("outer momentum begins at zero, because outer.momentum is another one")
            return state, notes

        return first


def find_former(place: str) -> Former:
    """`place`: a run directory, a manifest beside its checkpoints or with a public place of them, a folder with
    checkpoints, or hub:ORG/NAME[@REVISION]. Raises ConfigError, in one line."""
    options, given = _options(place)
    try:
        store, ref = find(options)
        described = store.describe(ref)
        _, opened = verify_files(store, ref, given or _manifest_of(options))
        state = verified_state(opened)
    except ConfigError as error:
        raise ConfigError(f"--continue {place}: {said(error)}") from None
    except (WireError, LocalFault) as error:
        raise ConfigError(
            f"--continue {place}: {said(error)}; --start takes the parameters of any checkpoint, and nothing else"
        ) from None
    pages = None if options.run_dir is None else options.run_dir / "pages"
    there = pages if pages is not None and pages.is_dir() else None
    return Former(opened.manifest, described.round, state, opened.folder, there)


def _options(place: str) -> tuple[argparse.Namespace, RunManifest | None]:
    """As `operator.published.find` takes them; the manifest where one was named."""
    try:
        named = parse_place(place)
    except ValueError as error:
        raise ConfigError(f"--continue {place}: {error}") from None
    manifest = None
    if isinstance(named, Path) and named.is_file():
        manifest = load_manifest(named)
        beside = named.parent / "checkpoints"
        if not beside.is_dir() and not manifest.public.checkpoints:
            raise ConfigError(f"--continue {place}: no checkpoints beside it, and it names no place of them")
        named = named.parent if beside.is_dir() else parse_place(manifest.public.checkpoints)
    options = argparse.Namespace(place=str(named), run_dir=None, revision=None, cache=None)
    if isinstance(named, Path) and (named / "checkpoints").is_dir():
        options.place, options.run_dir = None, named
    options.place = None if options.place is None else options.place.removeprefix(PREFIX)
    return options, manifest


def _manifest_of(options: argparse.Namespace) -> RunManifest | None:
    path = None if options.run_dir is None else options.run_dir / "manifest.json"
    return None if path is None or not path.is_file() else load_manifest(path)
