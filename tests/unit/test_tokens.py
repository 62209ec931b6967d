from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from distributed_training.data.tokens import (
    GPT2_SHA256,
    ByteTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
    choose,
    cut,
    load_tokenizer,
    loss_of_text,
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


# --- any tokenizer.json ---------------------------------------------------------------------------------


def byte_bpe(*special: str) -> Backend:
    """A byte-level BPE without merges: 256 ids and the special tokens after them."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Backend(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return made


def saved(backend: Backend, folder: Path) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@given(text=texts)
def test_a_file_tokenises_whole_documents_and_adds_nothing(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    backend = byte_bpe("<s>", "</s>")
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    tokenizer = choose(str(saved(backend, tmp_path_factory.mktemp("t"))))
    assert (tokenizer.kind, tokenizer.eos, tokenizer.vocab_size) == ("file", 257, 258)
    document = f"<s>{text}</s>"
    ids = tokenizer.encode(document)
    assert len(ids) == len(document.encode()) and max(ids) < 256
    assert tokenizer.decode(ids) == document
    assert tokenizer.encode_batch([document, text])[0] == ids


@pytest.mark.parametrize(
    ("special", "eos"),
    [
        (["<s>", "</s>"], "</s>"),
        (["<|im_end|>", "<|endoftext|>", "<|im_start|>"], "<|endoftext|>"),
        (["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], "<|end_of_text|>"),
        (["<pad>", "<eos>", "<bos>"], "<eos>"),
        (["[CLS]", "[SEP]"], "[SEP]"),
    ],
)
def test_the_end_of_a_document_is_found_by_its_usual_name(tmp_path: Path, special: list[str], eos: str) -> None:
    saved(byte_bpe(*special), tmp_path)
    assert choose(str(tmp_path)).eos == 256 + special.index(eos)
    assert choose(str(tmp_path), special[0]).eos == 256


def test_a_run_gets_the_same_tokeniser_back_by_its_id(tmp_path: Path) -> None:
    path = saved(byte_bpe("<a>", "<b>"), tmp_path)
    assert load_tokenizer("file", path, 257).eos == choose(str(path), "<b>").eos
    assert choose(str(path), "<b>").sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_cannot_be_a_tokeniser_is_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(byte_bpe("<a>", "<b>"), tmp_path)
    other = tmp_path / "other.json"
    dropout = json.loads(path.read_text())
    dropout["model"]["dropout"] = 0.1
    # In a unigram vocabulary the end of a document is a piece like any other: text can spell it.
    pieces = [("</s>", 0.0), *((chr(i), -5.0) for i in range(32, 127))]
    unigram = Backend(models.Unigram(pieces, unk_id=1))
    unigram.add_special_tokens(["</s>"])
    cases: list[tuple[bytes, str | None, str]] = [
        (b"{}", None, "expected a tokenizer.json of the tokenizers library"),
        (b"\xff\x00", None, "expected a tokenizer.json of the tokenizers library"),
        (path.read_bytes(), None, "no end of document .* give --eos TOKEN; its special tokens are <a>, <b>"),
        (path.read_bytes(), "<c>", "no <c> among its special tokens"),
        (byte_bpe().to_str().encode(), None, "it has no special tokens"),
        (json.dumps(dropout).encode(), "<a>", "would tokenise at random"),
        (unigram.to_str().encode(), None, "text that spells </s> would end the document"),
    ]
    for data, eos, message in cases:
        other.write_bytes(data)
        with pytest.raises(ConfigError, match=message) as caught:
            choose(str(other), eos)
        assert "\n" not in str(caught.value) and str(other) in str(caught.value)
    with pytest.raises(ConfigError, match="expected gpt2, bytes or a tokenizer"):
        choose(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="--eos x: the tokenizer gpt2 has its own"):
        choose("gpt2", "x")


def test_a_tokeniser_that_loses_text_is_told(tmp_path: Path) -> None:
    assert loss_of_text(GPT2) is None and loss_of_text(BYTES) is None
    assert loss_of_text(choose(str(saved(byte_bpe("</s>"), tmp_path)))) is None
    lower = byte_bpe("</s>")
    lower.normalizer = normalizers.Lowercase()
    told = loss_of_text(choose(str(saved(lower, tmp_path))))
    assert told is not None and "not lossless" in told and "\n" not in told


def test_many_documents_are_packed_in_order() -> None:
    documents = [f"{number} " * (number % 7) for number in range(300)]
    stream = pack(documents, BYTES).tolist()
    assert stream == [i for document in documents for i in (*document.encode(), 256)]
