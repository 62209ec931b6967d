"""Command lines of everything but a node (a node's flags: flags.py): what is wrong is said in one line."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from distributed_training import addresses, paths
from distributed_training.errors import ConfigError, on_one_line
from distributed_training.settings.places import HubRepo, parse_place
from distributed_training.settings.words import WIDTH, nearest, reflowed

T = TypeVar("T")
CACHE = "~/.cache/distributed-training"
EXIT_CODES = "exit codes: 0 done, 1 trouble of this machine, 2 wrong input, 130 stopped"
MOST_IN_USAGE = 6  # options that the first line of a help names


class Once(argparse.Action):
    """Takes one value, once: argparse keeps the last of several and says nothing."""

    given: object = None

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        if option is not None:
            if self.given is not None:
                raise argparse.ArgumentError(
                    self, f"given twice ({_short(self.given)} and {_short(values)}); it takes one value"
                )
            self.given = values
        setattr(namespace, self.dest, values)


def _short(value: object) -> str:
    text = on_one_line(str(value))
    return text if len(text) <= 40 else f"{text[:40]}..."


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and end; flags are not abbreviated.

    Its help is what it is for, `examples`, the options by `group`, `epilog`, exit codes. Prose is filled; what is
    indented keeps its lines.
    """

    def __init__(self, description: str = "", *, examples: str = "", epilog: str = "", **options: Any) -> None:
        parts = [reflowed(description), f"examples:\n{examples.rstrip()}" if examples else ""]
        ending = [reflowed(epilog), "" if "exit code" in epilog else EXIT_CODES]
        super().__init__(
            description="\n\n".join(filter(None, parts)),
            epilog="\n\n".join(filter(None, ending)),
            formatter_class=_layout,
            allow_abbrev=False,
            add_help=False,
            **options,
        )
        self.register("action", None, Once)
        self.register("action", "store", Once)
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)

    def group(self, title: str) -> Callable[..., argparse.Action]:
        """What adds an option to those under `title`, which a person reads in the order in which they are made."""
        return self.add_argument_group(title).add_argument

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for action in self._actions:
            if isinstance(action, Once):
                action.given = None
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        if self.usage is None and len(self._actions) > MOST_IN_USAGE:
            named = [a for a in self._actions if not a.option_strings or a.required]
            words = [" ".join([*a.option_strings[:1], str(a.metavar)]) for a in named]
            optional = [word if a.required else f"[{word}]" for a, word in zip(named, words, strict=True)]
            self.usage = " ".join(["%(prog)s", *optional, "[options]"])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        match = re.match(r"unrecognized arguments: (\S+)", message)
        known = [flag for action in self._actions for flag in action.option_strings]
        if match:
            message = f"unknown option {match[1]}{nearest(match[1].split('=')[0], known)}"
        raise ConfigError(f"{message} (--help lists all options)")


def _layout(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=WIDTH)


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


def assignment(text: str) -> dict[str, Any]:
    """An argument's type: `a.b=1`, as {"a": {"b": 1}}; the value is JSON, or text if it is not."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, for example timing.length=150, not {text!r}")
    try:
        parsed: Any = json.loads(value)
    except ValueError:
        parsed = value
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def constant(text: str) -> str:
    """An argument's type: an `assignment` that is kept as it was typed."""
    assignment(text)
    return text


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


def chain_arguments(parser: Parser, default: str | None) -> None:
    """Those of every command that asks a chain and has no node. default: network if none is named; None: no chain."""
    add = parser.group("which chain")
    shown = "no chain is asked" if default is None else default
    help_ = f"network by name: finney, test, local (default: {shown})"
    add("--subtensor.network", dest="network", default=default, metavar="NAME", help=help_)
    help_ = "chain node to ask instead, ws://HOST:PORT, or file:PATH of a local chain"
    add("--subtensor.chain_endpoint", dest="endpoint", type=endpoint, metavar="URL", help=help_)


def checkpoint_arguments(parser: Parser) -> None:
    """Those of every command that is about a published checkpoint."""
    where = "ORG/NAME on the Hub, or a folder: one checkpoint, or all (default: RUN_DIR/checkpoints)"
    parser.add_argument("place", metavar="REPO_OR_DIR", nargs="?", help=where)
    add = parser.group("which state")
    add("--revision", metavar="TAG", help="tag, branch or commit on the Hub (default: main)")
    add("--run-dir", type=folder, metavar="DIR", help="folder of the run: its manifest.json is trusted")
    add("--cache", type=any_path, metavar="DIR", help=f"where fetched files stay (default: {CACHE})")
