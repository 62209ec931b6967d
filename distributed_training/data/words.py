"""Made-up text for simulations, benchmarks and tests: learnable, and the same for the same source."""

from __future__ import annotations

import random
from pathlib import Path

_WORDS = 60
_WORDS_A_DOCUMENT = 30  # about 150 characters


def write_words(directory: Path, source: random.Random, documents: int) -> None:
    """Make `directory` with `documents` files of words drawn from a skewed distribution."""
    words = ["".join(source.choices("etaoinshrdlu", k=source.randint(2, 7))) for _ in range(_WORDS)]
    directory.mkdir(parents=True)
    for number in range(documents):
        drawn = [words[min(int(source.expovariate(0.15)), _WORDS - 1)] for _ in range(_WORDS_A_DOCUMENT)]
        (directory / f"{number:05d}.txt").write_text(" ".join(drawn))
