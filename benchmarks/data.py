"""Reading pages: from disk, over the wire, over a bad line; and stock `datasets` over the same wire beside them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.data_hub import REPO, HubProcess, served
from benchmarks.data_line import over_a_bad_line
from benchmarks.made_up_fineweb import NAME
from benchmarks.table import show
from distributed_training.data.base import PageSource
from distributed_training.data.loader import READERS, BatchStream
from distributed_training.data.page_file import PageTable
from distributed_training.data.places.base import Directory
from distributed_training.data.reading import TablePages
from distributed_training.data.tokenised import TokenisedPages, packed
from distributed_training.data.tokens import Tokenizer, load_tokenizer
from distributed_training.protocol.rules.assignment import Permutation
from distributed_training.settings.arguments import whole

DESCRIPTION = """\
Read pages of FineWeb's shape (a thousand documents, all nine columns, snappy) through the loader, whose consumer does
nothing but take batches of 128 sequences of 1,024 tokens. The server is another process on this machine: the hub of
the tests, with signed addresses. GPT-2's tokeniser; the text is the standard library's sources.

  tokens                     kept: a second pass, the pages' tokens are still in memory. now: fetched, decoded, checked
                             and tokenised. none: fetched, decoded and checked only, counted in the same tokens
  tokens_per_s               as fast as it goes
  stall_share                of a consumer that takes 463,000 tokens/s (an H200 with GPT-2 124M): the share of its time
                             that it waits, without the first batch
  bytes_fetched_per_byte_used  bodies that the server sent, per byte of the pages' column chunks
  requests_per_page          all that the server answered, resolving addresses included
  cpu_ns_per_token           of this process, all threads

Then --pages small pages in a row through 8 threads with 1 % of answers dropped, truncated, refused with 429 or expired:
every page right, none twice, memory flat.
"""
GOAL = 463_000  # tokens/s
BATCH, LENGTH = 128, 1024
PASSES = 20  # over the pages where nothing is tokenised
KINDS = ("drop", "truncate", "rate_limit", "expired")
FAULTS = [
    {"kind": kind, "path": "/cdn/", "share": 0.01 / len(KINDS), "after_bytes": 5_000, "seed": number}
    for number, kind in enumerate(KINDS)
]
_STOCK = """
import json, os, sys, time
from datasets import load_dataset
from distributed_training.data.tokens import load_tokenizer
repo, name, sha, tokenise = sys.argv[1:]
tokenizer, tokens = load_tokenizer("gpt2"), 0
began, cpu = time.perf_counter(), time.process_time()
rows = load_dataset(repo, name, revision=sha, split="train", streaming=True, columns=["text"])
for batch in rows.iter(batch_size=1000):
    if tokenise == "now":
        tokens += sum(map(len, tokenizer.encode_batch(batch["text"]))) + len(batch["text"])
print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "tokens": tokens}))
sys.stdout.flush()
os._exit(0)  # its reading threads now and then abort an ordinary exit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pages", type=whole(100, 1 << 20, "pages"), default=10_000, metavar="N", help="small ones; default 10,000")
    add("--large", type=whole(2, 1000, "pages"), default=24, metavar="N", help="pages of FineWeb's size; default 24")
    add("--quick", action="store_true", help="6 large pages and 500 small ones")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Rows by source. A goal that is missed is a failure."""
    large, small = (6, 500) if args.quick else (args.large, args.pages)
    tokenizer = load_tokenizer("gpt2")
    with TemporaryDirectory() as root:
        with served(Path(root) / "large", row_groups=large, documents=1_000, files=3) as hub:
            rows = list(measured(hub, tokenizer))
        with served(Path(root) / "small", row_groups=small, documents=8, files=5) as hub:
            line, failures = over_a_bad_line(hub, FAULTS)
    show([line], title="pages in a row over a bad line")
    return {"name": "data", "rows": rows, "bad_line": line, "failures": [*missed(rows), *failures]}


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """The goals that rows over a good line do not reach."""
    found = []
    for row in (row for row in rows if row["source"] == "remote"):
        if row["tokens"] != "now" and row["tokens_per_s"] < GOAL:
            found.append(f"tokens {row['tokens']}: {row['tokens_per_s']:.0f} tokens/s, expected {GOAL}")
        if row["tokens"] != "kept" and row["bytes_fetched_per_byte_used"] > 1.01:
            found.append(f"{row['bytes_fetched_per_byte_used']:.3f} bytes fetched for each that is used, expected 1.01")
    return found


def measured(hub: HubProcess, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Every source of the large pages."""
    local = TablePages(hub.table, [Directory(hub.folder)])
    total = sum(len(packed(local.fetch(index).documents, tokenizer)) for index in range(hub.table.num_pages))
    for name, faults in (("local", None), ("remote", []), ("remote, 1 % faults", FAULTS)):
        source = local if faults is None else hub.open()
        for stage in ("none", "now"):
            passes = PASSES if stage == "none" else 1
            with hub.counted(faults or []) as counted:
                pages = TokenisedPages(source, tokenizer)
                row = fetched(source, total) if stage == "none" else drawn(pages, tokenizer)
            if stage == "now":
                row["stall_share"] = stall_share(TokenisedPages(source, tokenizer), tokenizer)
            yield {"source": name, "tokens": stage, **row, **wire(hub.table, passes, counted, faults is None)}
            if stage == "now" and faults == []:
                kept = {**drawn(pages, tokenizer), "stall_share": stall_share(pages, tokenizer)}
                yield {"source": name, "tokens": "kept", **kept}
    for stage in ("none", "now"):
        yield {"source": "datasets, streaming", "tokens": stage, **stock(hub, total, stage)}


def fetched(source: PageSource, total: int) -> dict[str, Any]:
    """Pages fetched, decoded and checked by as many threads as the loader has, PASSES times."""
    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(READERS) as pool:
        for _ in range(PASSES):
            for _ in pool.map(source.fetch, range(source.num_pages)):
                pass
    return speed(PASSES * total, time.perf_counter() - began, time.process_time() - cpu)


def drawn(pages: PageSource, tokenizer: Tokenizer) -> dict[str, Any]:
    """All batches there are, as fast as they come."""
    began, cpu = time.perf_counter(), time.process_time()
    with stream(pages, tokenizer) as batches:
        count = sum(batch.size for batch in batches)
    return speed(count, time.perf_counter() - began, time.process_time() - cpu)


def stall_share(pages: PageSource, tokenizer: Tokenizer) -> float:
    """Of a consumer with a step of BATCH * LENGTH tokens at the goal's rate."""
    with stream(pages, tokenizer) as batches:
        next(batches)
        began, first_s = time.perf_counter(), batches.stall_s
        for batch in batches:
            time.sleep(batch.size / GOAL)
        return (batches.stall_s - first_s) / (time.perf_counter() - began)


def stream(pages: PageSource, tokenizer: Tokenizer) -> BatchStream:
    permutation = Permutation(bytes(32), pages.num_pages)
    return BatchStream(pages, tokenizer, permutation, max_uids=1, uid=0, batch_size=BATCH, sequence_length=LENGTH)


def speed(tokens: int, seconds: float, cpu: float) -> dict[str, Any]:
    return {"tokens_per_s": tokens / seconds, "cpu_ns_per_token": 1e9 * cpu / tokens}


def wire(table: PageTable, passes: int, counted: Counter[str], local: bool) -> dict[str, Any]:
    """Of so many passes over all pages; a local one sends nothing and reads each byte once."""
    used = passes * sum(table.entry(index).length for index in range(table.num_pages))
    return {
        "bytes_fetched_per_byte_used": 1.0 if local else counted["bytes"] / used,
        "requests_per_page": 0.0 if local else counted["requests"] / table.num_pages / passes,
    }


def stock(hub: HubProcess, total: int, stage: str) -> dict[str, Any]:
    """The same files through `load_dataset(..., streaming=True)`; importing it is not counted."""
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = str(hub.folder.parent / f"hf-{stage}")
    command = [sys.executable, "-c", _STOCK, REPO, NAME, hub.sha, stage]
    with hub.counted() as counted:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    return {**speed(total, found["seconds"], found["cpu"]), **wire(hub.table, 1, counted, local=False)}
