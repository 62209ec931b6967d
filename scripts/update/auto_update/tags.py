"""What a release is: a version, a signed tag, what the tree says of itself. Nothing here runs anything of a release."""

from __future__ import annotations

import ast
import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from auto_update.bounded import run
from auto_update.trouble import Refused, Trouble

SIGNER = "release@distributed-training"  # the only name in allowed_signers that signs releases
NAMESPACE = "git"
KEYS = "scripts/update/allowed_signers"  # in a version's folder
INIT = "distributed_training/__init__.py"  # of a version: what it says of itself
BEGIN, END = b"-----BEGIN SSH SIGNATURE-----\n", b"-----END SSH SIGNATURE-----"
VERIFY_S = 20.0


class Version(NamedTuple):
    """Of three numbers, ordered by them."""

    major: int
    minor: int
    patch: int

    @classmethod
    def of_text(cls, text: str) -> Version | None:
        """None for anything but 1.2.3: no endings, no leading zeros."""
        found = re.fullmatch(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})", text, re.ASCII)
        return None if found is None else cls(*(int(part) for part in found.groups()))

    @classmethod
    def of_tag(cls, name: str) -> Version | None:
        return cls.of_text(name[1:]) if name.startswith("v") else None

    def __str__(self) -> str:
        return f"v{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class SignedTag:
    """A tag object in its parts; what it says is what its signature covers."""

    name: str
    commit: str
    payload: bytes
    signature: bytes


def parse_tag(name: str, data: bytes) -> SignedTag:
    """Strict: the header git writes, a message, one signature, no byte after it. Raises Refused."""
    payload, begin, rest = data.partition(BEGIN)
    if not begin:
        raise Refused(f"{name} is refused: it is not signed with an SSH key")
    armour, end, after = rest.partition(END)
    if not end or after.strip() or BEGIN in armour or not payload.endswith(b"\n"):
        raise Refused(f"{name} is refused: what follows its message is no single signature")
    head = re.match(rb"object ([0-9a-f]{40}|[0-9a-f]{64})\ntype commit\ntag ([^\n]+)\ntagger [^\n]+\n\n", payload)
    if head is None:
        raise Refused(f"{name} is refused: it is no tag of a commit")
    if head[2].decode(errors="replace") != name:
        raise Refused(f"{name} is refused: the tag was signed under another name")
    return SignedTag(name, head[1].decode(), payload, begin + armour + end + b"\n")


def has_keys(version: Path) -> bool:
    """Does this version trust any key? Raises Trouble."""
    try:
        lines = (version / KEYS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise Trouble(f"the release keys {version / KEYS} cannot be read: {error.strerror}") from None
    return any(line.strip() and not line.strip().startswith("#") for line in lines)


def verify(tag: SignedTag, keys: Path) -> None:
    """The signature is by a key that `keys` names under SIGNER, for git. Raises Refused; Trouble without ssh-keygen."""
    with tempfile.NamedTemporaryFile(prefix="signature-") as file:
        file.write(tag.signature)
        file.flush()
        words = ("ssh-keygen", "-Y", "verify", "-f", keys, "-I", SIGNER, "-n", NAMESPACE, "-s", file.name)
        done = run(words, timeout_s=VERIFY_S, given=tag.payload)
    if done.code:
        raise Refused(f"{tag.name} is refused: its signature is by no key that the running version trusts")


@dataclass(frozen=True, slots=True)
class About:
    """What a tree says of itself."""

    version: Version
    protocol: int


def about(source: bytes, name: str) -> About:
    """Of the text of INIT, which is read and never run. Raises Refused."""
    found = dict[str, object]()
    try:
        for node in ast.parse(source).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                found[target.id] = node.value.value
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Refused(f"{name} is refused: {INIT} cannot be read") from None
    version, protocol = Version.of_text(str(found.get("__version__"))), found.get("PROTOCOL_VERSION")
    if version is None or type(protocol) is not int:
        raise Refused(f"{name} is refused: {INIT} does not say its version and its protocol")
    return About(version, protocol)


def about_folder(version: Path) -> About:
    """Raises Trouble for a folder that is no version."""
    try:
        return about((version / INIT).read_bytes(), str(version))
    except OSError as error:
        raise Trouble(f"{version / INIT}: {error.strerror}") from None
    except Refused as error:
        raise Trouble(str(error)) from None


def delay_s(hotkey: str, tag: str, window_s: float) -> float:
    """How long after it has seen a release this node takes it: another time in [0, window) for each hotkey and tag, so
    that no round loses all of its nodes at once."""
    digest = hashlib.blake2b(f"{hotkey}\n{tag}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * window_s
