"""The text of the learning runs: this Python's standard library as bytes, cut into sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed_training.data.corpus import read_corpus
from distributed_training.data.tokens import cut, load_tokenizer, packed

Tokens = npt.NDArray[np.int64]
HELDOUT_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Text:
    """Sequences of one length. The held-out ones come from other documents than those trained on."""

    train: npt.NDArray[Any]  # [n, T], as packed
    heldout: Tokens  # [m, T]

    def sequences(self, seed: int, first: int, count: int) -> Tokens:
        """[count, T], from place `first` on of the seed's endless order: each epoch a shuffle of its own."""
        places = np.arange(first, first + count)
        epochs, places = places // len(self.train), places % len(self.train)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            order = np.random.default_rng([seed, int(epoch)]).permutation(len(self.train))
            rows[epochs == epoch] = order[places[epochs == epoch]]
        return self.train[rows].astype(np.int64)


def read_text(length: int, heldout_sequences: int, max_bytes: int) -> Text:
    """About the first `max_bytes` of the library's text, in the page builder's order of documents."""
    with read_corpus(None, max_bytes) as corpus:
        documents = [document.text for document in corpus.documents()]
    tokenizer, first = load_tokenizer("bytes"), int(len(documents) * HELDOUT_SHARE)
    train = cut(packed(documents[first:], tokenizer), length)[0]
    heldout = cut(packed(documents[:first], tokenizer), length)[0]
    return Text(train, heldout[:heldout_sequences].astype(np.int64))
