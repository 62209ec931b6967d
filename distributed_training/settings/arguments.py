"""Command lines of everything but a node (a node's flags: flags.py): what is wrong is said in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from distributed_training import addresses, paths
from distributed_training.errors import ConfigError
from distributed_training.settings.flags import nearest
from distributed_training.settings.places import HubRepo, parse_place

T = TypeVar("T")
CACHE = "~/.cache/distributed-training"


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


def duration(text: str) -> float:
    """An argument's type: `30m`, `2h` or `1d`, in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 30m, 2h or 1d, not {text!r}")
    return float(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]]


def _said(convert: Callable[[str], T]) -> Callable[[str], T]:
    """An argument's type of a function that raises ConfigError: its line is argparse's, which adds the flag."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


any_path = _said(paths.typed)
file = _said(lambda text: paths.existing_file(paths.typed(text)))
folder = _said(lambda text: paths.existing_folder(paths.typed(text)))
file_or_folder = _said(lambda text: paths.existing(paths.typed(text)))
new_folder = _said(lambda text: paths.usable_folder(paths.typed(text)))  # or one that is there
new_file = _said(lambda text: paths.new_file(paths.typed(text)))
file_name = _said(paths.file_name)
chain = _said(lambda text: addresses.chain_node(text) if "://" in text else text)  # or a network by its name
endpoint = _said(addresses.chain_node)


def place(text: str) -> HubRepo | Path:
    """An argument's type: a folder, or hub:ORG/NAME[@REVISION]."""
    try:
        return parse_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def chain_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Those of every command that asks a chain and has no node. default: network if none is named; None: no chain."""
    add = parser.add_argument
    shown = "no chain is asked" if default is None else default
    help_ = f"network by name: finney, test, local (default: {shown})"
    add("--subtensor.network", dest="network", default=default, metavar="NAME", help=help_)
    help_ = "chain node to ask instead, ws://HOST:PORT, or file:PATH of a local chain"
    add("--subtensor.chain_endpoint", dest="endpoint", type=endpoint, metavar="URL", help=help_)


def checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every command that is about a published checkpoint."""
    add = parser.add_argument
    where = "ORG/NAME on the Hub, or a folder: one checkpoint, or all (default: RUN_DIR/checkpoints)"
    add("place", metavar="REPO_OR_DIR", nargs="?", help=where)
    add("--revision", metavar="TAG", help="tag, branch or commit on the Hub (default: main)")
    add("--run-dir", type=folder, metavar="DIR", help="folder of the run: its manifest.json is trusted")
    add("--cache", type=any_path, metavar="DIR", help=f"where fetched files stay (default: {CACHE})")
