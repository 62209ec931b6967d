"""One line for whatever goes wrong in a model's own code: a config can make any line of it fail.

What that code says beside is left out: of ids that no run uses, of kernels for other machines.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed_training.errors import ConfigError

_SIZE = re.compile("head|(?<!chunk_)size|layer|dim|embd|width|inner")
_POSITIONS = re.compile("position|ctx|seq_len|max_len|max_seq")
_LONGEST = 200


@contextmanager
def in_one_line(what: str, config: Any, length: int | None = None, *, where: str = "model.config") -> Iterator[None]:
    """Raises ConfigError for any other exception: what failed, why, and what in the config could be it:
    sizes of nothing, and for `length` tokens what it says of positions."""
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ConfigError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"
        hints = [f"{name} is {value!r:.80}" for name, value in _values(config) if _suspect(name, value, length, error)]
        more = f" ({', '.join(hints[:4])})" if hints else ""
        raise ConfigError(f"{where}: {what}: {text}{more}") from None
    finally:
        library.setLevel(level)


def _suspect(name: str, value: object, length: int | None, error: Exception) -> bool:
    if type(value) is int:
        return (value <= 0 and bool(_SIZE.search(name))) or (length is not None and bool(_POSITIONS.search(name)))
    return isinstance(error, KeyError) and value in error.args  # a choice that there is not


def _values(config: Any) -> Iterator[tuple[str, int | str]]:
    """Numbers and texts in it, by their path."""
    for name, value in (config if isinstance(config, dict) else vars(config)).items():
        if type(value) is int or isinstance(value, str):
            yield name, value
        elif isinstance(value, dict) or hasattr(value, "to_diff_dict"):
            yield from ((f"{name}.{inner}", item) for inner, item in _values(value))
