"""The page in a real browser: its server as a process, and what the browser asked for, said and was told."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from localnet_recording import RECORDING, recorded_manifest, recorded_summary
from playwright.async_api import Browser, ConsoleMessage, Page, expect

from benchmarks.chromium import WATCH

ROOT = Path(__file__).parents[2]
expect.set_options(timeout=15_000)


@dataclass
class Seen:
    """A page, and all that happened in it."""

    page: Page
    origin: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # of the console, of scripts, and dialogs that came up

    def attach(self) -> None:
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.page.on("console", self._hear)

    def _hear(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def check(self) -> None:
        """No error, and nobody else was asked for anything."""
        assert self.complaints == []
        assert self.asked and {f"{url.scheme}://{url.netloc}" for url in map(urlsplit, self.asked)} == {self.origin}

    async def text(self, selector: str) -> str:
        return await self.page.locator(selector).inner_text()

    async def dial(self, name: str) -> tuple[str, str]:
        """Value and note of one of the numbers at the top."""
        one = self.page.locator("#dials dl", has=self.page.locator("dt", has_text=re.compile(f"^{name}$", re.I)))
        value, note = await one.locator("dd").all_inner_texts()
        return value, note

    async def loaded(self) -> None:
        await expect(self.page.locator("#board-grid tbody tr").first).to_be_visible()

    async def round(self, index: int) -> None:
        """Waits until that round is shown."""
        await expect(self.page.locator("#round-h")).to_have_text(f"Round {index}")

    async def connected(self, word: str) -> None:
        await expect(self.page.locator("#connection")).to_have_attribute("data-kind", word)

    async def rows(self, selector: str) -> list[list[str]]:
        """The cells of a table, row by row, once it has some."""
        rows = self.page.locator(f"{selector} tbody tr")
        await expect(rows.first).to_be_visible()
        return await rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))")


@asynccontextmanager
async def opened(browser: Browser, url: str, **context: Any) -> AsyncIterator[Seen]:
    """The page at `url`, with its numbers; checked when it is left."""
    made = await browser.new_context(**context)
    await made.add_init_script(WATCH)
    address = urlsplit(url)
    seen = Seen(await made.new_page(), f"{address.scheme}://{address.netloc}")
    seen.attach()
    try:
        await seen.page.goto(url, wait_until="load")
        await expect(seen.page.locator("#dials dl").first).to_be_visible()
        yield seen
        seen.check()
    finally:
        await made.close()


@dataclass
class Server:
    url: str
    process: Process

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    async def stop(self) -> list[str]:
        """As a terminal or a service manager does; what it said meanwhile, which should be one word."""
        if self.process.returncode is None:
            self.process.terminate()
        _, errors = await asyncio.wait_for(self.process.communicate(), 20)
        return errors.decode().splitlines()


async def serve(run_dir: Path, port: int = 0) -> Server:
    """`python -m distributed_training.dashboard`, as an operator starts it."""
    command = ["-m", "distributed_training.dashboard", "--run-dir", str(run_dir), "--port", str(port)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    said = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    found = re.match(r"page: (http://127\.0\.0\.1:\d+/)", said)
    if found is None:
        process.kill()
        raise AssertionError(f"{said}{(await process.communicate())[1].decode()}")
    return Server(found[1], process)


async def copied(run_dir: Path, folder: Path) -> None:
    """The page as files, as an operator makes them."""
    command = ["-m", "distributed_training.dashboard", "--run-dir", str(run_dir), "--page-dir", str(folder)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    assert (await asyncio.wait_for(process.communicate(), 30))[1] == b"" and process.returncode == 0


@contextmanager
def a_web_server(folder: Path) -> Iterator[str]:
    """The URL under which a web server that knows nothing of us serves a folder's files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def recording() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDING.read_text().splitlines()]


def append(path: Path, events: Iterable[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def recorded_run(folder: Path, *, ended: bool = True) -> Path:
    """The run directory of the recorded demo, as far as the page reads it; not `ended`: without events and summary."""
    folder.mkdir()
    (folder / "manifest.json").write_bytes(recorded_manifest().canonical())
    (folder / "events.jsonl").touch()
    if ended:
        append(folder / "events.jsonl", recording())
        (folder / "summary.json").write_text(json.dumps(recorded_summary()))
    return folder
