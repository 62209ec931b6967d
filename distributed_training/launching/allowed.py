"""Who may mine, as a person lists them: addresses, or files of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from distributed_training.errors import ConfigError, said
from distributed_training.paths import existing_file, is_missing, typed

MAX_FILE_BYTES = 1 << 20
_KINDS = {"hotkey": "hotkeys", "coldkey": "coldkeys"}


def allowed(given: Sequence[str]) -> dict[str, list[str]]:
    """The manifest's `access`: public keys as hex. Raises ConfigError, which names the entry that is none."""
    found: dict[str, set[str]] = {name: set() for name in _KINDS.values()}
    for entry, where in _entries(given):
        kind, _, address = entry.rpartition(":")
        if kind not in ("", *_KINDS):
            raise ConfigError(f"{where}: expected an address, hotkey:ADDRESS or coldkey:ADDRESS, not {entry!r}")
        found[_KINDS[kind or "hotkey"]].add(_public_key(address, where))
    if not any(found.values()):  # an empty list in the manifest means everybody
        raise ConfigError(f"--allow {' '.join(given)}: lists nobody; expected an address, or leave --allow out")
    return {name: sorted(keys) for name, keys in found.items()}


def _entries(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(entry, where it stands)"""
    for value in given:
        path = typed(value)
        if is_missing(path):
            yield value, "--allow"
            continue
        for number, line in enumerate(_lines(path), 1):
            if entry := line.partition("#")[0].strip():
                yield entry, f"--allow {value}, line {number}"


def _lines(path: Path) -> list[str]:
    try:
        with existing_file(path).open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"--allow {path}: more than {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--allow {path}: cannot be read: {said(error)}") from None


def _public_key(address: str, where: str) -> str:
    from distributed_training.chain.keys import hotkey_public_key  # late: it loads bittensor

    if re.fullmatch("[0-9a-f]{64}", address):
        return address
    try:
        return hotkey_public_key(address).hex()
    except ConfigError:
        raise ConfigError(
            f"{where}: {address!r} is neither an ss58 address nor a file with one in each line (coldkey: before one "
            "that is a coldkey's)"
        ) from None
