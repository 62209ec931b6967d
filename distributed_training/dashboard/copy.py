"""The page as one folder of files, for any web server: what the public may see, written so that it is never half."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distributed_training.dashboard.about import About, num_params
from distributed_training.dashboard.chain import ChainWatch
from distributed_training.dashboard.site import INDEX, STATIC, Site, encode
from distributed_training.errors import ConfigError, LocalFault
from distributed_training.files import write_whole
from distributed_training.protocol.manifest import RunManifest
from distributed_training.settings.config import SubtensorSection

LIVE, COPY = b'<meta name="dt-mode" content="live"', b'<meta name="dt-mode" content="static"'
MAX_ROUNDS, MAX_PEOPLE = 100, 1024
SHORT = 4  # characters; no place has fewer, and most words of a matrix do
CHAIN_S = 120.0  # that the chain gets, or the page goes without it
PRIVATE = frozenset(("detail", "trouble", "adversary"))  # free text of a node about its own machine
PLACE = re.compile(
    r"\w+://\S+|(?<![\w.])(?:~/|/(?=[\w.]))[\w.~+-]*(?:/[\w.~+-]+)*|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?"
    r"|(?<![\w:])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{0,4}"
)


def public(value: Any, host: str) -> Any:
    """Without what tells of a machine: its own words, addresses, paths, its name `host`; words of ours stay."""
    if isinstance(value, str):
        if len(value) < SHORT or value == host:
            return value
        hidden = PLACE.sub("...", value)
        return re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "...", hidden)
    if isinstance(value, Mapping):
        return {key: None if key in PRIVATE else public(item, host) for key, item in value.items()}
    return [public(item, host) for item in value] if isinstance(value, list | tuple) else value


def documents(site: Site) -> Iterator[tuple[str, Any]]:
    """Every document of the copy, the one that speaks of the others last."""
    run = site.plain("run")
    people = [row["uid"] for row in (*run["leaderboard"], *run["validators"])][:MAX_PEOPLE]
    for uid in dict.fromkeys([*people, *(n["uid"] for n in run["nodes"] if n["uid"] is not None)]):
        yield f"uid/{uid}.json", site.plain("uid", uid)
    for index in run["rounds"]["index"][-MAX_ROUNDS:]:
        yield f"round/{index}.json", site.plain("round", index)
    yield "chain.json", site.plain("chain")
    yield "run.json", run


def write_copy(site: Site, folder: Path) -> int:
    """Bring the folder up to date; the number of its documents. Each file is written whole, run.json last, and then
    documents that are no longer kept go: whoever reads it meanwhile has a page that fits together. Raises OSError."""
    _write(folder / "index.html", INDEX.read_bytes().replace(LIVE, COPY))
    for path in STATIC.rglob("*"):
        if path.is_file() and path != INDEX:
            _write(folder / "static" / path.relative_to(STATIC), path.read_bytes())
    host, kept = os.uname().nodename, set[Path]()
    for name, document in documents(site):
        _write(folder / "data" / name, encode(public(document, host)))
        kept.add(folder / "data" / name)
    for kind in ("round", "uid"):
        for path in (folder / "data" / kind).glob("*.json"):
            if path not in kept:
                path.unlink(missing_ok=True)
    return len(kept)


def check_own(folder: Path) -> None:
    """Raises ConfigError for a folder with anything but a copy in it: a web server shows all of it, a run directory's
    keys too, and files of the same names would be written over. Hidden files may be there: a repository's."""
    found = (
        sorted({path.name for path in folder.iterdir() if path.name[0] != "."} - {"static"}) if folder.is_dir() else []
    )
    index = folder / "index.html"
    if found and not (index.is_file() and COPY in index.read_bytes()):
        raise ConfigError(
            f"--page-dir {folder}: it holds {found[0]}, and is no copy of a page; give an empty or new folder"
        )


def _write(path: Path, data: bytes) -> None:
    """What is there already is left alone: a published folder may be a repository."""
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)


def copy_once(site: Site, watch: ChainWatch | None, folder: Path) -> int:
    """`write_copy` of all that is there now. Raises OSError, LocalFault: neither events nor a chain."""
    site.read_all()
    if watch is not None:
        try:
            asyncio.run(asyncio.wait_for(watch.look(), CHAIN_S))
        except TimeoutError:
            watch.tell_trouble(f"it did not answer within {CHAIN_S:.0f} s")
        site.look()  # there may be a chain now
        if watch.trouble and site.plain("run")["now"]["state"] == "empty":
            raise LocalFault(f"nothing to show, {folder} is left as it is")
    return write_copy(site, folder)


def owner_page(
    folder: Path, events: Path, manifest: RunManifest, chain: SubtensorSection, local_chain: Path | None
) -> PageSink:
    """Of what any observer knows: its own events and the chain. Raises ConfigError."""
    site = Site(None, (events,), live=False)
    site.about = About(manifest, num_params(events.parent / "state"))
    netuid, endpoint = manifest.netuid, chain.chain_endpoint
    return PageSink(folder, site, ChainWatch(site, netuid, chain.network, endpoint, local_chain))


class PageSink:
    """Of an owner: with each checkpoint its page, from its own event file and the chain. Slow, and nobody waits."""

    def __init__(self, folder: Path, site: Site, watch: ChainWatch | None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_own(folder)
        except OSError as error:
            raise ConfigError(f"--page-dir {folder}: {error.strerror}") from None
        self._folder, self._site, self._watch = folder, site, watch

    def write(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "checkpoint":
            copy_once(self._site, self._watch, self._folder)

    def close(self) -> None:
        """The end of the run, in the page; the chain as last seen: who ends waits for no answer."""
        copy_once(self._site, None, self._folder)
