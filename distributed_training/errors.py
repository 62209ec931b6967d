"""The error tree. The type says whose fault it is; the message says what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EXPECTED = {
    "bool": "expected true or false",
    "dict": "expected a table of names and values",
    "extra": "there is no such name here",
    "finite": "expected a finite number",
    "float": "expected a number",
    "int": "expected a whole number",
    "list": "expected a list",
    "missing": "it is missing",
    "model": "expected a table of names and values",
    "string": "expected a text",
    "tuple": "expected a list",
}  # by the first word of pydantic's name of a problem
_LIMITS = {
    "greater_than_equal": ("ge", "expected a number greater than or equal to"),
    "greater_than": ("gt", "expected a number greater than"),
    "less_than_equal": ("le", "expected a number of at most"),
    "less_than": ("lt", "expected a number less than"),
    "string_too_long": ("max_length", "expected a text of a length of at most"),
    "string_too_short": ("min_length", "expected a text of a length of at least"),
}


def said(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing. For every line that tells of one."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line) or type(error).__name__


def on_one_line(text: str) -> str:
    """Words of others can neither begin a line of their own nor command a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def named(error: BaseException) -> str:
    """Its type, then what it says: for errors of libraries, whose text alone may tell little."""
    name, text = type(error).__name__, said(error)
    return name if text == name else f"{name}: {text}"


def expected(problem: Mapping[str, Any]) -> str:
    """One of the problems that pydantic found, in our words."""
    kind, details = str(problem["type"]), problem.get("ctx", {})
    if kind == "value_error":  # raised by a validator of ours
        return str(problem["msg"]).removeprefix("Value error, ")
    if kind == "literal_error":
        return f"expected {details['expected']}"
    if kind in _LIMITS:
        name, text = _LIMITS[kind]
        return f"{text} {details[name]}"
    return _EXPECTED.get(kind.partition("_")[0], str(problem["msg"]))


class DistributedTrainingError(Exception):
    """Root of every error this project raises on purpose."""

    def __str__(self) -> str:
        return super().__str__() or type(self).__name__


class ConfigError(DistributedTrainingError, ValueError):
    """The user's input is wrong: a flag, a file, a manifest. Entry points print it and exit with `exit_code`."""

    exit_code = 2


class NotRegisteredError(ConfigError):
    """The hotkey has no uid on the subnet. The message holds the command that registers it."""

    exit_code = 3


class LocalFault(DistributedTrainingError):
    """Our own trouble: disk, memory, clock, data source. Never an observation about a peer."""


class OutOfMemory(LocalFault):
    """This machine or its accelerator has too little memory for what was tried. `retry`: less will be tried next."""

    def __init__(self, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.retry = retry


class DeviceLost(LocalFault):
    """The accelerator failed: this process can use it no more, a new one may. The message holds what mends it."""


class StateDiverged(LocalFault):
    """Our state is not the majority's: what is left is to recompute it, or to join again."""


class SlicesMissing(StateDiverged):
    """Nobody gave us what counts: our state cannot be brought forward."""


class HotkeyTaken(LocalFault):
    """Another process runs our hotkey, and announced itself after us. The message says which."""


class DataUnavailable(LocalFault):
    """A page could not be read or does not hash to what the page manifest says."""


class ChainFault(LocalFault):
    """The chain could not be reached or answered something we cannot read.

    passes: the same call may work a block later.
    """

    passes = False


class ChainUnreachable(ChainFault):
    """Nobody answered: an outage, which ends. What was to be written may have been."""

    passes = True


class StatePruned(ChainFault):
    """The chain node has dropped the state of a block that old. The message says which flag mends it."""


class ChainReplaced(LocalFault):
    """What answers is not the chain that this node knows: a block that was final has another hash."""


class ChainRefused(ChainFault):
    """The chain refused a write; `code` is the SDK's error code value (`rate_limited`, `not_registered`...).

    It passes where the pool is busy, an earlier write of ours is in the way, or a rate limit ends.
    """

    def __init__(self, message: str, code: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.code, self.passes = code, passes


class PeerFault(DistributedTrainingError):
    """A peer sent or did something that the protocol forbids."""


class WireError(PeerFault, ValueError):
    """Foreign bytes that do not decode: wrong length, tag, digest or a non-finite number."""


class NetworkFault(DistributedTrainingError):
    """Nobody's fault that we can name: a connection broke, nothing came in time."""


class DeadlineMissed(NetworkFault):
    """A read, a write or a whole exchange did not end in the time it had."""


def first_of(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first error in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
