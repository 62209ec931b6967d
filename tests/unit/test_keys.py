"""Keys, wallets and the commands that create what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.chain.keys import (
    LocalKey,
    derive_coldkey,
    derive_keypair,
    hotkey_address,
    hotkey_public_key,
    load_hotkey,
    registration_command,
    verify,
    write_wallet,
)
from distributed_training.errors import ConfigError

KEY = LocalKey(derive_keypair(1, "miner-0"))


def test_derived_keys_are_frozen() -> None:
    assert KEY.hotkey == "5GBbrnTZUYUUY31Va7D3TKZhQHYofp74RQ1uEiZAsJdpfqZF"
    assert KEY.public_key == bytes(derive_keypair(1, "miner-0").public_key) and len(KEY.public_key) == 32
    others = {derive_keypair(seed, name).ss58_address for seed in (1, 2) for name in ("miner-0", "miner-1")}
    assert len(others | {derive_coldkey(1, "miner-0").ss58_address}) == 5


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 63), st.integers(1, 255))
def test_a_signature_holds_for_its_message_and_key_only(message: bytes, place: int, flip: int) -> None:
    signature = KEY.sign(message)
    assert len(signature) == 64 and verify(KEY.public_key, message, signature)
    assert not verify(KEY.public_key, message + b"x", signature)
    assert not verify(bytes(derive_keypair(1, "miner-1").public_key), message, signature)
    broken = bytearray(signature)
    broken[place] ^= flip
    assert not verify(KEY.public_key, message, bytes(broken))


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_verify_never_raises(public_key: bytes, signature: bytes) -> None:
    assert verify(public_key, b"message", signature) is False


@given(st.binary(min_size=32, max_size=32))
def test_addresses_and_public_keys_convert_both_ways(public_key: bytes) -> None:
    assert hotkey_public_key(hotkey_address(public_key)) == public_key


def test_text_that_is_no_address_is_named() -> None:
    with pytest.raises(ConfigError, match="not an ss58 address"):
        hotkey_public_key("5Nonsense")


def test_wallet_files_are_written_once_and_read_back(tmp_path: Path) -> None:
    written = write_wallet(tmp_path, "local", "miner-0", 1)
    again = write_wallet(tmp_path, "local", "miner-0", 1)
    assert written.hotkey == again.hotkey == KEY.hotkey == load_hotkey(tmp_path, "local", "miner-0").hotkey
    assert verify(KEY.public_key, b"m", load_hotkey(tmp_path, "local", "miner-0").sign(b"m"))
    for name in ("coldkey", "hotkeys/miner-0"):
        assert (tmp_path / "local" / name).stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="another run wrote it"):
        write_wallet(tmp_path, "local", "miner-0", 2)


def test_a_missing_or_broken_hotkey_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"btcli wallet create -w cold -H hot --wallet-path .*") as missing:
        load_hotkey(tmp_path, "cold", "hot")
    assert "\n" not in str(missing.value)
    broken = tmp_path / "cold" / "hotkeys" / "hot"
    broken.parent.mkdir(parents=True)
    broken.write_text("{not json")
    with pytest.raises(ConfigError, match="cannot read the hotkey"):
        load_hotkey(tmp_path, "cold", "hot")


def test_registration_commands(tmp_path: Path) -> None:
    assert registration_command(38, "cold", "hot", None) == "btcli tx burned-register --netuid 38 -w cold -H hot"
    local = registration_command(38, "local", "extra", Path("runs/local"))
    assert local == "python scripts/register.py --run-dir runs/local --wallet.hotkey extra"
    assert registration_command(38, "mine", "extra", Path("runs/local")) == f"{local} --wallet.name mine"
