from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.data.corpus import DOCUMENT_BYTES, read_corpus, split, stdlib_dir
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.page_file import open_page_table
from distributed_training.data.pages import page_digest
from distributed_training.errors import ConfigError, DataUnavailable


def write_text(root: Path, files: int = 12, lines: int = 400) -> Path:
    for number in range(files):
        path = root / f"dir{number % 3}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"file {number}, line {line}, caf\u00e9\n" for line in range(lines)), encoding="utf-8")
    return root


def build(out: Path, text: Path, **options: int | None):
    arguments = {"num_pages": None, "page_bytes": 6_000, "heldout_bytes": 9_000, "min_pages": 4} | options
    return build_pages(out, text, **arguments)  # pyright: ignore[reportArgumentType]


@given(
    st.text(st.sampled_from("ab \n\r\u00e9\u4e2d\U0001f600\x0c"), max_size=300), st.integers(1, 60), st.integers(7, 400)
)
def test_split_loses_nothing_and_keeps_documents_small(text: str, repeat: int, block: int) -> None:
    whole = text * repeat
    documents = list(split([whole], "a"))
    assert documents == list(split([whole[at : at + block] for at in range(0, len(whole), block)], "a"))
    assert "".join(document.text for document in documents) == text * repeat
    assert all(0 < len(document.text.encode()) <= DOCUMENT_BYTES for document in documents)
    assert all((text * repeat)[document.offset :].startswith(document.text) for document in documents)


def test_every_text_byte_lands_in_one_document_once(tmp_path: Path) -> None:
    root = write_text(tmp_path / "text")
    (root / "bad.txt").write_bytes(b"caf\xe9 in Latin-1\n")
    (root / "image.png").write_bytes(b"\x89PNG\0\0binary")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("hidden")
    (root / "copy.txt").write_bytes((root / "bad.txt").read_bytes())
    with read_corpus(root, None) as corpus:
        documents = list(corpus.documents())
    by_file: dict[str, str] = {}
    for document in sorted(documents, key=lambda d: (d.path, d.offset)):
        by_file[document.path] = by_file.get(document.path, "") + document.text
    expected = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in root.rglob("file*.txt")}
    once = {"bad.txt", "copy.txt"} & set(by_file)
    assert len(once) == 1
    assert by_file == expected | {once.pop(): "caf\u00e9 in Latin-1\n"}
    assert [d.path for d in documents] != sorted(d.path for d in documents)


def test_building_is_deterministic_and_the_parts_are_disjoint(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    first, second = build(tmp_path / "a", text), build(tmp_path / "b", text)
    assert (first.sha256, first.num_pages) == (second.sha256, second.num_pages)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    source = LocalPages(tmp_path / "a")
    pages = [source.fetch(index).documents for index in range(source.num_pages)]
    everything = [document for page in pages for document in page] + list(source.heldout())
    assert len(everything) == len(set(everything))
    sizes = [sum(len(document.encode()) for document in page) for page in pages]
    assert min(sizes) >= 6_000
    assert max(sizes) < 6_000 + DOCUMENT_BYTES
    (text / "dir0" / "file0.txt").write_text("other\n" * 900)
    assert build(tmp_path / "c", text).sha256 != first.sha256


def test_pages_are_row_groups_in_the_fineweb_schema(tmp_path: Path) -> None:
    build(tmp_path / "pages", write_text(tmp_path / "text", files=60), page_bytes=2_000)
    table = open_page_table(tmp_path / "pages" / "pages.bin")
    pages = [table.entry(index) for index in range(table.num_pages)]
    assert len(pages) > 128
    assert len(table.header.files) == 1 + -(-len(pages) // 128)
    names = ["text", "id", "dump", "url", "date", "file_path", "language", "language_score", "token_count"]
    for number, entry in enumerate(table.header.files):
        footer = pq.read_metadata(tmp_path / "pages" / entry.name)
        assert footer.schema.names == names
        groups = [page.row_group for page in pages if page.file == number]
        assert groups == list(range(footer.num_row_groups)) or entry.name == "heldout.parquet"
    page = pages[-1]
    column = (
        pq.read_metadata(tmp_path / "pages" / table.header.files[page.file].name).row_group(page.row_group).column(0)
    )
    assert column.path_in_schema == "text"
    assert page.length == column.total_compressed_size
    assert page.offset in (column.dictionary_page_offset, column.data_page_offset)
    assert table.missing_digests == 0
    assert table.header.dataset is None


def test_complete_pages_are_reused_and_broken_ones_rebuilt(tmp_path: Path) -> None:
    text, out = write_text(tmp_path / "text"), tmp_path / "pages"
    first = build(out, text)
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert build(out, text) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    (out / "heldout.parquet").unlink()
    assert build(out, text) == first
    assert len(LocalPages(out).heldout()) >= 1
    (out / "pages.bin").write_text("{")
    assert build(out, text) == first
    with pytest.raises(ConfigError, match="another directory"):
        build(out, text, page_bytes=5_000)


def test_num_pages_is_kept_and_too_little_text_is_named(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    assert build(tmp_path / "five", text, num_pages=5).num_pages == 5
    fewer = build(tmp_path / "fewer", text, num_pages=1_000).num_pages
    assert 5 < fewer < 1_000
    with pytest.raises(ConfigError, match=r"expected at least 1000: about 6\.\d MB"):
        build(tmp_path / "none", text, min_pages=1_000)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="not a directory"):
        build(tmp_path / "none", tmp_path / "absent")
    with pytest.raises(ConfigError, match="positive"):
        build(tmp_path / "none", text, num_pages=0)


def test_standard_library_has_enough_text(tmp_path: Path) -> None:
    pages = build_pages(tmp_path, None, num_pages=20, heldout_bytes=60_000)
    assert pages.num_pages == 20
    source = LocalPages(tmp_path)
    assert source.sha256 == pages.sha256
    assert sum(len(document.encode()) for document in source.heldout()) >= 32_000
    paths = {p.relative_to(stdlib_dir()).parts[0] for p in stdlib_dir().rglob("*.py")}
    rows = pq.read_table(tmp_path / "pages-00000.parquet", columns=["file_path"]).column(0).to_pylist()
    assert {row.split("/")[0] for row in rows} <= paths
    assert not any("site-packages" in row for row in rows)
    assert len(set(rows)) > 20


def test_page_digest_is_frozen_and_sees_document_borders() -> None:
    assert page_digest(["ab", "caf\u00e9"]).hex() == "afae2d1e7641072cc028f09da27202dda858c82387e9c624305c0b41d96d4a5a"
    assert len({page_digest(d) for d in (["ab"], ["a", "b"], ["ab", ""], ["", "ab"], [])}) == 5


def test_a_corrupt_heldout_set_is_our_own_trouble(tmp_path: Path) -> None:
    build(tmp_path, write_text(tmp_path / "text"))
    path = tmp_path / "heldout.parquet"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataUnavailable, match="held-out set"):
        LocalPages(tmp_path).heldout()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write to"):
        build(tmp_path / "file" / "pages", text)
