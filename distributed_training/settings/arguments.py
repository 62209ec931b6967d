"""Command lines of everything but a node (a node's flags: config_flags.py): what is wrong is said in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from distributed_training.errors import ConfigError
from distributed_training.settings.flags import nearest
from distributed_training.settings.places import HubRepo, parse_place


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and end; flags are not abbreviated, texts not wrapped."""

    def __init__(self, **options: Any) -> None:
        plain = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**plain | options)

    def error(self, message: str) -> NoReturn:
        match = re.match(r"unrecognized arguments: (\S+)", message)
        known = [flag for action in self._actions for flag in action.option_strings]
        if match:
            message = f"unknown option {match[1]}{nearest(match[1].split('=')[0], known)}"
        raise ConfigError(f"{message} (--help lists all options)")


def whole(low: int, high: int, what: str) -> Callable[[str], int]:
    """An argument's type: a whole number from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {what}, a whole number from {low} to {high}, not {text!r}")
        return value

    return convert


def real(low: float, high: float, what: str) -> Callable[[str], float]:
    """An argument's type: a number from `low` to `high`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {what} from {low:g} to {high:g}, not {text!r}")
        return value

    return convert


def place(text: str) -> HubRepo | Path:
    """An argument's type: a folder, or hub:ORG/NAME[@REVISION]."""
    try:
        return parse_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def new_file(text: str) -> Path:
    """An argument's type: a file to be written, in a folder that is there."""
    path = Path(text).expanduser()
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: the folder does not exist")
    return path
