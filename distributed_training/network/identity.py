"""A node's peer key: Ed25519, stored as the libp2p private-key protobuf so that the p2p daemon reads the same file."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from distributed_training.errors import ConfigError

# https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md:
# message PrivateKey {KeyType type = 1; bytes data = 2}, type Ed25519 = 1, data = 32 bytes of seed, 32 of public key.
_HEADER = bytes([0x08, 0x01, 0x12, 0x40])
_FILE_BYTES = len(_HEADER) + 64


class PeerIdentity:
    """An Ed25519 key pair. `public_key` (32 bytes) is the name of the peer everywhere in the protocol."""

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key: bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def load_or_create(cls, path: Path, seed: bytes | None = None) -> PeerIdentity:
        """The identity in `path`; a missing file is written first, from `seed` (32 bytes) or at random.

        An existing file wins over `seed`. Raises ConfigError, naming the file, if it is not such a key.
        """
        try:
            if not path.exists():
                cls(seed if seed is not None else secrets.token_bytes(32)).save(path)
            raw = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"identity file {path}: {error.strerror or error}") from error
        return cls._parse(raw, path)

    @classmethod
    def _parse(cls, raw: bytes, path: Path) -> PeerIdentity:
        if len(raw) != _FILE_BYTES or not raw.startswith(_HEADER):
            raise ConfigError(
                f"identity file {path} is not an Ed25519 libp2p key ({_FILE_BYTES} bytes expected, {len(raw)} found); "
                "remove it to make a new peer key"
            )
        identity = cls(raw[4:36])
        if identity.public_key != raw[36:]:
            raise ConfigError(f"identity file {path} is damaged: its public key does not belong to its private key")
        return identity

    def save(self, path: Path) -> None:
        """Write the file, mode 0400, whole or not at all. A file that appeared meanwhile is left as it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_HEADER + self._private.private_bytes_raw() + self.public_key)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(scratch, path)  # unlike rename, never replaces another process's key
            except FileExistsError:
                pass
        finally:
            scratch.unlink()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return self._private.sign(message)


def verify_peer(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that peer's signature of `message`. False for malformed input; never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
