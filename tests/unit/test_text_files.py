"""A folder as it lies around: what is text is read, the rest is left out, and all of it is counted."""

from __future__ import annotations

import gzip
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distributed_training.data.corpus import DOCUMENT_BYTES, read_corpus
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.page_file import PAGES_FILE
from distributed_training.errors import ConfigError

STORY = "Erz\u00e4hlt wurde viel, \u00fcber M\u00fcller und das gro\u00dfe Haus.\r\nEin Satz, der folgt.\n"
ENGLISH = "It was the caf\u00e9\u2019s \u201cgrand\u201d opening\u2014don\u2019t miss it\u2026 \u00a34 or \u20ac5.\n"
FRENCH = "Apr\u00e8s la f\u00eate, il \u00e9tait d\u00e9j\u00e0 tr\u00e8s tard o\u00f9 nous \u00e9tions.\n"
CZECH = "Příliš žluťoučký kůň úpěl.\n"
RUSSIAN = "Привет, это текст, и он тут.\n"
JAPANESE = "これは日本語のテキストです。今日はいい天気。\n"
XML = '<?xml version="1.0" encoding="KOI8-R"?>'
WIDE = ("utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
BUILD = """
import sys
from pathlib import Path
from distributed_training.data.local import build_pages
print(build_pages(Path(sys.argv[1]), Path(sys.argv[2]), num_pages=None).sha256)
"""


def read(root: Path) -> tuple[dict[str, str], str]:
    """Text by path, and what was said of the files."""
    with read_corpus(root, None) as corpus:
        found: dict[str, str] = {}
        for document in sorted(corpus.documents(), key=lambda d: (d.path, d.offset)):
            found[document.path] = found.get(document.path, "") + document.text
        return found, "; ".join(corpus.tally.lines())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (STORY.encode(), STORY),
        (b"\xef\xbb\xbf" + STORY.encode(), STORY),
        *((STORY.encode(name), STORY) for name in WIDE),
        (JAPANESE.encode("utf-16-be"), JAPANESE),
        (STORY.encode("cp1252"), STORY),
        (ENGLISH.encode("cp1252"), ENGLISH),
        (FRENCH.encode("latin-1"), FRENCH),
        (b"caf\xe9", "caf\u00e9"),
        ("It\u2019s \u201cnice\u201d \u2013 so.\n".encode("cp1252"), "It\u2019s \u201cnice\u201d \u2013 so.\n"),
        (b'<meta charset="iso-8859-1">\n\x93Hi\x94\n', '<meta charset="iso-8859-1">\n\u201cHi\u201d\n'),
        ((XML + RUSSIAN).encode("koi8-r"), XML + RUSSIAN),
        ((JAPANESE * 20).encode() + b"\xff end", JAPANESE * 20 + " end"),
        (b"one\rtwo\r\nthree\n\x1b[31mred\x1b[0m", "one\rtwo\r\nthree\n\x1b[31mred\x1b[0m"),
    ],
)  # fmt: skip
def test_text_is_read_where_its_encoding_is_certain(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "file").write_bytes(data)
    assert read(tmp_path)[0] == {"file": text}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        (b"text with a \0 in it", "binary"),
        (gzip.compress(STORY.encode() * 9), "binary"),
        (b"%PDF-1.4 plain letters", "binary"),
        (random.Random(1).randbytes(5000), "binary"),
        (CZECH.encode("cp1250"), "of unknown encoding"),
        (CZECH.encode("iso8859-2"), "of unknown encoding"),
        (FRENCH.encode("cp850"), "of unknown encoding"),
        (RUSSIAN.encode("cp1251"), "of unknown encoding"),
        (RUSSIAN.encode("koi8-r"), "of unknown encoding"),
        (JAPANESE.encode("shift-jis"), "of unknown encoding"),
        (JAPANESE.encode("euc-jp"), "of unknown encoding"),
        (JAPANESE.encode() + b"\xff\xfe\xff", "of unknown encoding"),
    ],
)
def test_what_is_not_certainly_text_is_left_out_and_counted(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "good").write_text("good")
    assert read(tmp_path) == ({"good": "good"}, f"took 1 of 2 files; left out: 1 {why}")


@pytest.fixture
def lying_around(tmp_path: Path) -> Iterator[Path]:
    """20 files of text among everything else that a folder may hold."""
    root = tmp_path / "text"
    (root / "deep" / "er").mkdir(parents=True)
    for number in range(16):
        (root / "deep" / f"{number}.txt").write_text(f"{number} {STORY * 900}", encoding="utf-8")
    (root / "crlf.txt").write_bytes(b"windows\r\n" * 9)
    Path(os.fsdecode(os.fsencode(root) + b"/rapport-\xe9t\xe9.txt")).write_text("odd name")
    folder = Path(os.fsdecode(os.fsencode(root) + b"/f\xfcr"))
    folder.mkdir()
    (folder / "a\nb.txt").write_text("odd folder")
    (root / "rows.jsonl").write_text('{"text": "a row"}\n')
    with zipfile.ZipFile(root / "old.zip", "w") as archive:
        archive.writestr("a.txt", "inside")
    (root / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    sqlite3.connect(root / "notes.db").execute("create table t (a)").connection.close()
    (root / "empty.txt").touch()
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("hidden")
    os.mkfifo(root / "pipe.txt")
    (root / "broken").symlink_to("nowhere")
    (root / "loop").symlink_to(".")
    (root / "everything").symlink_to("/")
    (root / "me").symlink_to("me")
    (root / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind(str(root / "socket.txt"))
        yield root


COUNTED = (
    "took 20 of 32 files; left out: 3 binary, 1 empty, 1 hidden, 2 linked folders, 3 special, 2 unreadable; "
    "note: rows with columns (JSON lines, CSV, parquet) in 1 of them"
)


def test_a_folder_of_everything_is_read_without_waiting_and_counted_in_one_line(lying_around: Path) -> None:
    (lying_around / "outside.txt").symlink_to(__file__)
    found, said = read(lying_around)
    assert said.startswith(COUNTED.replace("20 of 32", "21 of 33"))
    assert {"rapport-\\xe9t\\xe9.txt", "f\\xfcr/a\nb.txt", "crlf.txt", "rows.jsonl", "outside.txt"} < set(found)
    assert "build_pages.py --dataset json|csv|parquet" in said


def test_pages_of_such_a_folder_are_the_same_wherever_it_lies(lying_around: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = build_pages(tmp_path / "a", lying_around, num_pages=None, say=said.append)
    assert said[0] in COUNTED and said[0].startswith("took 20 of 32")
    paths = pq.read_table(tmp_path / "a" / "pages-00000.parquet")["file_path"].to_pylist()
    assert all(path.isascii() for path in paths)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-R", str(lying_around), str(copy)], check=True)
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", BUILD, str(tmp_path / "b"), str(copy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first.sha256


def test_a_file_may_be_named_and_a_device_may_not(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("only one")
    assert read(tmp_path / "one.txt") == ({"one.txt": "only one"}, "took 1 file")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "gone", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"is not a directory of text files, nor a text file") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_lines_without_an_end_and_blocks_make_no_difference(tmp_path: Path) -> None:
    """Long enough that a block ends inside a character, a line end, and a line that has no end."""
    (tmp_path / "long").write_bytes(b"x" + "\u00e9\r\n".encode() * 600_000 + b"y" * 3_000_000)
    with read_corpus(tmp_path, None) as corpus:
        documents = sorted(corpus.documents(), key=lambda d: d.offset)
    assert max(len(document.text.encode()) for document in documents) <= DOCUMENT_BYTES
    assert all(document.text.endswith("\r\n") for document in documents if "y" not in document.text)
    assert len(documents) < 100  # the same text again is left out


def test_a_file_that_changes_while_it_is_read_is_left_out_whole(tmp_path: Path) -> None:
    growing = tmp_path / "growing.log"
    growing.write_text("".join(f"line {number}\n" for number in range(300_000)))
    (tmp_path / "quiet.txt").write_text("quiet")
    stop = threading.Event()

    def grow() -> None:
        with growing.open("a") as file:
            while not stop.wait(0.001):
                file.write("one more line\n")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        found, said = read(tmp_path)
    finally:
        stop.set()
        writer.join()
    assert (found, said) == ({"quiet.txt": "quiet"}, "took 1 of 2 files; left out: 1 changed while being read")


def test_pages_of_other_text_are_not_taken_for_these(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text("".join(f"{number} {line}\n" for line in range(400)))
    first = build_pages(tmp_path / "pages", tmp_path / "text", num_pages=None)
    assert build_pages(tmp_path / "pages", tmp_path / "text", num_pages=None) == first
    with pytest.raises(ConfigError, match=r"pages of this text in other sizes \(2000 bytes, .* asked for: 3000 bytes"):
        build_pages(tmp_path / "pages", tmp_path / "text", num_pages=None, page_bytes=3000)
    (tmp_path / "text" / "0.txt").write_text("something else\n" * 400)
    with pytest.raises(ConfigError, match="pages holds pages of other text: use another directory"):
        build_pages(tmp_path / "pages", tmp_path / "text", num_pages=None)
    (tmp_path / "pages" / PAGES_FILE).unlink()  # as if building had been interrupted
    assert build_pages(tmp_path / "pages", tmp_path / "text", num_pages=None) != first
    assert LocalPages(tmp_path / "pages").fetch(0).documents
