"""Text to token ids: the tokenisers a run can name, and packing into sequences (protocol section 4)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Backend

from distributed_training.errors import ConfigError, said
from distributed_training.paths import typed

TokenizerKind = Literal["bytes", "gpt2", "file"]
TOKENIZER_FILE = "tokenizer.json"  # in the run's directory, when the run's tokeniser is a file
GPT2_SHA256 = "82eb3acb1bc12e7a5a2ffb3d235d38cbf7acc4b7bc527b05b41a42625ef0b167"
MAX_FILE_BYTES = 256 << 20
# What model families put between documents, the most usual first: one with several (chat models) means the first.
EOS_NAMES = (
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<|eos|>",
    "<|im_end|>",
    "[EOS]",
    "[SEP]",
)
_BYTES_DESCRIPTION = b"distributed-training bytes v1: ids 0..255 are the bytes of the UTF-8 text, 256 ends a document"
_SAMPLE = '  Caf\u00e9 N\u00b0 5:\t"x  = [1, 2]"\r\n\n\u4e2d\u6587 \U0001f600 e\u0301 \ufb01 <b>don\'t</b> \n'
_PACKED_AT_ONCE = 128  # documents: the library keeps some 100 bytes for every token of a batch until it is done


class Tokenizer(Protocol):
    """Lossless text <-> ids. `kind`, `sha256` (hex) and `eos` pin it in the run manifest. Thread-safe."""

    @property
    def kind(self) -> TokenizerKind: ...

    @property
    def eos(self) -> int:
        """The id put after each document; never produced by `encode`."""
        ...

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        ...

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

    kind: TokenizerKind = "bytes"
    eos = 256
    vocab_size = 257
    sha256 = hashlib.sha256(_BYTES_DESCRIPTION).hexdigest()

    def encode(self, document: str) -> list[int]:
        return list(document.encode())

    def encode_batch(self, documents: Sequence[str]) -> list[list[int]]:
        return [self.encode(document) for document in documents]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class JsonTokenizer:
    """Any tokenizer.json of the `tokenizers` library. Whole documents and nothing added, whatever the file says of
    truncation, padding or templates; control strings in text stay plain text."""

    kind: TokenizerKind = "file"

    def __init__(self, data: bytes, eos: int | str | None, source: str) -> None:
        """`eos`: its id, the name of a special token, or None for the usual one. ConfigErrors begin with `source`."""
        # One page is tokenised in a background thread; a pool of all cores would fight the training threads.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._backend = _parse(data, source)
        special = {added.content: i for i, added in self._backend.get_added_tokens_decoder().items() if added.special}
        self.eos = eos if isinstance(eos, int) else _find_eos(special, eos, source)
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max([*ids, self.eos]) + 1
        name = self._backend.id_to_token(self.eos)
        if name is not None and self.eos in self.encode(f"a{name}b {name}"):
            raise ConfigError(f"{source}: text that spells {name} would end the document; choose another with --eos")

    def encode(self, document: str) -> list[int]:
        return self._backend.encode(document, add_special_tokens=False).ids

    def encode_batch(self, documents: Sequence[str]) -> list[list[int]]:
        # The batch call releases the interpreter lock while it works.
        return [encoding.ids for encoding in self._backend.encode_batch(list(documents), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=False)


class Gpt2Tokenizer(JsonTokenizer):
    """OpenAI's GPT-2 byte-level BPE, 50,257 ids, from the tokenizer.json that is shipped."""

    kind: TokenizerKind = "gpt2"

    def __init__(self, data: bytes) -> None:
        """Raises ConfigError when `data` is not the pinned file."""
        found = hashlib.sha256(data).hexdigest()
        if found != GPT2_SHA256:
            raise ConfigError(f"gpt2 tokenizer.json has sha256 {found}, expected {GPT2_SHA256}; reinstall")
        super().__init__(data, 50256, "gpt2 tokenizer.json")


def load_tokenizer(kind: TokenizerKind, path: Path | None = None, eos: int | str | None = None) -> Tokenizer:
    """The tokeniser a run manifest names; "file" reads `path` and takes `eos` (see JsonTokenizer). Raises ConfigError
    for another name, a file that is missing or none, or a shipped file that was changed."""
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "gpt2":
        return Gpt2Tokenizer(_shipped_gpt2())
    if kind == "file" and path is not None:
        return JsonTokenizer(_read(path), eos, str(path))
    raise ConfigError(f"unknown tokenizer {kind!r}, expected 'bytes' or 'gpt2', or 'file' with a tokenizer.json")


def choose(text: str, eos: int | str | None = None) -> Tokenizer:
    """What a person names: gpt2, bytes, or the path of a tokenizer.json (or of the folder that holds one). Raises
    ConfigError."""
    if text == "bytes" or text == "gpt2":
        if eos is not None:
            raise ConfigError(f"--eos {eos}: the tokenizer {text} has its own; it is for a tokenizer.json")
        return load_tokenizer(text)
    return load_tokenizer("file", tokenizer_path(text), eos)


def tokenizer_path(text: str) -> Path:
    path = typed(text)
    return path / TOKENIZER_FILE if path.is_dir() else path


def loss_of_text(tokenizer: Tokenizer) -> str | None:
    """What a tokeniser does not give back (it lower-cases, drops spaces, knows no emoji), in one line; None: it gave
    all of a difficult sample. A run on such a one learns the text that comes back."""
    back = tokenizer.decode(tokenizer.encode(_SAMPLE))
    return None if back == _SAMPLE else f"tokenizer.json is not lossless: {_SAMPLE!r} comes back as {back!r}"


def pack(documents: Iterable[str], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """`packed`, as the model takes it."""
    return packed(list(documents), tokenizer).astype(np.int64)


def packed(documents: Sequence[str], tokenizer: Tokenizer) -> NDArray[Any]:
    """One stream [n] of all documents in order, each whole and followed by EOS; uint16 where the vocabulary allows it,
    else uint32."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    parts: list[NDArray[Any]] = [np.empty(0, dtype)]
    for start in range(0, len(documents), _PACKED_AT_ONCE):
        for ids in tokenizer.encode_batch(documents[start : start + _PACKED_AT_ONCE]):
            parts.append(np.array([*ids, tokenizer.eos], dtype))
    return np.concatenate(parts)


def cut(stream: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences [k, length] from the front of the stream, and the rest, shorter than `length`. Views, no copies."""
    count = len(stream) // length
    return stream[: count * length].reshape(count, length), stream[count * length :]


def _parse(data: bytes, source: str) -> Any:
    try:
        backend: Any = _Backend.from_str(data.decode())
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        why = said(error)[:120]
        raise ConfigError(f"{source}: expected a tokenizer.json of the tokenizers library: {why}") from None
    if getattr(backend.model, "dropout", None):
        raise ConfigError(f"{source}: model.dropout {backend.model.dropout} would tokenise at random; set it to null")
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _find_eos(special: dict[str, int], name: str | None, source: str) -> int:
    wanted = [name] if name is not None else [known for known in EOS_NAMES if known in special]
    if wanted and wanted[0] in special:
        return special[wanted[0]]
    have = f"its special tokens are {', '.join(special)}" if special else "it has no special tokens"
    raise ConfigError(f"{source}: no {name or 'end of document'} among its special tokens, give --eos TOKEN; {have}")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: expected a tokenizer.json of at most {MAX_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the tokenizer {path}: {error.strerror}; expected gpt2, bytes or a tokenizer.json"
        ) from None


def _shipped_gpt2() -> bytes:
    path = resources.files("distributed_training.data") / "gpt2_tokenizer" / "tokenizer.json"
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the gpt2 tokenizer {path}: {error.strerror}; reinstall") from None


def tokenizer_json(kind: TokenizerKind, path: Path) -> bytes | None:
    """The file of the run's tokeniser, for publishing: `path` is that of kind "file". None: bytes, which has none."""
    if kind == "bytes":
        return None
    return _read(path) if kind == "file" else _shipped_gpt2()
