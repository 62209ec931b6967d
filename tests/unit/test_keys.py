"""Keys, wallets and the commands that create what is missing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.chain.keys import (
    LocalKey,
    coldkey_warning,
    derive_coldkey,
    derive_keypair,
    hotkey_address,
    hotkey_public_key,
    load_hotkey,
    local_registration,
    registration_command,
    verify,
    write_wallet,
)
from distributed_training.commands import python
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
    assert "from elsewhere, without its coldkey, with: btcli wallet regen-hotkey -w cold -H" in refused(tmp_path)
    broken = tmp_path / "cold" / "hotkeys" / "hot"
    broken.parent.mkdir(parents=True)
    broken.write_text("{not json")
    with pytest.raises(ConfigError, match="cannot read the hotkey"):
        load_hotkey(tmp_path, "cold", "hot")


def hotkey_file(root: Path) -> Path:
    write_wallet(root, "cold", "hot", 1)
    return root / "cold" / "hotkeys" / "hot"


def refused(root: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_hotkey(root, "cold", "hot")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_key_that_cannot_sign_is_refused_where_it_is_read(tmp_path: Path) -> None:
    file = hotkey_file(tmp_path)
    good: dict[str, Any] = json.loads(file.read_text())
    public = {name: good[name] for name in ("ss58Address", "accountId", "publicKey")}
    other = derive_keypair(1, "other").ss58_address
    for content, said in (
        (json.dumps(public), "only its public part"),
        (json.dumps(good | {"ss58Address": other}), "does not match the address"),
        (json.dumps({"cryptoType": 0, "secretSeed": good["secretSeed"]}), "not sr25519"),
        ("", "cannot read the hotkey"), ("[]", "cannot read the hotkey"), ("{}", "cannot read the hotkey"),
        ("\xff", "cannot read the hotkey"), (json.dumps({"secretPhrase": "bottom drive"}), "invalid mnemonic"),
    ):  # fmt: skip
        file.write_text(content, encoding="latin-1")
        message = refused(tmp_path)
        assert said in message and str(file) in message
        assert good["secretSeed"] not in message and "bottom" not in message
    file.unlink()
    assert "btcli wallet new-hotkey -w cold -H hot" in refused(tmp_path)  # the coldkey is there
    file.mkdir()
    assert "is a folder" in refused(tmp_path)


def test_a_mnemonic_alone_is_a_key(tmp_path: Path) -> None:
    file = hotkey_file(tmp_path)
    file.write_text("bottom drive obey lake curtain smoke basket hold race lonely fit walk")
    assert load_hotkey(tmp_path, "cold", "hot").hotkey == "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV"


SEALED = b"$ANSIBLE_VAULT;1.1;AES256\n123"  # nothing opens it, and that is found out at once


def test_an_encrypted_key_says_how_to_give_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = hotkey_file(tmp_path)
    file.write_bytes(SEALED)
    monkeypatch.delenv("BT_WALLET_PASSWORD", raising=False)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115, PTH123
    assert "is encrypted and there is no terminal" in refused(tmp_path)
    assert refused(tmp_path).endswith("environment variable BT_WALLET_PASSWORD")
    saved = f"BT_PW_{str(file).replace('/', '_').replace('.', '_').upper()}"
    monkeypatch.setenv(saved, "not base64!")
    assert f"{saved} is not what bittensor saves there" in refused(tmp_path)
    scrambled = bytes(a ^ b for a, b in zip(b"pw", saved.encode(), strict=False))
    monkeypatch.setenv(saved, base64.b64encode(scrambled).decode())
    assert f"the password from {saved} does not open the hotkey at {file}" in refused(tmp_path)
    monkeypatch.setenv("BT_WALLET_PASSWORD", "wrong pw")
    assert "the password from BT_WALLET_PASSWORD does not open" in refused(tmp_path)
    assert "wrong pw" not in refused(tmp_path)


ASKING = """
import sys
from pathlib import Path
from distributed_training.chain.keys import load_hotkey
from distributed_training.settings.entry import run_main
sys.exit(run_main(lambda: bool(load_hotkey(Path(sys.argv[1]), "cold", "hot")) - 1))
"""


def test_with_a_terminal_the_password_is_asked_for(tmp_path: Path) -> None:
    hotkey_file(tmp_path).write_bytes(SEALED)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ASKING, str(tmp_path)]
    with subprocess.Popen(command, stdin=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        shown = b""
        while b": " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"secret pw\n")
        assert process.wait(30) == 2
        shown += os.read(ours, 1000)
        os.close(ours)
    assert b"the password from the terminal does not open the hotkey" in shown and b"secret pw" not in shown


def sealed(data: bytes, password: str) -> bytes:
    """As btcli of old sealed a key, with Ansible's vault: opened in a moment, today's format takes seconds."""
    salt = bytes(32)
    keys = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 10_000, 80)
    padded = data + bytes([16 - len(data) % 16]) * (16 - len(data) % 16)
    lock = Cipher(algorithms.AES(keys[:32]), modes.CTR(keys[64:])).encryptor()
    text = lock.update(padded) + lock.finalize()
    parts = (salt, hmac.digest(keys[32:64], text, "sha256"), text)
    return b"$ANSIBLE_VAULT;1.1;AES256\n" + b"\n".join(part.hex().encode() for part in parts).hex().encode()


def test_the_right_password_opens_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = hotkey_file(tmp_path)
    file.write_bytes(sealed(file.read_bytes(), "secret pw"))
    monkeypatch.setenv("BT_WALLET_PASSWORD", "secret pw")
    assert load_hotkey(tmp_path, "cold", "hot").hotkey == derive_keypair(1, "hot").ss58_address


def test_registration_commands(tmp_path: Path) -> None:
    bought = "btcli tx burned-register --network finney --netuid 38 -w cold"
    assert registration_command("finney", 38, "cold", "hot") == f"{bought} -H hot"
    assert registration_command("finney", 38, "cold", "hot", address="5Gx") == f"{bought} --hotkey 5Gx"
    local = local_registration("local", "extra", Path("runs/local"))
    assert local == f"{python()} scripts/register.py --run-dir runs/local --wallet.hotkey extra"
    assert local_registration("mine", "extra", Path("runs/local")) == f"{local} --wallet.name mine"


@pytest.mark.parametrize("half", ["coldkey", "coldkeypub.txt"])
def test_nobody_is_told_to_create_a_wallet_over_half_a_coldkey(tmp_path: Path, half: str) -> None:
    (tmp_path / "cold").mkdir()
    (tmp_path / "cold" / half).touch()
    told = refused(tmp_path)
    assert "btcli wallet create" not in told
    assert f"with: btcli wallet regen-hotkey -w cold -H hot --wallet-path {tmp_path}; or make it" in told
    assert told.endswith(f"with: btcli wallet new-hotkey -w cold -H hot --wallet-path {tmp_path}")


def test_a_private_coldkey_beside_the_hotkey_is_said_loudly(tmp_path: Path) -> None:
    assert coldkey_warning(tmp_path, "cold") is None
    hotkey_file(tmp_path)
    coldkey = tmp_path / "cold" / "coldkey"
    told = coldkey_warning(tmp_path, "cold") or ""
    assert "COLDKEY OF WALLET 'cold' LIES ON THIS MACHINE, NOT ENCRYPTED" in told
    assert str(coldkey) in told and "\n" not in told
    coldkey.write_bytes(SEALED)
    assert "THIS MACHINE, ENCRYPTED, so only as safe as its password" in (coldkey_warning(tmp_path, "cold") or "")
    coldkey.unlink()
    coldkey.mkdir()
    assert "this user may not read" in (coldkey_warning(tmp_path, "cold") or "")
    coldkey.rmdir()
    assert coldkey_warning(tmp_path, "cold") is None, "the public half alone is how it should be"
