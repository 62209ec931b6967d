"""Many pages in a row over a bad line: every page right, none twice, memory flat."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from benchmarks.data_hub import HubProcess
from distributed_training.data.places.ranges import Limits

THREADS = 8
_GROWTH_MB = 32.0
_AT_ONCE = 256  # pages: what is done is let go


def over_a_bad_line(hub: HubProcess, faults: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """A row and what was wrong. Digests are the manifest's, and the source has checked them once already."""
    table, source, process = hub.table, hub.open(Limits(pause_s=0.05)), psutil.Process()
    failures: list[str] = []
    seen: Counter[bytes] = Counter()
    memory_mb: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    with hub.counted(faults) as counted, ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, table.num_pages, _AT_ONCE):
            for page in pool.map(source.fetch, range(start, min(start + _AT_ONCE, table.num_pages))):
                seen[page.digest] += 1
                if page.digest != table.digest(page.index) or len(page.documents) != table.entry(page.index).rows:
                    failures.append(f"page {page.index} is another one")
            memory_mb.append(process.memory_info().rss / 1e6)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    if len(seen) != table.num_pages or set(seen.values()) != {1}:
        failures.append(f"{len(seen)} different pages came, expected {table.num_pages}, each once")
    growth = memory_mb[-1] - memory_mb[len(memory_mb) // 5]
    if growth > _GROWTH_MB:
        failures.append(f"memory grew by {growth:.0f} MB after the first fifth of the pages")
    injected = sum(count for name, count in counted.items() if name.startswith("fault."))
    used = sum(table.entry(index).length for index in range(table.num_pages))
    row = {
        "pages": table.num_pages,
        "faults": injected,
        "pages_per_s": table.num_pages / took,
        "bytes_fetched_per_byte_used": counted["bytes"] / used,
        "requests_per_page": counted["requests"] / table.num_pages,
        "cpu_ms_per_page": 1e3 * cpu / table.num_pages,
        "memory_growth_mb": growth,
        "right": not failures,
    }
    return row, failures
