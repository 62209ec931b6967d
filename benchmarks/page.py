"""The live page at its largest: 256 uids and 1,000 rounds, in a real browser."""

from __future__ import annotations

import argparse
import gzip
import json
import time
import urllib.request
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.big_run import Shape, write_round, write_start
from benchmarks.chromium import ROWS_MS, WATCH, find_chromium, served
from benchmarks.small_demo import run_folder
from distributed_training.errors import ConfigError
from distributed_training.settings.arguments import new_folder, whole

DESCRIPTION = """\
Make the event files of a run of 256 nodes and 1,000 rounds (by the nodes' own event records, with a seed, for nobody
can simulate so many; 3 GB for all nodes, --tell writes fewer files), show it, and measure

  listening_s     until the server answers          run_json_ms  until run.json is here while events are written
  read_s          until all events are read         page_ms      of opening the page, until the leaderboard is there
  server_mb       its memory then                   heap_mb      of the page's scripts, when all was done
  frames: milliseconds between two frames, median and 99 in 100, while nothing happens, while the slider over the
  rounds is dragged, and while a round is written every second

Needs a chromium (apt-get install chromium).
"""
WATCH_S = 8
GOAL_PAGE_MS, GOAL_MEDIAN_MS, GOAL_P99_MS = 1000.0, 34.0, 250.0
FRAMES = """
window.frames_ = []; let last = performance.now();
const look = (now) => { window.frames_.push(now - last); last = now; requestAnimationFrame(look); };
requestAnimationFrame(look);
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--uids", type=whole(8, 4096, "uids"), default=256, metavar="N", help="default 256")
    add("--rounds", type=whole(2, 100_000, "rounds"), default=1000, metavar="N", help="default 1,000")
    add("--validators", type=whole(1, 64, "validators"), default=2, metavar="N", help="default 2")
    add("--tell", type=whole(4, 4096, "nodes"), metavar="N", help="nodes whose events lie here; default: all")
    add("--run-dir", type=new_folder, metavar="DIR", help="make the run here and keep it; one that is there is shown")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row. What misses a goal is a failure. Raises ConfigError without a browser."""
    program = find_chromium()
    shape = Shape(args.uids, args.validators, tell=min(args.uids, args.tell or args.uids))
    with run_folder(args.run_dir) as folder, sync_playwright() as playwright:
        run_dir = folder / "run"
        rounds = told_rounds(run_dir)
        if not rounds:
            write_start(shape, run_dir)
            for rounds in range(1, args.rounds + 1):
                write_round(shape, run_dir, rounds - 1)
        row: dict[str, Any] = {"uids": args.uids, "rounds": rounds, "files_mb": megabytes(folder)}
        began = time.perf_counter()
        with served(run_dir) as (url, process):
            row["listening_s"] = time.perf_counter() - began
            measure_server(url, psutil.Process(process), rounds, row)
            browser = playwright.chromium.launch(executable_path=program, args=["--enable-precise-memory-info"])
            measure_page(browser, url, row, Live(shape, run_dir, rounds))
            browser.close()
    goals = {"page_ms": GOAL_PAGE_MS, "drag_ms": GOAL_MEDIAN_MS, "live_ms": GOAL_MEDIAN_MS, "live_p99_ms": GOAL_P99_MS}
    goals["drag_p99_ms"] = GOAL_P99_MS
    failures = [
        f"{name} is {row[name]:.0f}, the goal is {most:.0f}" for name, most in goals.items() if row[name] > most
    ]
    return {
        "name": "page",
        "rows": [{"measured": key, "value": value} for key, value in row.items()],
        "failures": failures,
    }


def told_rounds(run_dir: Path) -> int:
    """Of a run that was made before: also those that were written while it was shown."""
    path = run_dir / "nodes" / "owner" / "events.jsonl"
    return 1 + json.loads(path.read_text().splitlines()[-1])["round"] if path.exists() else 0


def megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*.jsonl")) / 1e6, 1)


def measure_server(url: str, process: psutil.Process, rounds: int, row: dict[str, Any]) -> None:
    """Until everything is read."""
    began = process.create_time()
    while not complete((document := asked(url + "data/run.json"))[0], rounds):
        time.sleep(0.5)
    row["read_s"] = time.time() - began
    row["server_mb"] = process.memory_info().rss / 1e6
    row["run_json_kb"], row["run_json_gzip_kb"] = (size / 1e3 for size in document[1:3])


def complete(document: dict[str, Any], rounds: int) -> bool:
    return document["rounds"]["index"][-1:] == [rounds - 1] and document["now"]["state"] != "empty"


def asked(url: str) -> tuple[dict[str, Any], int, int, float]:
    """A document, its bytes plain and packed, seconds."""
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "gzip"}), timeout=60) as answer:
        packed = answer.read()
    taken = time.perf_counter() - began
    data = gzip.decompress(packed)
    return json.loads(data), len(data), len(packed), taken


class Live(Thread):
    """Writes a round more every second, until it is told to end."""

    def __init__(self, shape: Shape, run_dir: Path, index: int) -> None:
        super().__init__(daemon=True)
        self._shape, self._run_dir, self._index, self.over = shape, run_dir, index, Event()

    def run(self) -> None:
        while not self.over.wait(1.0):
            write_round(self._shape, self._run_dir, self._index)
            self._index += 1


def measure_page(browser: Browser, url: str, row: dict[str, Any], live: Live) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script(WATCH)
    times = list[float]()
    for _ in range(3):
        page.goto(url)
        times.append(page.evaluate(ROWS_MS))
    row["page_ms"] = min(times)
    page.evaluate(FRAMES)
    row["still_ms"], row["still_p99_ms"] = frames(page, lambda: page.wait_for_timeout(2000))
    row["drag_ms"], row["drag_p99_ms"] = frames(page, lambda: drag(page))
    page.locator("#round-live").click()
    before = page.locator("#round-h").inner_text()
    live.start()
    waited_s = list[float]()

    def watch() -> None:
        for _ in range(WATCH_S):
            page.wait_for_timeout(1000)
            waited_s.append(asked(url + "data/run.json")[3])

    row["live_ms"], row["live_p99_ms"] = frames(page, watch)
    row["run_json_ms"] = 1000 * median(waited_s)
    live.over.set()
    live.join()
    if page.locator("#round-h").inner_text() == before:
        raise ConfigError("the page did not follow the rounds that were written: nothing was measured")
    row["heap_mb"] = page.evaluate("performance.memory.usedJSHeapSize") / 1e6


def frames(page: Page, act: Any) -> tuple[float, float]:
    """Milliseconds between two frames meanwhile: median, and what 99 in 100 stay below."""
    page.evaluate("window.frames_.length = 0")
    act()
    found = sorted(page.evaluate("window.frames_"))
    return median(found), found[int(0.99 * (len(found) - 1))]


def drag(page: Page) -> None:
    """The slider's whole length there and back, without a rest."""
    box = page.locator("#round-slider").bounding_box()
    assert box is not None
    middle, steps = box["y"] + box["height"] / 2, 120
    page.mouse.move(box["x"] + box["width"] - 4, middle)
    page.mouse.down()
    for step in [*range(steps), *range(steps, -1, -1)]:
        page.mouse.move(box["x"] + 4 + (box["width"] - 8) * (1 - step / steps), middle)
        page.wait_for_timeout(10)
    page.mouse.up()
