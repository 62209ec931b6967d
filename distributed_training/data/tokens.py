"""Text to token ids: the two tokenisers a run can name, and packing into sequences (protocol section 4)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Backend

from distributed_training.errors import ConfigError

TokenizerKind = Literal["bytes", "gpt2"]
GPT2_SHA256 = "82eb3acb1bc12e7a5a2ffb3d235d38cbf7acc4b7bc527b05b41a42625ef0b167"
_BYTES_DESCRIPTION = b"distributed-training bytes v1: ids 0..255 are the bytes of the UTF-8 text, 256 ends a document"


class Tokenizer(Protocol):
    """Lossless text <-> ids. `sha256` (hex) pins it in the run manifest. Thread-safe."""

    @property
    def eos(self) -> int:
        """The id put after each document; never produced by `encode`."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def encode(self, document: str) -> list[int]:
        """Ids of one whole document, without EOS."""
        ...

    def encode_batch(self, documents: Sequence[str]) -> list[list[int]]:
        """`encode` of each document."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without EOS; a sequence cut inside a character shows U+FFFD there."""
        ...


class ByteTokenizer:
    """257 ids: the 256 bytes of UTF-8 text, and EOS. For tiny models."""

    eos = 256
    vocab_size = 257
    sha256 = hashlib.sha256(_BYTES_DESCRIPTION).hexdigest()

    def encode(self, document: str) -> list[int]:
        return list(document.encode())

    def encode_batch(self, documents: Sequence[str]) -> list[list[int]]:
        return [self.encode(document) for document in documents]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Gpt2Tokenizer:
    """OpenAI's GPT-2 byte-level BPE, 50,257 ids, from a tokenizer.json. Control strings in text stay plain text."""

    eos = 50256
    vocab_size = 50257

    def __init__(self, data: bytes) -> None:
        """Raises ConfigError when `data` is not the pinned file."""
        self.sha256 = hashlib.sha256(data).hexdigest()
        if self.sha256 != GPT2_SHA256:
            raise ConfigError(f"gpt2 tokenizer.json has sha256 {self.sha256}, expected {GPT2_SHA256}; reinstall")
        # One page is tokenised in a background thread; a pool of all cores would fight the training threads.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._backend = _Backend.from_str(data.decode())

    def encode(self, document: str) -> list[int]:
        return self._backend.encode(document, add_special_tokens=False).ids

    def encode_batch(self, documents: Sequence[str]) -> list[list[int]]:
        # The batch call releases the interpreter lock while it works.
        return [encoding.ids for encoding in self._backend.encode_batch(list(documents), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(kind: TokenizerKind) -> Tokenizer:
    """The tokeniser a run manifest names. Raises ConfigError for another name, or a shipped file that was changed."""
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "gpt2":
        return Gpt2Tokenizer(_shipped_gpt2())
    raise ConfigError(f"unknown tokenizer {kind!r}, expected 'bytes' or 'gpt2'")


def pack(documents: Iterable[str], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """One stream [n] of all documents in order, each whole and followed by EOS."""
    stream: list[int] = []
    for ids in tokenizer.encode_batch(list(documents)):
        stream += ids
        stream.append(tokenizer.eos)
    return np.array(stream, dtype=np.int64)


def cut(stream: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences [k, length] from the front of the stream, and the rest, shorter than `length`. Views, no copies."""
    count = len(stream) // length
    return stream[: count * length].reshape(count, length), stream[count * length :]


def _shipped_gpt2() -> bytes:
    path = resources.files("distributed_training.data") / "gpt2_tokenizer" / "tokenizer.json"
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the gpt2 tokenizer {path}: {error.strerror}; reinstall") from None
