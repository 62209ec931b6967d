"""Opening a page manifest of half a million pages: time and memory of a fresh process."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from distributed_training.data.page_file import write_page_table
from distributed_training.data.pages import Dataset, FileEntry, Heldout, PageColumns, PageHeader, Recipe
from distributed_training.settings.arguments import whole

DESCRIPTION = """\
Write a page manifest in the shape of FineWeb's sample-350BT (about a thousand pages a file, each of 2 MB) and open it
in fresh processes, with a digest of every page and with none:

  open_s        to open it: hashed, mapped, every page checked. The file is in the system's cache
  open_mb       resident memory that opening adds, mapped pages of the file included
  used_mb       the same after reading 10,000 pages' entries and digests
  imports_mb    resident memory of that process before: Python with numpy, pydantic and blake3
  bare_mb       of a Python that has imported nothing
"""
GOAL_S, GOAL_MB = 1.0, 50.0
_CHILD = """
import json, sys, time
def rss_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024 / 1e6
bare = rss_mb()
from pathlib import Path
from distributed_training.data.page_file import open_page_table
imports, began = rss_mb(), time.perf_counter()
table = open_page_table(Path(sys.argv[1]))
took, opened = time.perf_counter() - began, rss_mb()
for index in range(0, table.num_pages, max(1, table.num_pages // 10_000)):
    table.entry(index), table.digest(index)
print(json.dumps({"open_s": took, "open_mb": opened - imports, "used_mb": rss_mb() - imports, "imports_mb": imports,
                  "bare_mb": bare, "sha256": table.sha256}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pages", type=whole(1, 1 << 26, "pages"), default=500_000, metavar="N", help="default 500,000"
    )
    parser.add_argument(
        "--times", type=whole(1, 100, "times"), default=5, metavar="N", help="processes each; default 5"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The median of each number. Slower or larger than the goal is a failure."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as root:
        for digests in (args.pages, 0):
            path = Path(root) / f"pages-{digests}.bin"
            written = made_up(path, args.pages, digests)
            runs = [opened(path) for _ in range(args.times)]
            assert {found.pop("sha256") for found in runs} == {written}
            measured = {name: round(median(found[name] for found in runs), 3) for name in runs[0]}
            rows.append({"pages": args.pages, "digests": digests, "file_mb": path.stat().st_size / 1e6, **measured})
    failures = [
        f"{row['pages']} pages with {row['digests']} digests: {row['open_s']} s and {row['open_mb']} MB, expected less "
        f"than {GOAL_S} s and {GOAL_MB} MB"
        for row in rows
        if row["open_s"] >= GOAL_S or row["open_mb"] >= GOAL_MB
    ]
    return {"name": "pages", "rows": rows, "failures": failures}


def made_up(path: Path, pages: int, digests: int) -> str:
    """Write a manifest; returns its sha256."""
    draw = np.random.default_rng(0)
    file, group = np.divmod(np.arange(pages, dtype=np.uint32), np.uint32(1_000))
    files = [
        FileEntry(
            name=f"sample/350BT/{number // 100:03d}_{number:05d}.parquet",
            num_bytes=2_200_000_000,
            sha256=f"{number:064x}",
            codec="SNAPPY",
            optional=True,
            column="text",
        )
        for number in range(int(file[-1]) + 2)
    ]
    held = Heldout(
        file=len(files) - 1, row_group=0, offset=4, length=2_000_000, rows=1_000, text_bytes=0, digest="0" * 64
    )
    header = PageHeader(
        version=2,
        recipe=Recipe(text="made up", page_bytes=None, heldout_bytes=None, num_pages=None),
        dataset=Dataset(repo="HuggingFaceFW/fineweb", revision="0" * 40),
        files=tuple(files),
        heldout=(held,),
    )
    columns = PageColumns(
        offset=4 + group.astype(np.uint64) * 2_200_000,
        file=file,
        row_group=group,
        length=draw.integers(1_800_000, 2_190_000, pages, dtype=np.uint32),
        rows=np.full(pages, 1_000, np.uint32),
        text_bytes=np.zeros(pages, np.uint32),
        digest_pages=np.arange(digests, dtype=np.uint32),
        digests=draw.integers(0, 256, (digests, 32), dtype=np.uint8),
    )
    return write_page_table(path, header, columns).sha256


def opened(path: Path) -> dict[str, Any]:
    """Numbers of one fresh process."""
    done = subprocess.run([sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
