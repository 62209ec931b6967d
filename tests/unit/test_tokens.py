from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.data.tokens import (
    GPT2_SHA256,
    ByteTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
    cut,
    load_tokenizer,
    pack,
)
from distributed_training.errors import ConfigError

texts = st.text(st.characters(exclude_categories=["Cs"]))
GPT2 = load_tokenizer("gpt2")
BYTES = load_tokenizer("bytes")
both = pytest.mark.parametrize("tokenizer", [BYTES, GPT2], ids=["bytes", "gpt2"])


def test_gpt2_known_ids() -> None:
    # Published encodings of OpenAI's tokeniser.
    assert GPT2.encode("Hello world") == [15496, 995]
    assert GPT2.encode("Hello, world!") == [15496, 11, 995, 0]
    assert GPT2.encode("") == []
    assert (GPT2.vocab_size, GPT2.eos) == (50257, 50256)


def test_gpt2_end_to_end_on_real_text() -> None:
    source = (resources.files("json") / "decoder.py").read_text(encoding="utf-8")
    mixed = source + "\n\t caf\u00e9 \u4e2d\u6587 \U0001f600 \x00\r\n  trailing  "
    ids = GPT2.encode(mixed)
    assert GPT2.decode(ids) == mixed
    assert len(ids) < len(mixed.encode()) / 2
    assert GPT2.encode_batch([mixed, "Hello world"]) == [ids, [15496, 995]]


def test_shipped_file_is_the_pinned_one() -> None:
    data = (resources.files("distributed_training.data") / "gpt2_tokenizer" / "tokenizer.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == GPT2_SHA256 == GPT2.sha256
    with pytest.raises(ConfigError, match="sha256"):
        Gpt2Tokenizer(data.replace(b"Hello", b"Hellp", 1))


def test_unknown_tokenizer_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'word'.*'bytes' or 'gpt2'"):
        load_tokenizer("word")  # pyright: ignore[reportArgumentType]


def test_byte_tokenizer_is_pinned() -> None:
    assert BYTES.encode("a\u00e9") == [97, 195, 169]
    assert BYTES.sha256 == ByteTokenizer.sha256 == "d0e121a70850f1104d82c2707680dc00bfd1a6699953d2995bc1a06d02ae0f8b"
    assert BYTES.decode([195]) == "\ufffd"


@both
@given(text=texts)
def test_encoding_is_lossless_and_never_makes_eos(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.eos not in ids


@both
def test_control_strings_in_documents_are_plain_text(tokenizer: Tokenizer) -> None:
    text = "a<|endoftext|>b"
    assert tokenizer.eos not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@both
@given(documents=st.lists(texts, max_size=8))
def test_pack_keeps_every_document_whole(tokenizer: Tokenizer, documents: list[str]) -> None:
    stream = pack(documents, tokenizer)
    assert stream.dtype == np.int64
    ends = np.flatnonzero(stream == tokenizer.eos)
    assert len(ends) == len(documents)
    parts = np.split(stream, ends + 1)
    assert len(parts[-1]) == 0
    assert [tokenizer.decode(part[:-1].tolist()) for part in parts[:-1]] == documents


@given(documents=st.lists(texts, max_size=8), length=st.integers(1, 20))
def test_cut_loses_and_doubles_nothing(documents: list[str], length: int) -> None:
    stream = pack(documents, BYTES)
    sequences, rest = cut(stream, length)
    assert sequences.shape == (len(stream) // length, length)
    assert len(rest) < length
    assert np.array_equal(np.concatenate([sequences.ravel(), rest]), stream)
