"""Config files as documents: which of their names any code reads, numbers that JSON has no word for, differences.

A published file has fields from many programs. Whether one has an effect is asked of the code that could read it, not
of a list.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

from distributed_training.training.bounds import MAX_INTEGER

_LIBRARY = "transformers."
_SPECIAL = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_TAG = "__float__"  # how transformers itself writes them: {"__float__": "Infinity"}
_ALIKE, _ALIKE_WORD = 0.9, 0.7
_LONGEST = 80


def names_read(*classes: type) -> frozenset[str]:
    """Every name that the source of these classes, and what their modules use of the library, could read of a config:
    attributes and strings. More than is really read, never less but for names that are put together."""
    own = {sys.modules[base.__module__] for cls in classes for base in cls.__mro__ if _ours(base.__module__)}
    used = {name for module in own for name in _uses(module)}
    return frozenset().union(*(_names(module.__name__) for module in own), *(_names(name) for name in used))


def near(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that is spelled almost like this one, word by word."""
    alike = difflib.get_close_matches(name, set(known), n=3, cutoff=_ALIKE)
    return next((other for other in alike if _same_words(name.split("_"), other.split("_"))), None)


def shown(name: str) -> str:
    """A name from a file in a line for a person."""
    return name if name.isprintable() and len(name) <= _LONGEST else f"{ascii(name)[:_LONGEST]}..."


def plain(value: Any) -> Any:
    """As JSON has it: lists, strings as keys, and a number that is not finite as transformers writes it."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return next(({_TAG: name} for name, special in _SPECIAL.items() if repr(special) == repr(value)), value)
    return value


def numbers(value: Any, name: str = "") -> Any:
    """The other way round. A large integer that is a base of rotations becomes the same float: it counts nothing."""
    if isinstance(value, dict):
        if value.keys() == {_TAG} and str(value[_TAG]) in _SPECIAL:
            return _SPECIAL[str(value[_TAG])]
        return {key: numbers(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item, name) for item in value]
    if type(value) is int and MAX_INTEGER < value < 1 << 53 and ("theta" in name or "base" in name):
        return float(value)
    return value


def difference(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two documents differ, by its path, and both values; None: they say the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            found = difference(one.get(key, "nothing"), other.get(key, "nothing"), f"{path}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if one == other else (path, one, other)


def _same_words(one: list[str], other: list[str]) -> bool:
    """But for slips: `bos` is not `eos`. Where a word is cut in two, nothing is said of it."""
    pairs = zip(one, other, strict=False)
    return len(one) != len(other) or all(difflib.SequenceMatcher(None, *p).ratio() >= _ALIKE_WORD for p in pairs)


def _ours(module: str) -> bool:
    return module.startswith(_LIBRARY)


def _uses(module: ModuleType) -> Iterator[str]:
    """Modules of the library that this one took something from, but for tools that serve everything."""
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and _ours(name) and not name.startswith(("transformers.utils", "transformers.gener")):
            yield name


@cache
def _names(module: str) -> frozenset[str]:
    try:
        nodes = list(ast.walk(ast.parse(inspect.getsource(sys.modules[module]))))
    except (OSError, TypeError, KeyError):  # no source: nothing is known of it
        return frozenset()
    said = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    said |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    said |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return frozenset(name for name in said if name.isidentifier())
