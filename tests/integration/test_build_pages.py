"""scripts/build_pages.py against a Hub: footers, digests, rewriting, uploads, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Settings, TestHub, User
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks.made_up_fineweb import write_fineweb
from distributed_training.data.local import LocalPages
from distributed_training.data.page_file import PAGES_FILE, PageTable, open_page_table
from distributed_training.data.pages import page_digest

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_pages.py"
FINEWEB = "HuggingFaceFW/fineweb"
FILES, GROUPS, ROWS = 3, 60, 20
BASICS = ["--dataset", FINEWEB, "--name", "sample-10BT"]
READ = """
import datasets, json, sys
def rows(repo, name, split, columns):
    found = datasets.load_dataset(repo, name or None, split=split, streaming=True)
    return [[row[c] for c in columns.split(",")] for row in found]
json.dump([rows(*job) for job in json.loads(sys.argv[1])], open(sys.argv[2], "w"))
"""
TRY_ALL = """
import contextlib, importlib.util, io, json, sys
from distributed_training.settings.entry import run_main
spec = importlib.util.spec_from_file_location("build_pages", sys.argv[1])
script = importlib.util.module_from_spec(spec)
sys.modules["build_pages"] = script
spec.loader.exec_module(script)
answers = []
for flags in json.loads(sys.argv[2]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        answers.append((run_main(lambda: script.main(flags)), errors.getvalue()))
print()
print(json.dumps(answers))
"""  # in one process, for each of the commands


@pytest.fixture(scope="module")
def fineweb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fineweb")
    write_fineweb(folder, files=FILES, row_groups=GROUPS, documents=ROWS)
    return folder


def tree(folder: Path) -> dict[str, bytes | Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def hub(fineweb: Path, tmp_path: Path) -> Iterator[TestHub]:
    tokens = {"hf_test": User("tester", "write", ("*",)), "hf_read": User("reader", "read")}
    with TestHub(tmp_path / "hub", settings=Settings(tokens=tokens)) as hub:
        hub.put("datasets", FINEWEB, tree(fineweb), tag="v1")
        yield hub


def environment(hub: TestHub, folder: Path, token: str | None = None) -> dict[str, str]:
    values = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf")}
    return os.environ | values | ({"HF_TOKEN": token, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"} if token else {})


def start(hub: TestHub, out: Path, *flags: str, token: str | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *flags, "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(hub, out.parent, token)
    )


def build(hub: TestHub, out: Path, *flags: str, token: str | None = None) -> tuple[str, PageTable]:
    """What the script printed, and the table it wrote."""
    process = start(hub, out, *flags, token=token)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    table = open_page_table(out / PAGES_FILE)
    assert f"sha256   {table.sha256}" in printed
    return printed, table


def refused(hub: TestHub, out: Path, *flags: str, code: int = 2, token: str | None = None) -> str:
    """The one line of an error."""
    process = start(hub, out, *flags, token=token)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code and errors.count("\n") == 1, errors
    assert errors.startswith("error: ")
    return errors


def run_all(hub: TestHub, folder: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and errors of each command, all in one process: starting one costs more than most of them."""
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL, str(SCRIPT), json.dumps(commands)],
        env=environment(hub, folder),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows_by_datasets(hub: TestHub, folder: Path, *jobs: tuple[str, str, str, str]) -> list[list[list]]:
    """What the real library yields for each (repository, configuration, split, columns), in order."""
    out = folder / "rows.json"
    command = [sys.executable, "-c", READ, json.dumps(jobs), str(out)]
    subprocess.run(command, check=True, env=environment(hub, folder), capture_output=True, timeout=60)
    return json.loads(out.read_text())


def documents_of(pages: Path) -> tuple[list[str], list[str]]:
    """Of all pages in order, and of the held-out set."""
    source = LocalPages(pages)
    return [text for i in range(source.num_pages) for text in source.fetch(i).documents], list(source.heldout())


def beside_its_files(table: Path, fineweb: Path, folder: Path) -> Path:
    """A directory with the table and the files of the data set, as a mirror has them."""
    folder.mkdir()
    for name, path in tree(fineweb).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path)  # pyright: ignore[reportArgumentType]
    (folder / PAGES_FILE).write_bytes((table / PAGES_FILE).read_bytes())
    return folder


def footers(fineweb: Path) -> list[int]:
    """Bytes of each footer."""
    return [pq.read_metadata(path).serialized_size + 8 for path in sorted((fineweb / "sample").rglob("*.parquet"))]


def bytes_of_parquet(hub: TestHub) -> int:
    return sum(seen.sent for seen in hub.requests if seen.path.endswith(".parquet") or "/cdn/" in seen.path)


# --- from the footers -------------------------------------------------------------------------------------


def test_pages_are_what_datasets_yields_and_only_footers_are_read(hub: TestHub, fineweb: Path, tmp_path: Path) -> None:
    printed, table = build(hub, tmp_path / "out", *BASICS, "--revision", "v1", "--threads", "2")
    chunks = sum(piece.length for piece in table.header.heldout)
    assert sum(footers(fineweb)) <= bytes_of_parquet(hub) - chunks <= 1.05 * sum(footers(fineweb)) + (64 << 10)
    commit = hub.store.get("datasets", FINEWEB).tags["v1"]  # pyright: ignore[reportOptionalMemberAccess]
    assert table.header.dataset is not None and table.header.dataset.revision == commit and commit in printed
    assert (table.num_pages, len(table.header.heldout)) == (GROUPS - 4, 4)
    assert "0 of 56 pages have a digest; the others are trusted by the commit" in printed
    (found,) = rows_by_datasets(hub, tmp_path, (FINEWEB, "sample-10BT", "train", "text"))
    rows = [text for (text,) in found]
    pages, heldout = documents_of(beside_its_files(tmp_path / "out", fineweb, tmp_path / "mirror"))
    kept_out = set(heldout)
    assert len(rows) == GROUPS * ROWS and len(heldout) == 4 * ROWS
    assert pages == [text for text in rows if text not in kept_out]
    spread = [rows.index(text) // ROWS for text in heldout[::ROWS]]
    assert spread == [7, 22, 37, 52]


def test_the_order_of_answers_changes_nothing(hub: TestHub, tmp_path: Path) -> None:
    _, first = build(hub, tmp_path / "a", *BASICS)
    hub.faults.add("stall", path="001_00000", seconds=1.0)
    hub.faults.add("rate_limit", path="002_00000", seconds=1.0)
    hub.faults.add("drop", path="/cdn/", after_bytes=100, times=3)
    hub.faults.add("rate_limit", path="/api/datasets", seconds=1.0)
    _, second = build(hub, tmp_path / "b", *BASICS, "--threads", "3")
    assert first.sha256 == second.sha256
    assert hub.traffic.stats()["fault.rate_limit"] == 2


def test_a_build_that_ctrl_c_ended_goes_on_where_it_was(hub: TestHub, fineweb: Path, tmp_path: Path) -> None:
    _, whole = build(hub, tmp_path / "whole", *BASICS)
    stall = hub.faults.add("stall", path="002_00000", seconds=60.0, times=None)
    process = start(hub, tmp_path / "out", *BASICS)
    partial = tmp_path / "out" / ".partial"
    until = time.monotonic() + 30
    while not (partial / "footer-00001.json").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "stopped; the same command goes on from here\n"
    assert process.returncode == 130
    hub.faults.remove(stall)
    (partial / "footer-00000.json").write_bytes(b'{"name"')  # as a bad disk would leave it
    hub.traffic.reset()
    _, table = build(hub, tmp_path / "out", *BASICS)
    assert table.sha256 == whole.sha256
    chunks = sum(piece.length for piece in table.header.heldout)
    assert bytes_of_parquet(hub) - chunks < 2.1 * max(footers(fineweb)) + (64 << 10)


def test_digests_are_those_of_the_pages_and_go_on_after_a_kill(hub: TestHub, fineweb: Path, tmp_path: Path) -> None:
    _, whole = build(hub, tmp_path / "whole", *BASICS, "--digests")
    slow = hub.faults.add("stall", path="/cdn/", seconds=0.1, times=None)
    process = start(hub, tmp_path / "out", *BASICS, "--digests", "--threads", "1")
    log = tmp_path / "out" / ".partial" / "digests.log"
    until = time.monotonic() + 30
    while not (log.exists() and log.stat().st_size >= 3 * 56) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.faults.remove(slow)
    log.write_bytes(log.read_bytes()[:-5])  # a record that the kill cut
    printed, table = build(hub, tmp_path / "out", *BASICS, "--digests")
    assert table.sha256 == whole.sha256 and table.missing_digests == 0
    assert "every page has a digest" in printed
    mirror = beside_its_files(tmp_path / "out", fineweb, tmp_path / "mirror")
    source = LocalPages(mirror)
    for number in range(table.num_pages):
        documents = source.fetch(number).documents
        assert table.digest(number) == page_digest(documents)
        assert table.entry(number).text_bytes == sum(len(text.encode()) for text in documents)


def test_a_limit_reads_no_more_files_than_it_needs(hub: TestHub, fineweb: Path, tmp_path: Path) -> None:
    _, table = build(hub, tmp_path / "out", *BASICS, "--limit", "7", "--heldout-pages", "2")
    assert (table.num_pages, len(table.header.heldout), len(table.header.files)) == (7, 2, 1)
    assert {table.entry(i).row_group for i in range(7)} | {h.row_group for h in table.header.heldout} == set(range(9))
    assert not [seen for seen in hub.requests if "001_00000" in seen.path]


def test_row_groups_that_cannot_be_pages_are_left_out(hub: TestHub, tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    with pq.ParquetWriter(path, pa.schema([("body", pa.string()), ("n", pa.int64())])) as writer:
        for texts in (["a", "b"], ["c", None], [], ["d"], ["e"]):
            table = pa.table({"body": texts, "n": range(len(texts))}, schema=writer.schema)
            writer.write_table(table, row_group_size=10)
    hub.put("datasets", "org/odd", {"train/odd.parquet": path, "test/odd.parquet": path})
    printed, table = build(hub, tmp_path / "out", "--dataset", "org/odd", "--column", "body", "--heldout-pages", "1")
    assert "row groups left out: " in printed and "1 with rows that have no text" in printed
    assert [entry.name for entry in table.header.files] == ["train/odd.parquet"]
    assert table.num_pages == 2


def test_row_groups_that_nobody_can_decode_are_left_out(hub: TestHub, tmp_path: Path) -> None:
    quiet, dense = tmp_path / "quiet.parquet", tmp_path / "dense.parquet"
    with pq.ParquetWriter(quiet, pa.schema([("text", pa.string())]), write_statistics=False) as writer:
        for texts in (["a", "b"], ["c", None], ["d"], ["e"], ["f"]):
            writer.write_table(pa.table({"text": texts}))
    with pq.ParquetWriter(
        dense, pa.schema([("text", pa.string())]), compression="zstd", use_dictionary=False
    ) as writer:
        writer.write_table(pa.table({"text": ["x" * 3_000_000]}))  # far more than 64 times its compressed bytes
        writer.write_table(pa.table({"text": ["g"]}))
    hub.put("datasets", "org/odd", {"a.parquet": quiet, "b.parquet": dense})
    flags = ["--dataset", "org/odd", "--heldout-pages", "1"]
    printed, table = build(hub, tmp_path / "digests", *flags, "--digests")
    said = "row groups left out: 1 too large for a page, 1 that cannot be decoded one by one"
    assert said in printed and (table.num_pages, table.missing_digests) == (4, 0)
    printed, table = build(hub, tmp_path / "footers", *flags)
    assert "row groups left out: 1 too large for a page\n" in printed and table.num_pages == 5


def test_a_run_is_made_over_pages_that_lie_on_the_hub(hub: TestHub, tmp_path: Path) -> None:
    _, table = build(hub, tmp_path / "out", *BASICS, "--tokenizer", "bytes")
    made = tmp_path / "manifest.json"
    flags = ["--preset", "local", "--pages", str(tmp_path / "out"), "--tokenizer", "bytes", "--out", str(made)]
    command = [sys.executable, str(SCRIPT.with_name("create_run.py")), *flags]
    done = subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    data = json.loads(made.read_text())["data"]
    assert (data["pages_sha256"], data["num_pages"], data["page_trust"]) == (table.sha256, 56, "commit")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["manifest.json"]


# --- written anew -----------------------------------------------------------------------------------------


def test_filtered_rows_are_written_uploaded_and_read_back(hub: TestHub, tmp_path: Path) -> None:
    sizes = ["--page-bytes", "20000", "--heldout-bytes", "30000"]
    flags = [*BASICS, "--filter", "language_score > 0.8 and language == 'en'", *sizes]
    printed, table = build(hub, tmp_path / "out", *flags, "--upload", "org/mine", token="hf_test")
    assert "REWRITE: --filter" in printed and "rows left out: " in printed and "by --filter" in printed
    repo = hub.store.get("datasets", "org/mine")
    assert repo is not None
    commit = repo.branches["main"]
    assert f"hub:org/mine@{commit}" in printed

    rows, train, test = rows_by_datasets(
        hub,
        tmp_path,
        (FINEWEB, "sample-10BT", "train", "text,language_score"),
        ("org/mine", "", "train", "text"),
        ("org/mine", "", "test", "text"),
    )
    wanted = [text for text, score in rows if score > 0.8]
    pages, heldout = documents_of(tmp_path / "out")
    assert 0 < len(heldout) < len(wanted) / 10 and sorted(pages + heldout) == sorted(wanted)
    assert [text for text in wanted if text not in set(heldout)] == pages
    assert table.header.dataset is None and table.missing_digests == 0
    assert ([text for (text,) in train], [text for (text,) in test]) == (pages, heldout)

    again, _ = build(hub, tmp_path / "out", *flags, "--upload", "org/mine", token="hf_test")
    assert f"hub:org/mine@{commit}" in again and repo.branches["main"] == commit


def test_files_on_this_machine_become_pages(hub: TestHub, tmp_path: Path) -> None:
    rows: list[Mapping[str, object]] = [{"content": f"row {i} " * 40, "score": i} for i in range(400)]
    rows += [{"content": " ", "score": 1}, {"content": None, "score": 1}]
    for number in range(2):
        part = "".join(json.dumps(row) + "\n" for row in rows[number * 201 : (number + 1) * 201])
        (tmp_path / f"part-{number}.jsonl").write_text(part)
    flags = ["--dataset", "json", "--data-files", str(tmp_path / "*.jsonl"), "--column", "content"]
    sizes = ["--page-bytes", "5000", "--heldout-bytes", "4000"]
    printed, table = build(hub, tmp_path / "out", *flags, *sizes)
    assert "rows left out: 2 without text of 402" in printed
    assert not hub.requests  # nobody was asked
    pages, heldout = documents_of(tmp_path / "out")
    assert pages == [row["content"] for row in rows[:400] if row["content"] not in set(heldout)]
    assert str(tmp_path) not in table.header.canonical().decode()
    assert build(hub, tmp_path / "again", *flags, *sizes)[1].sha256 == table.sha256
    few, table = build(
        hub, tmp_path / "few", *flags, "--page-bytes", "5000", "--limit", "3", "--filter", "score >= 100"
    )
    assert table.num_pages == 3 and documents_of(tmp_path / "few")[0][0] == rows[101]["content"]
    assert "left out: 100 by --filter" in few


def test_text_files_become_pages(hub: TestHub, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} and more\n" * 300)
    printed, table = build(hub, tmp_path / "out", "--text", str(tmp_path / "text"), "--page-bytes", "4000")
    assert "TEXT: " in printed and table.num_pages >= 16


# --- what goes wrong --------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_line(hub: TestHub, tmp_path: Path) -> None:
    hub.put("models", "org/model", {"config.json": b"{}"})
    hub.put("datasets", "org/secret", {"data.parquet": b"PAR1"}, private=True)
    hub.put("datasets", "org/broken", {"data.parquet": b"PAR1" + bytes(100)})
    (tmp_path / "rows.csv").write_text("a,b\n1,x\n2,y\n")
    csv = ["--dataset", "csv", "--data-files", str(tmp_path / "*.csv")]
    cases: list[tuple[list[str], str]] = [
        (["--dataset", "org/none"], "no such data set on the Hub, or it is private and no token is set"),
        (["--dataset", "org/model"], "this is a model, expected a data set"),
        (["--dataset", "org/secret"], "private and no token is set (HF_TOKEN"),
        (["--dataset", "not a name"], "expected ORG/NAME"),
        (
            [*BASICS, "--revision", "v9"],
            "--revision v9: not in HuggingFaceFW/fineweb; expected a commit or one of main, v1",
        ),
        (["--dataset", FINEWEB, "--name", "sample-1T"], "one of default, sample-10BT, sample-100BT"),
        (["--dataset", FINEWEB, "--name", "sample-100BT"], "no file fits sample/100BT/*"),
        ([*BASICS, "--split", "test"], "--split test: not in HuggingFaceFW/fineweb; expected one of train"),
        ([*BASICS, "--column", "content"], "no column 'content'; expected one of text, id, dump"),
        ([*BASICS, "--column", "token_count"], "column 'token_count' is INT64"),
        ([*BASICS, "--heldout-pages", "60"], "has 60 row groups, expected more than 60"),
        ([*BASICS, "--page-bytes", "5"], "--page-bytes is for REWRITE and TEXT, but this is FOOTERS"),
        ([*BASICS, "--filter", "len(text) > 3"], "--filter: len(text)"),
        ([*BASICS, "--filter", "score > 3"], "--filter: no column score; expected one of text, id"),
        ([*BASICS, "--rewrite", "--column", "x"], "--column x is not there; expected one of text, id"),
        ([*BASICS, "--rewrite", "--column", "token_count"], "--column token_count is not text"),
        (["--dataset", "org/broken"], "data.parquet: expected a parquet file"),
        ([*csv, "--column", "a"], "--column a is not text; expected one of b"),
        (["--dataset", "csv"], "--dataset csv needs --data-files GLOB"),
        (["--dataset", "csv", "--data-files", str(tmp_path / "*.no")], "*.no: no file fits"),
        (["--dataset", "xml", "--data-files", "*"], "expected one of parquet, json, csv, text"),
        ([], "expected --dataset NAME or --text DIR"),
        ([*BASICS, "--tokenizer", "word.json"], "word.json: No such file"),
    ]
    commands = [[*flags, "--out", str(tmp_path / f"out-{number}")] for number, (flags, _) in enumerate(cases)]
    answers = run_all(hub, tmp_path, commands)
    for (flags, message), (code, errors) in zip(cases, answers, strict=True):
        assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, (flags, errors)
        assert message in errors, flags


def test_a_private_data_set_needs_a_token_that_may_read_it(hub: TestHub, fineweb: Path, tmp_path: Path) -> None:
    hub.put("datasets", "tester/secret", tree(fineweb), private=True)
    flags = ["--dataset", "tester/secret", "--name", "sample-10BT", "--limit", "5"]
    assert "the token may not read it" in refused(hub, tmp_path / "out", *flags, token="hf_read")
    _, table = build(hub, tmp_path / "out", *flags, token="hf_test")
    assert table.num_pages == 5 and hub.traffic.leaks == []


def test_a_directory_holds_one_data_set(hub: TestHub, tmp_path: Path) -> None:
    hub.put("datasets", FINEWEB, {"new.txt": b"a later commit"})
    (tmp_path / "rows.csv").write_text("text\n" + "words\n" * 2000)
    footers, rewritten = ["--out", str(tmp_path / "footers")], ["--out", str(tmp_path / "rewritten")]
    csv = ["--dataset", "csv", "--data-files", str(tmp_path / "*.csv")]
    cases: list[tuple[list[str], str]] = [
        ([*BASICS, *footers, "--revision", "v1"], ""),
        ([*BASICS, *footers], "was begun for other files"),
        ([*BASICS, *footers, "--revision", "v1", "--limit", "9"], "other pages of this data set"),
        ([*csv, *footers, "--page-bytes", "1000"], "holds a pages.bin of other pages"),
        ([*csv, *rewritten, "--page-bytes", "1000"], ""),
        ([*csv, *rewritten, "--page-bytes", "2000"], "holds other pages"),
        ([*BASICS, *rewritten], "holds the pages of another data set"),
    ]
    answers = run_all(hub, tmp_path, [flags for flags, _ in cases])
    for (flags, message), (code, errors) in zip(cases, answers, strict=True):
        assert code == (2 if message else 0) and message in errors, (flags, errors)


def test_an_upload_needs_a_token_that_may_write_before_anything_is_built(hub: TestHub, tmp_path: Path) -> None:
    flags = [*BASICS, "--limit", "5", "--upload", "org/mine"]
    for token, said in ((None, "there is no token|does not know this token"), ("hf_read", "may only read")):
        found = refused(hub, tmp_path / "out", *flags, token=token)
        assert re.search(f"cannot write to org/mine: .*({said})", found), found
    assert "expected ORG/NAME" in refused(hub, tmp_path / "out", *BASICS, "--upload", "mine")
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_is_told_in_one_line(hub: TestHub, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} and more\n" * 300)
    out, upload = tmp_path / "out", ["--upload", "org/mine"]
    build(hub, out, "--text", str(tmp_path / "text"), "--page-bytes", "4000")
    put = hub.faults.add("expired", method="PUT", times=None)  # what the client does not try again
    said = refused(hub, out, *upload, token="hf_test")
    assert "--upload org/mine: the pages are built, but not published" in said and put.fired
    hub.faults.clear()
    path = next(out.glob("pages-*.parquet"))
    data = path.read_bytes()
    for damage, message in ((data[:-1], "bytes, expected"), (b"?" + data[1:], "has changed"), (None, "is not there")):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert message in refused(hub, out, *upload, token="hf_test")
    path.write_bytes(data)
    assert "uploaded hub:org/mine@" in build(hub, out, *upload, token="hf_test")[0]


def test_a_build_that_is_refused_leaves_the_tokenizer_alone(hub: TestHub, tmp_path: Path) -> None:
    mine = Tokenizer(WordLevel({"<eos>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    mine.add_special_tokens(["<eos>"])
    mine.save(str(tmp_path / "mine.json"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("the one of these pages")
    flags = [*BASICS, "--tokenizer", str(tmp_path / "mine.json"), "--eos", "<eos>"]
    assert "row groups, expected more" in refused(hub, out, *flags, "--heldout-pages", "60")
    assert (out / "tokenizer.json").read_text() == "the one of these pages"
    (out / "tokenizer.json").unlink()
    (out / "tokenizer.json").mkdir()
    assert "cannot write" in refused(hub, out, *flags)


def test_a_disk_that_takes_no_more_is_told(hub: TestHub, tmp_path: Path) -> None:
    """A limit on the size of a file fails a write as a full disk does."""
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f"word {number}\n" * 9 for number in range(9000)))
    csv = ["--dataset", "csv", "--data-files", str(tmp_path / "rows.csv"), "--rewrite"]
    for flags in (BASICS, csv):
        out = tmp_path / flags[1].replace("/", "-")
        command = [sys.executable, str(SCRIPT), *flags, "--out", str(out)]
        done = subprocess.run(
            command,
            env=environment(hub, tmp_path),
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"to {out}: " in done.stderr and "File too large" in done.stderr
        assert not (out / PAGES_FILE).exists() and not list(out.rglob("*.part"))


def test_a_hub_that_is_down_is_no_mistake(hub: TestHub, tmp_path: Path) -> None:
    hub.stop()
    assert "does not answer" in refused(hub, tmp_path / "out", *BASICS, code=1)
