"""Keys: the hotkey a node signs with, deterministic local wallets, and the commands that create what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import bittensor as bt
from bittensor.keyfiles import KeyfileError, Keypair
from bittensor.sp_core import CRYPTO_SR25519, ss58_decode, ss58_encode
from bittensor.sp_core import verify as verify_ss58

from distributed_training.errors import ConfigError

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
        return bool(verify_ss58(message, signature, hotkey_address(public_key), CRYPTO_SR25519))
    except (ValueError, TypeError):
        return False


def hotkey_address(public_key: bytes) -> str:
    """32 public-key bytes -> ss58 address."""
    return ss58_encode(public_key, SS58_FORMAT)


def hotkey_public_key(address: str) -> bytes:
    """ss58 address -> 32 public-key bytes; ConfigError when it is none."""
    try:
        return bytes(ss58_decode(address))
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
    files = bt.Wallet(wallet, hotkey_name, path=str(path))
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
    """Read a hotkey from wallet files; ConfigError, with the command that creates it, when it is missing."""
    keyfile = path.expanduser() / wallet / "hotkeys" / hotkey
    if not keyfile.is_file():
        raise ConfigError(f"no hotkey at {keyfile}; create it with: {creation_command(path, wallet, hotkey)}")
    try:
        keypair = bt.Wallet(wallet, hotkey, path=str(path)).hotkey
    except (KeyfileError, ValueError, OSError) as error:
        raise ConfigError(f"cannot read the hotkey at {keyfile}: {error}") from error
    if keypair.crypto_type != CRYPTO_SR25519:
        raise ConfigError(f"the hotkey at {keyfile} is not sr25519; expected one made by `btcli wallet create`")
    return LocalKey(keypair)


def creation_command(path: Path, wallet: str, hotkey: str) -> str:
    return f"btcli wallet create -w {wallet} -H {hotkey} --wallet-path {path}"


def registration_command(netuid: int, wallet: str, hotkey: str, run_dir: Path | None) -> str:
    """The one command that registers this hotkey; `run_dir` is given on the local chain only."""
    if run_dir is not None:
        name = "" if wallet == LOCAL_WALLET else f" --wallet.name {wallet}"
        return f"python scripts/register.py --run-dir {run_dir} --wallet.hotkey {hotkey}{name}"
    return f"btcli tx burned-register --netuid {netuid} -w {wallet} -H {hotkey}"
