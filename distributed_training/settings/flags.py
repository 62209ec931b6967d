"""Command-line flags, made from the fields of the config model: parsing, help, and errors that name the nearest key.

A key is a dotted path in the config (`axon.port`). Its flag is `--axon.port`, its variable `DT_AXON_PORT`; at the top
level underscores become dashes (`run_dir` is `--run-dir`). After a dot both are understood (`--network.up-mbit`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from distributed_training.addresses import FILE
from distributed_training.errors import ConfigError, expected
from distributed_training.protocol.types import Role
from distributed_training.settings.arguments import Parser
from distributed_training.settings.help_texts import EPILOG, EXAMPLES, GROUPS, REFUSED, STORY
from distributed_training.settings.words import nearest

NOT_FLAGS = ("local_chain", "warnings")  # set by presets and by the loader
ROLE_ONLY = {
    "steps_per_round": Role.MINER,
    "exact_steps": Role.MINER,
    "train_ahead": Role.MINER,
    "dry_run": Role.VALIDATOR,
    "hub.repo": Role.MINER,
    "hub.look": Role.VALIDATOR,
    "hub.keep": Role.OWNER,
    "page_dir": Role.OWNER,
}
BOTH_WAYS = ("train_ahead", "act_on_head", "serve_snapshots", "hub.look")  # switches with a --no- form
# By the last word of a key.
METAVARS = {
    "run": "DIGITS",
    "ip": "IP",
    "endpoint": "URL",
    "repo": "ORG/NAME",
    "mirrors": "PLACE,...",
    "mbit": "MBIT",
    "precision": "auto|fp32|bf16",
    "prometheus": "[IP:]PORT",
    "wandb": "online|offline",
}
SCRIPT_VARIABLES = (  # read by scripts/setup.sh, run_node.sh, pm2's configuration and the launcher
    *("DT_VENV", "DT_TORCH", "DT_TORCH_INDEX"),
    *("DT_AUTO_UPDATE", "DT_UPDATE_URL", "DT_UPDATE_HOURS"),
)


@dataclass(frozen=True, slots=True)
class Option:
    key: str
    help: str
    default: Any
    annotation: str  # the field's type as Python prints it

    @property
    def is_switch(self) -> bool:
        return self.annotation == "<class 'bool'>"

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        by_name = METAVARS.get(self.key.split("_")[-1].split(".")[-1])
        if by_name is not None:
            return by_name
        kinds = {"int": "N", "float": "N", "HubRepo | ": "PLACE", "Path": "PATH"}
        return next((shown for part, shown in kinds.items() if part in self.annotation), "NAME")

    @property
    def flag(self) -> str:
        return "--" + (self.key if "." in self.key else self.key.replace("_", "-"))

    @property
    def variable(self) -> str:
        return "DT_" + self.key.replace(".", "_").upper()


def options(model: type[BaseModel], prefix: str = "") -> list[Option]:
    """Every key of a config model, sections flattened, in the order of the fields."""
    found: list[Option] = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        if key in NOT_FLAGS:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += options(field.annotation, key + ".")
        else:
            default = None if field.default is PydanticUndefined else field.default
            found.append(Option(key, field.description or "", default, repr(field.annotation)))
    return found


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; sections are merged key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merge(result[key], value) if both else value
    return result


def find(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None if it is not there."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_environment(known: Sequence[Option], environ: Mapping[str, str]) -> None:
    """Raises ConfigError for a DT_ variable that nothing reads."""
    names = {*(option.variable for option in known), *SCRIPT_VARIABLES}
    for name in sorted(environ):
        if name.startswith("DT_") and name not in names:
            raise ConfigError(f"unknown environment variable {name}{nearest(name, names)}")


def find_preset(argv: Sequence[str]) -> str | None:
    """The value of --preset, found before the rest is parsed because the help shows the preset's defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    return parser.parse_known_args(argv)[0].preset


def parse(role: Role, known: Sequence[Option], argv: Sequence[str], preset: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, as nested dicts of strings and True. Raises ConfigError; `--help` exits 0."""
    mine = [option for option in known if ROLE_ONLY.get(option.key, role) == role]
    parser = _build_parser(role, mine, preset)
    namespace, unknown = parser.parse_known_args([_spelled(word) for word in argv])
    if unknown:
        raise ConfigError(_unknown_argument(unknown[0], mine, known))
    values: dict[str, Any] = {}
    for key, value in vars(namespace).items():
        section, _, leaf = key.rpartition(".")
        said = ",".join(value) if isinstance(value, list) else value
        (values.setdefault(section, {}) if section else values)[leaf] = said
    return values


def _spelled(word: str) -> str:
    """A flag as it is written here; everything else as it is."""
    flag, equals, value = word.partition("=")
    section, dot, leaf = flag.partition(".")
    return f"{section}.{leaf.replace('-', '_')}{equals}{value}" if word.startswith("--") and dot else word


def without_effect(role: Role, merged: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for each option that the operator set (flag or variable) and that changes nothing."""
    lines = [
        f"--{key.replace('_', '-')} has no effect: only a {only.name.lower()} uses it"
        for key, only in ROLE_ONLY.items()
        if only != role and find(asked, key) is not None
    ]
    endpoint = str(find(merged, "subtensor.chain_endpoint") or "")
    if find(merged, "local_chain") and not endpoint.startswith(FILE):
        lines += [
            f"--subtensor.{key} has no effect: preset {merged['preset']} uses the chain in its run directory"
            for key in ("network", "chain_endpoint", "fallback", "archive_endpoint")
            if find(asked, f"subtensor.{key}") is not None
        ]
    elif find(asked, "subtensor.network") and find(merged, "subtensor.chain_endpoint"):
        lines.append("--subtensor.network has no effect: a chain_endpoint is set and wins")
    if str(find(merged, "axon.outbound_only")).lower() in ("true", "1", "yes", "on"):
        lines += [
            f"--axon.{key} has no effect: with --axon.outbound_only nothing listens and nothing is announced"
            for key in ("ip", "port", "external_ip", "external_port")
            if find(asked, f"axon.{key}") is not None
        ]
    if find(asked, "metrics.wandb_entity") and not find(merged, "metrics.wandb"):
        lines.append("--metrics.wandb_entity has no effect: without --metrics.wandb nothing is recorded")
    no_address = not find(merged, "axon.external_ip") and find(merged, "axon.ip") in (None, "0.0.0.0")
    if find(asked, "axon.external_port") and no_address:
        lines.append("--axon.external_port has no effect: without --axon.external_ip no address is announced")
    return tuple(lines)


def explain(error: ValidationError, known: Sequence[Option], sources: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for the first problem: which option, from which source, what was expected."""
    first = error.errors()[0]
    key = ".".join(part for part in first["loc"] if isinstance(part, str))  # a number is a place in a list
    option = next((o for o in known if o.key == key), None)
    if first["type"] == "missing" and option is not None:
        return f"{option.flag} is required here ({option.help}); only the local presets have a default"
    source = next((name for name, values in sources.items() if find(values, key) is not None), "default")
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {key}{nearest(key, [o.key for o in known])}"
    name = f"{source}: {key}"
    if option is not None and not source.startswith("presets"):
        name = option.variable if source == "environment" else option.flag
    whole = isinstance(first.get("ctx", {}).get("error"), ConfigError)  # such a one names what it got
    return f"{name}: {expected(first)}" + ("" if whole else f", got {str(first['input'])!r}")


def _unknown_argument(argument: str, mine: Sequence[Option], known: Sequence[Option]) -> str:
    flag = argument.split("=")[0]
    if not flag.startswith("-"):
        return f"unexpected argument {argument!r}: every value follows its --flag"
    other = next((option for option in known if option.flag == flag), None)
    if other is not None:
        return f"{flag} is an option of {ROLE_ONLY[other.key].name.lower()}.py only"
    return f"unknown option {flag}{nearest(flag, [option.flag for option in mine])}"


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def _build_parser(role: Role, mine: Sequence[Option], preset: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Raises KeyError for an option in no group."""
    name = role.name.lower()
    parser = _Parser(
        prog=f"python neurons/{name}.py",
        usage=f"python neurons/{name}.py [--preset NAME] [options]",
        description=STORY[role],
        examples=EXAMPLES[role],
        epilog=EPILOG.format(missed="4 --exact-steps missed; " if role is Role.MINER else ""),
        argument_default=argparse.SUPPRESS,
    )
    place = {key: (index, title) for title, keys in GROUPS.items() for index, key in enumerate(keys)}
    for title in GROUPS:
        add = parser.group(title)
        for option in sorted((o for o in mine if place[o.key][1] == title), key=lambda o: place[o.key]):
            _add(add, option, role, preset)
    return parser


def _add(add: Callable[..., Any], option: Option, role: Role, preset: Mapping[str, Any]) -> None:
    if option.is_switch:
        action: Any = argparse.BooleanOptionalAction if option.key in BOTH_WAYS else "store_true"
        text = argparse.SUPPRESS if (option.key, role) in REFUSED else option.help
        add(option.flag, dest=option.key, action=action, help=text)
        return
    default = find(preset, option.key)
    default = option.default if default is None else default
    shown = "" if default in (None, ()) else f" (default: {str(default).replace('{run_dir}', 'RUN_DIR')})"
    text = (option.help + shown).replace("%", "%%")
    many = "append" if "tuple" in option.annotation else "store"
    add(option.flag, dest=option.key, action=many, metavar=option.metavar, help=text)
