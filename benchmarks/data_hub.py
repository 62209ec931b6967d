"""A data set of FineWeb's shape on the hub of the tests, which runs as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.made_up_fineweb import NAME, write_fineweb
from distributed_training.data.chunks import decode, row_groups
from distributed_training.data.page_file import PAGES_FILE, PageTable, write_page_table
from distributed_training.data.pages import (
    FileEntry,
    Heldout,
    PageColumns,
    PageEntry,
    PageHeader,
    Recipe,
    page_digest,
)
from distributed_training.data.places.ranges import Limits
from distributed_training.data.reading import TablePages
from distributed_training.data.remote import open_remote

REPO = "org/fineweb"
_TESTS = Path(__file__).resolve().parents[1] / "tests"


class HubProcess:
    """The hub at `endpoint` serves `folder`; `table` lists its pages, each with its digest."""

    def __init__(self, folder: Path, table: PageTable, sha: str, endpoint: str) -> None:
        self.folder, self.table, self.sha, self.endpoint = folder, table, sha, endpoint

    def open(self, limits: Limits | None = None) -> TablePages:
        """Not kept on disk: every page that is read is fetched."""
        place = f"hub:{REPO}@{self.sha}"
        return open_remote(self.table, [place], endpoint=self.endpoint, token="hf_test", limits=limits or Limits())

    @contextmanager
    def counted(self, faults: Sequence[dict[str, Any]] = ()) -> Iterator[Counter[str]]:
        """With these faults; afterwards the counter holds what the server has counted meanwhile."""
        before, counted = self._stats(), Counter[str]()
        self._admin("POST", list(faults))
        try:
            yield counted
        finally:
            self._admin("DELETE")
            time.sleep(0.1)  # the last answers are counted when they are sent
            after = self._stats()
            counted.update({name: after[name] - before.get(name, 0) for name in after})

    def _stats(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.endpoint}/admin/stats", timeout=10) as answer:
            return {name: value for name, value in json.load(answer).items() if isinstance(value, int)}

    def _admin(self, method: str, body: Any = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/admin/faults", data, method=method)
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def served(root: Path, *, row_groups: int, documents: int, files: int) -> Iterator[HubProcess]:
    """Make the data set below `root` and serve it for as long as the context lasts."""
    folder = root / "data"
    parquet = write_fineweb(folder, files=files, row_groups=row_groups + 1, documents=documents)
    table = page_table(folder, parquet, root / PAGES_FILE)
    sys.path.append(str(_TESTS))
    from hub import TestHub  # tests/ is no part of the package

    contents = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    sha = TestHub(root / "hub").put("datasets", REPO, contents)
    command = [sys.executable, str(_TESTS / "hub" / "__main__.py"), "--root", str(root / "hub")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield HubProcess(folder, table, sha, process.stdout.readline().strip())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def page_table(folder: Path, parquet: Sequence[Path], target: Path) -> PageTable:
    """Every row group is a page but the last, which is held out."""
    files: list[FileEntry] = []
    pages: list[tuple[PageEntry, bytes]] = []
    for number, path in enumerate(parquet):
        column = row_groups(pq.read_metadata(path), "text")
        file = column.file_entry(path.relative_to(folder).as_posix(), path.stat().st_size, "text")
        with path.open("rb") as opened:
            for entry in column.groups:
                opened.seek(entry.offset)
                texts = decode(opened.read(entry.length), entry, file, path.name)
                size = sum(len(text.encode()) for text in texts)
                pages.append((entry._replace(file=number, text_bytes=size), page_digest(texts)))
        files.append(file)
    *pages, (held, digest) = pages
    header = PageHeader(
        version=2,
        recipe=Recipe(text=f"made-up {NAME}", page_bytes=None, heldout_bytes=None, num_pages=None),
        dataset=None,
        files=tuple(files),
        heldout=(Heldout(**held._asdict(), digest=digest.hex()),),
    )
    return write_page_table(target, header, PageColumns.of(pages))
