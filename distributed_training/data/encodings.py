"""How the bytes of a file are to be read as text, said only where that is certain.

Certain is a byte order mark, UTF-8 without a mistake (or with so few that they are damage), a declaration inside the
file, and UTF-16 or UTF-32 that can be read in one way only. Of bytes that are none of these, cp1252 (which holds
Latin-1) is certain when nothing else makes words of them: in every code page that does, words are of one script, with
no capital after a small letter and no sign inside. Western and Eastern code pages often disagree about such a text;
then words decide that are common in the West of Europe.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
MOST_GUESSED = 64 << 20  # bytes of a file of which more than a first look is taken when it is no UTF-8
_MARKS = (  # the longer first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_BINARY_STARTS = (b"%PDF-", b"PAR1")  # formats whose first pages may be plain letters
_DECLARED = re.compile(rb"""(?:charset|encoding|coding)\s*[:=]\s*["']?([\w.-]{2,20})""", re.IGNORECASE)
_DECLARABLE = ("iso8859-", "cp125", "koi8", "shift_jis", "cp932", "euc_", "gbk", "gb2312", "gb18030", "big5", "mac-")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"
_SAME_SCRIPT = ("cp1250", "cp1254", "cp1257")
_OTHER_SCRIPT = ("cp1251", "koi8-r", "cp866", "cp1253")
_BETWEEN = (
    "\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2026\u00ab\u00bb\u00ad"  # words; the same in all Windows pages
)
_WORD = re.compile(rf"[^\W\d_]+(?:[^\s!-/:-@\[-`{{-~{_BETWEEN}]*[^\W\d_])?")
_LETTER_AND_DIGIT = re.compile(r"[^\W\d_A-Za-z]\d")
# Common words with a letter that is another one in Eastern code pages.
_WESTERN = (
    "où très après même être là voilà père mère règle façon français reçu année première "  # French
    "año años señor niño mañana pequeño español "  # Spanish
    "não são então mãe ação informação você até português mês três "  # Portuguese
    "perché più può già così città però sarà è à "  # Italian
    "på från så då får någon också når få år blå være før efter både små større første "  # Scandinavian
    "això què però són één naïve façade það þú"  # Catalan, Dutch, English, Icelandic
)


class NotText(Exception):
    """The file is left out; the text of the error is the kind of it, as it is counted."""


def encoding_of(file: BinaryIO, num_bytes: int) -> tuple[str, str]:
    """The encoding of an open file, and how a decoder is to take errors ("ignore" for damaged UTF-8). Reads all of it,
    a block at a time. Raises NotText, OSError."""
    file.seek(0)
    head = file.read(4096)
    if not head:
        raise NotText("empty")
    if head.startswith(_BINARY_STARTS):
        raise NotText("binary")
    for mark, name in _MARKS:
        if head.startswith(mark) and _decodes(file, name):
            return name, "strict"
    lost, multibyte, binary = _as_utf8(file)
    if not binary and lost == 0:
        return "utf-8", "strict"
    if not binary and 20 * lost <= multibyte:
        return "utf-8", "ignore"
    if num_bytes <= MOST_GUESSED:
        file.seek(0)
        name = _declared(head, data := file.read()) or (_unmarked(data) if b"\0" in data else _code_page(data))
        if name is not None:
            return name, "strict"
    raise NotText("binary" if binary else "of unknown encoding")


def blocks(file: BinaryIO, encoding: str, errors: str) -> Iterator[str]:
    """The text, a block at a time. Raises UnicodeDecodeError, OSError."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _decodes(file: BinaryIO, encoding: str) -> bool:
    try:
        return not any("\0" in text for text in blocks(file, encoding, "strict"))
    except UnicodeDecodeError:
        return False


def _as_utf8(file: BinaryIO) -> tuple[int, int, bool]:
    """Bytes that are no UTF-8, bytes beyond the first of its characters, and whether it cannot be text at all."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    size = kept = characters = controls = 0
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        if b"\0" in block:
            return 0, 0, True
        text = decoder.decode(block)
        size, kept, characters = size + len(block), kept + len(text.encode()), characters + len(text)
        controls += len(block) - len(block.translate(None, _CONTROLS))
    return size - kept, kept - characters, controls * 100 > size


def _declared(head: bytes, data: bytes) -> str | None:
    """As XML, HTML and Python sources say it."""
    match = _DECLARED.search(head)
    try:
        name = codecs.lookup(match[1].decode("ascii")).name if match else ""
        if not name.startswith(_DECLARABLE) or b"\0" in data:
            return None
        name = "cp1252" if name == "iso8859-1" else name  # as browsers take it: it has signs where that has none
        data.decode(name)
    except (LookupError, UnicodeDecodeError):
        return None
    return name


def _unmarked(data: bytes) -> str | None:
    """The only way to read it as UTF-16 or UTF-32 with nothing but assigned characters, and spaces among them."""
    found = [name for name in _UNMARKED if _reads_well(data, name)]
    return found[0] if len(found) == 1 else None


def _reads_well(data: bytes, encoding: str) -> bool:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    known = set(text)
    kinds = {unicodedata.category(character) for character in known - set("\t\n\v\f\r")}
    return not kinds & {"Cc", "Cn", "Co", "Cs"} and bool(known & {" ", "\n"})


def _code_page(data: bytes) -> str | None:
    """cp1252 where that is certain."""
    text = _words_of(data, "cp1252")
    if text is None or any(_words_of(data, name) not in (None, text) for name in _OTHER_SCRIPT):
        return None
    rivals = [other for name in _SAME_SCRIPT if (other := _words_of(data, name)) is not None]
    if all(other == text for other in rivals):
        return "cp1252"
    words = [word.lower() for word in _WORD.findall(text) if not word.isascii()]
    common = frozenset(_WESTERN.split())
    known = sum(word in common for word in words)
    return "cp1252" if 50 * known >= max(len(words), 1) else None


def _words_of(data: bytes, encoding: str) -> str | None:
    """The text, if its words look like words. None otherwise."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    if any(unicodedata.category(character) in ("Cc", "Cn") for character in set(text) - set("\t\n\v\f\r\b\x1b")):
        return None
    if _LETTER_AND_DIGIT.search(text):
        return None
    return text if all(map(_is_word, {word for word in _WORD.findall(text) if not word.isascii()})) else None


def _is_word(word: str) -> bool:
    """Letters of one script, capitals only in front or everywhere."""
    scripts = {unicodedata.name(character, "?").split()[0] for character in word} - {"FEMININE", "MASCULINE", "MICRO"}
    rest = word[1:]
    cased = rest == rest.lower() or word == word.upper()
    return word.isalpha() and len(scripts) <= 1 and cased
