"""Published states of a run as models that write. Behind scripts/sample.py, the page's box and the benchmarks."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
from torch import nn

from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.checkpoints.description import run_name, tag_name
from distributed_training.data.tokens import Tokenizer, load_tokenizer
from distributed_training.errors import ConfigError, LocalFault
from distributed_training.operator.verify import verified_state, verify_files
from distributed_training.protocol.manifest import RunManifest
from distributed_training.roles.joining.published import TOKENIZER_FILE
from distributed_training.training.device import out_of_memory
from distributed_training.training.flat import load_flat
from distributed_training.training.generate import Sampling, generate
from distributed_training.training.model import run_model

EARLIER = 10  # rounds: what a state is compared with
KEPT = 2  # states of a `States`


@dataclass(frozen=True, slots=True)
class State:
    """A published state whose files and state root were verified, ready to write on its device."""

    round: int  # the state at the start of this round
    location: str
    root: str  # hex
    manifest: RunManifest
    model: nn.Module
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        """As many ids as training shows it at once."""
        return self.manifest.data.sequence_length

    @property
    def tag(self) -> str:
        return tag_name(run_name(self.manifest.name, self.manifest.sha256), self.round)


@dataclass(frozen=True, slots=True)
class Written:
    text: str  # what came after the prompt
    num_tokens: int
    seconds: float
    num_cut: int  # ids of the prompt, at its start, for which the context has no room
    stopped: str  # end: the model ended the document; length, time; asked: by `stop`

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / max(self.seconds, 1e-9)


class States:
    """The last two that were asked for stay loaded. One caller at a time."""

    def __init__(self, store: CheckpointStore, given: RunManifest | None, device: str) -> None:
        """given: the manifest that the asker trusts; None: the checkpoint's own."""
        self._store, self._given, self._device = store, given, device
        self._loaded: dict[bytes, State] = {}

    def load(self, ref: CheckpointRef) -> State:
        """Blocking: it may fetch gigabytes. Raises WireError, LocalFault, ConfigError."""
        state = self._loaded.pop(ref.digest, None) or self._read(ref)
        self._loaded[ref.digest] = state  # the newest last
        for digest in list(self._loaded)[:-KEPT]:
            del self._loaded[digest]
        return state

    def _read(self, ref: CheckpointRef) -> State:
        _check_memory(sum(facts.num_bytes for facts in self._store.describe(ref).files.values()))
        _, opened = verify_files(self._store, ref, self._given)
        manifest = opened.manifest
        tokenizer = load_tokenizer(manifest.data.tokenizer, opened.folder / TOKENIZER_FILE, manifest.data.eos_id)
        model = run_model(manifest.model)
        load_flat(model, verified_state(opened).params)
        root = opened.described.state_root
        return State(ref.round, ref.location, root, manifest, model.to(self._device), tokenizer)


def earlier(rounds: Sequence[int], newest: int) -> int | None:
    """Of `rounds` the last one that is EARLIER before `newest`, or else the oldest before it."""
    before = sorted(r for r in rounds if r < newest)
    return max((r for r in before if r <= newest - EARLIER), default=next(iter(before), None))


def write(
    state: State,
    prompt: str,
    sampling: Sampling,
    max_tokens: int,
    *,
    limit_s: float = float("inf"),
    stop: Callable[[], bool] = lambda: False,
    on_text: Callable[[str], None] = lambda text: None,
) -> Written:
    """What the state writes after `prompt`, as after the start of a document. on_text: the same, piece by piece.

    `limit_s` and `stop` are looked at before each token. Threads may share a state. Raises ConfigError for a prompt
    that the tokeniser cannot take, LocalFault.
    """
    ids = [state.tokenizer.eos, *encoded(state.tokenizer, prompt)]
    written, shown, stopped = list[int](), "", "length"
    began = time.monotonic()
    vocab_size = state.tokenizer.vocab_size
    tokens = generate(state.model, ids, sampling, vocab_size=vocab_size, context=state.context)
    while len(written) < max_tokens:
        if stop():
            stopped = "asked"
        elif time.monotonic() - began > limit_s:
            stopped = "time"
        elif (drawn := _next(tokens)) == state.tokenizer.eos:
            stopped = "end"
        if stopped != "length":
            break
        written.append(drawn)
        whole = state.tokenizer.decode(written).rstrip("\ufffd")  # a character of which a part is still to come
        on_text(whole[len(shown) :])
        shown = whole
    text = state.tokenizer.decode(written)
    on_text(text[len(shown) :])
    return Written(text, len(written), time.monotonic() - began, max(0, len(ids) - state.context), stopped)


def _next(tokens: Iterator[int]) -> int:
    try:
        return next(tokens)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise LocalFault(
                "too little memory for the model to write; give --device cpu, or another machine"
            ) from None
        raise


def encoded(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Raises ConfigError for a prompt that the tokeniser would lose something of."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError("prompt: expected text, these bytes are none (UTF-8 is expected)") from None
    ids = tokenizer.encode(prompt)
    lost = sorted(_letters(prompt) - _letters(tokenizer.decode(ids)))
    if lost:
        shown = " ".join(lost[:10])
        raise ConfigError(f"prompt: the run's tokenizer has nothing for {shown!r}; leave such characters out")
    return ids


def _letters(text: str) -> set[str]:
    """Its characters, whatever a tokeniser may make of case, accents and spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return {c for c in plain if c.isprintable() and c != " " and not unicodedata.combining(c)}


def _check_memory(num_bytes: int) -> None:
    """num_bytes: of the files; beside both vectors of a state, the model is held."""
    needed, free = 2 * num_bytes, psutil.virtual_memory().available
    if needed > free:
        raise LocalFault(f"to load it takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
