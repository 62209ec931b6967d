"""Keys: the hotkey a node signs with, deterministic local wallets, and the commands that create what is missing."""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bittensor_core

from distributed_training.commands import command, python
from distributed_training.errors import ConfigError, said
from distributed_training.paths import existing_file, is_missing

if TYPE_CHECKING:
    import bittensor as bt

core: Any = bittensor_core  # alone: a node reads its key first, and all of bittensor takes a second to load
CRYPTO_SR25519: int = core.CRYPTO_SR25519
Keypair: Any = core.Keypair
PASSWORD_VARIABLE = "BT_WALLET_PASSWORD"  # as it is; what bittensor saves in BT_PW_... is scrambled
SS58_FORMAT = 42
SIGNATURE_BYTES = 64
LOCAL_WALLET = "local"  # what scripts/register.py uses when told nothing


@dataclass(frozen=True, slots=True)
class LocalKey:
    """A hotkey held in this process; implements `chain.base.Signer`."""

    keypair: bt.Signer

    @property
    def hotkey(self) -> str:
        return self.keypair.ss58_address

    @property
    def public_key(self) -> bytes:
        return bytes(self.keypair.public_key)

    def sign(self, message: bytes) -> bytes:
        return bytes(self.keypair.sign(message))


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """True if the sr25519 `public_key` (32 bytes) made `signature` (64 bytes) over `message`. Never raises.

    As everywhere on the chain, a signature over `<Bytes>message</Bytes>` counts too: wallets wrap what they sign.
    """
    if len(public_key) != 32 or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        return bool(core.verify(message, signature, hotkey_address(public_key), CRYPTO_SR25519))
    except (ValueError, TypeError):
        return False


def hotkey_address(public_key: bytes) -> str:
    """32 public-key bytes -> ss58 address."""
    return core.ss58_encode(public_key, SS58_FORMAT)


def hotkey_public_key(address: str) -> bytes:
    """ss58 address -> 32 public-key bytes; ConfigError when it is none."""
    try:
        return bytes(core.ss58_decode(address))
    except ValueError as error:
        raise ConfigError(f"{address!r} is not an ss58 address: {error}") from error


def derive_keypair(seed: int, name: str) -> bt.Signer:
    """The sr25519 key of hotkey `name` in the local run with this seed. Public knowledge: never for a real chain."""
    material = blake2b(f"{seed}/{name}".encode(), digest_size=32, person=b"dt-local-key").digest()
    return Keypair.create_from_seed(material, CRYPTO_SR25519)


def derive_coldkey(seed: int, wallet: str) -> bt.Signer:
    """The coldkey that `write_wallet` puts into local wallet `wallet`."""
    return derive_keypair(seed, f"coldkey/{wallet}")


def write_wallet(path: Path, wallet: str, hotkey_name: str, seed: int) -> LocalKey:
    """Write real wallet files (coldkey, hotkey and their public halves) of the derived keys; idempotent.

    Unencrypted: for local runs only. Files that exist are left alone, and must hold the derived hotkey (ConfigError).
    """
    from bittensor import Wallet

    files = Wallet(wallet, hotkey_name, path=str(path))
    coldkey, hotkey = derive_coldkey(seed, wallet), derive_keypair(seed, hotkey_name)
    for keyfile, keypair in (
        (files.coldkey_file, coldkey),
        (files.coldkeypub_file, Keypair(ss58_address=coldkey.ss58_address)),
        (files.hotkey_file, hotkey),
        (files.hotkeypub_file, Keypair(ss58_address=hotkey.ss58_address)),
    ):
        if not keyfile.exists_on_device():
            keyfile.set_keypair(keypair, encrypt=False, overwrite=False)
    found = load_hotkey(path, wallet, hotkey_name)
    if found.hotkey != hotkey.ss58_address:
        raise ConfigError(
            f"{path / wallet / 'hotkeys' / hotkey_name} holds {found.hotkey}, but this run's seed gives "
            f"{hotkey.ss58_address}: another run wrote it"
        )
    return found


def load_hotkey(path: Path, wallet: str, hotkey: str) -> LocalKey:
    """Read the hotkey that a node signs with. An encrypted one takes its password from the environment or the terminal.

    Raises ConfigError for whatever keeps it from signing; with the command that creates it, when it is missing.
    """
    keyfile = path / wallet / "hotkeys" / hotkey
    try:
        if is_missing(keyfile):
            raise ConfigError(f"no hotkey at {keyfile}; {_way_out(path, wallet, hotkey)}")
        data = existing_file(keyfile).read_bytes()
        if core.keyfile_data_is_encrypted(data):
            data = _decrypted(data, keyfile)
        keypair: Any = core.deserialize_keypair_from_keyfile_data(data)
    except ConfigError:
        raise
    except (core.KeyfileError, ValueError, OSError) as error:
        raise ConfigError(f"cannot read the hotkey at {keyfile}: {said(error)}") from None
    return _able_to_sign(keypair, keyfile)


def load_public_key(path: Path, wallet: str, hotkey: str) -> bytes:
    """The hotkey's public key, 32 bytes: of `HOTKEYpub.txt`, else of a hotkey file that is not encrypted. No private
    part is needed. Raises ConfigError."""
    folder = path / wallet / "hotkeys"
    file = next((f for f in (folder / f"{hotkey}pub.txt", folder / hotkey) if not is_missing(f)), None)
    if file is None:
        raise ConfigError(f"no hotkey at {folder / hotkey}, nor {hotkey}pub.txt beside it: the public part is enough")
    try:
        return bytes(core.deserialize_keypair_from_keyfile_data(existing_file(file).read_bytes()).public_key)
    except (core.KeyfileError, ValueError, OSError) as error:
        raise ConfigError(f"cannot read the public key at {file}: {said(error)}") from None


def coldkey_warning(path: Path, wallet: str) -> str | None:
    """What to say where the private coldkey of `wallet` lies on this machine, which needs the hotkey only."""
    keyfile = path / wallet / "coldkey"
    try:
        if is_missing(keyfile):
            return None
        sealed = core.keyfile_data_is_encrypted(existing_file(keyfile).read_bytes())
        state = "ENCRYPTED, so only as safe as its password" if sealed else "NOT ENCRYPTED"
    except (ConfigError, OSError):
        state = "in a file that this user may not read"
    return (
        f"THE PRIVATE COLDKEY OF WALLET {wallet!r} LIES ON THIS MACHINE, {state}: whoever gets in here and opens "
        f"{keyfile} takes its money and its stake. A node needs the hotkey only (btcli: coldkeypub.txt too): keep the "
        "coldkey on a machine that runs no node, and delete it here once you have its mnemonic"
    )


def _able_to_sign(keypair: Any, keyfile: Path) -> LocalKey:
    if keypair.crypto_type != CRYPTO_SR25519:
        raise ConfigError(f"the hotkey at {keyfile} is not sr25519, the default of `btcli wallet new-hotkey`")
    key = LocalKey(keypair)
    try:
        signature = key.sign(b"")
    except ValueError:
        raise ConfigError(
            f"the hotkey at {keyfile} has only its public part, which signs nothing; expected the whole key file, not "
            f"the {keyfile.name}pub.txt beside it: copy it from where it was made, or restore it with: "
            f"{wallet_command('regen-hotkey', keyfile.parents[2], keyfile.parents[1].name, keyfile.name)}"
        ) from None
    if not verify(key.public_key, b"", signature):
        raise ConfigError(f"the hotkey at {keyfile} is damaged: its private part does not belong to {key.hotkey}")
    return key


def _decrypted(data: bytes, keyfile: Path) -> bytes:
    password, source = _password(keyfile)
    try:
        return bytes(core.decrypt_keyfile_data(data, password))
    except core.WrongPasswordError:
        raise ConfigError(f"the password from {source} does not open the hotkey at {keyfile}") from None


def _password(keyfile: Path) -> tuple[str, str]:
    """(password, where it is from). Raises ConfigError when nobody can be asked."""
    if (told := _told_password(keyfile)) is not None:
        return told
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            return getpass.getpass(f"password of the hotkey {keyfile}: "), "the terminal"
        except EOFError:
            pass
    raise ConfigError(_no_password(keyfile))


def _told_password(keyfile: Path) -> tuple[str, str] | None:
    """(password, variable). Raises ConfigError for one that bittensor did not save."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password:
        return password, PASSWORD_VARIABLE
    saved = f"BT_PW_{str(keyfile).replace(os.sep, '_').replace('.', '_').upper()}"  # as bittensor names it
    try:
        password = core.get_password_from_environment(saved)
    except core.KeyfileError:
        raise ConfigError(
            f"{saved} is not what bittensor saves there; give the password as it is in {PASSWORD_VARIABLE}"
        ) from None
    return (password, saved) if password else None


def _no_password(keyfile: Path) -> str:
    return (
        f"the hotkey at {keyfile} is encrypted and there is no terminal to ask for its password; give it in the "
        f"environment variable {PASSWORD_VARIABLE}"
    )


def unopened(path: Path, wallet: str, hotkey: str) -> str | None:
    """Why a node that nobody sits at cannot open this hotkey, if it is encrypted and no password was given."""
    keyfile = path / wallet / "hotkeys" / hotkey
    try:
        sealed = core.keyfile_data_is_encrypted(keyfile.read_bytes())
        return _no_password(keyfile) if sealed and _told_password(keyfile) is None else None
    except ConfigError as error:
        return str(error)
    except (core.KeyfileError, ValueError, OSError):
        return None  # `load_hotkey` says it


def _way_out(path: Path, wallet: str, hotkey: str) -> str:
    """Of a missing hotkey. `create` where either half of a coldkey is would leave halves of two coldkeys there."""
    fresh = all(is_missing(path / wallet / half) for half in ("coldkey", "coldkeypub.txt"))
    verb, what = ("create", "a whole wallet") if fresh else ("new-hotkey", "it")
    new, old = (wallet_command(name, path, wallet, hotkey) for name in (verb, "regen-hotkey"))
    return f"bring it here from elsewhere, without its coldkey, with: {old}; or make {what} with: {new}"


def wallet_command(verb: str, path: Path, wallet: str, hotkey: str) -> str:
    return command("btcli", "wallet", verb, ("-w", wallet), ("-H", hotkey), ("--wallet-path", path))


def local_registration(wallet: str, hotkey: str, run_dir: Path) -> str:
    """The one command that registers this hotkey on the local chain of `run_dir`."""
    name = None if wallet == LOCAL_WALLET else wallet
    flags = (("--run-dir", run_dir), ("--wallet.hotkey", hotkey), ("--wallet.name", name))
    return command(python(), "scripts/register.py", *flags)


def registration_command(
    network: str, netuid: int, wallet: str, hotkey: str, *, address: str | None = None, wallets: Path | None = None
) -> str:
    """The one command that pays for this hotkey's place on `network`: a name or a chain node's ws://... Named always,
    whatever btcli's own default is. `address`: of the hotkey, for a machine that has the coldkey and not its file."""
    key = ("-H", hotkey) if address is None else ("--hotkey", address)
    flags = (("--network", network), ("--netuid", netuid), ("-w", wallet), key, ("--wallet-path", wallets))
    return command("btcli", "tx", "burned-register", *flags)
