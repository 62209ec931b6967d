"""The run's pages: the page manifest, and a page really read from each place that has them, its digest compared."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_training.data.page_file import PAGES_FILE, PageTable, open_page_table
from distributed_training.data.pages import check_trust
from distributed_training.data.places.base import Directory, Place
from distributed_training.data.places.hub import hub_dataset
from distributed_training.data.places.ranges import Limits
from distributed_training.data.reading import TablePages
from distributed_training.data.remote import hub_page_table, parse_dataset, place_of
from distributed_training.doctor.base import Finding, in_thread, sized
from distributed_training.doctor.run import MOVE_AWAY, would_come
from distributed_training.errors import ConfigError, DataUnavailable, DistributedTrainingError, said
from distributed_training.finding.find import missing_files
from distributed_training.hub import prepare_client
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.settings.config import NodeConfig
from distributed_training.settings.places import HubRepo
from distributed_training.sources import commit_of, pinned

if TYPE_CHECKING:
    from distributed_training.doctor.subject import Subject

PATIENT = Limits(tries=2, total_s=6.0, attempt_s=5.0)
LOOK_S = 4.0  # at pages on this machine's disk: as many as can be read
MOST_HASHED = 1 << 30  # bytes of a file: about a second
NAME = "pages"


async def check_pages(subject: Subject) -> list[Finding]:
    config, manifest = await subject.found.get()
    missing = next(((w, p) for w, p in missing_files(config, manifest) if p.name == PAGES_FILE), None)
    if missing is None:
        return await in_thread(lambda: look(config, manifest, subject.role, subject.scratch))
    found = await would_come(subject, config, manifest, *missing, NAME)
    kept = subject.scratch / PAGES_FILE
    if not kept.exists():  # it comes, but not in the time that there is here
        return [found]
    return [found, *await in_thread(lambda: look(config, manifest, subject.role, subject.scratch, kept))]


def look(
    config: NodeConfig, manifest: RunManifest, role: Role, scratch: Path, table_file: Path | None = None
) -> list[Finding]:
    """Blocking. table_file: `pages.bin`, where the node's own is not there yet."""
    try:
        prepare_client()
        table = _table(config, scratch) if table_file is None else open_page_table(table_file)
        if table.sha256 != manifest.data.pages_sha256 or table.num_pages != manifest.data.num_pages:
            told = f"{table.path}: sha256 {table.sha256[:16]}..., the manifest asks for "
            return [Finding(NAME, "fail", f"{told}{manifest.data.pages_sha256[:16]}...", _mend(config))]
        check_trust(table.missing_digests, manifest.data.page_trust)
    except DistributedTrainingError as error:
        return [Finding(NAME, "fail", said(error), _mend(config))]
    places, wrong = _places(config, manifest, table)
    findings = [read_from(place, table, heldout=role is not Role.MINER) for place in places]
    if any(finding.state == "ok" for finding in findings):  # one place is enough: a node goes on to the next
        findings = [Finding(f.name, "warn", f.found, f.fix) if f.state == "fail" else f for f in findings]
    if not places and not wrong:
        if table.missing_digests:
            told = f"no place is named, and {table.missing_digests} pages have no digest by which to take them of peers"
            return [Finding(NAME, "fail", told, "give a folder or data set with --pages or --data.mirrors")]
        told = f"{table.num_pages:,} of them; no place is named: a node asks its peers for each"
        return [Finding(NAME, "ok", told)]
    return [*findings, *wrong]


def _table(config: NodeConfig, scratch: Path) -> PageTable:
    if isinstance(config.pages, HubRepo):
        dataset = parse_dataset(f"{config.pages.repo_id}@{commit_of(config.pages)}")
        return hub_page_table(dataset, cache_dir=scratch / "manifests")
    return open_page_table(config.pages / PAGES_FILE if config.pages.is_dir() else config.pages)


def _places(config: NodeConfig, manifest: RunManifest, table: PageTable) -> tuple[list[Place], list[Finding]]:
    """Those that a node asks, in its order, and what is wrong with names of places."""
    names, wrong, made = list(config.data.mirrors), list[Finding](), list[Place]()
    if isinstance(config.pages, HubRepo):
        names += [] if table.header.dataset else [f"hub:{config.pages.repo_id}@{commit_of(config.pages)}"]
    elif config.pages.is_dir() and any((config.pages / file.name).exists() for file in table.header.files):
        names.insert(0, str(config.pages))
    if config.by_default("pages") and manifest.public.pages:
        if named := pinned(manifest.public.pages):
            names += named
        else:
            told = f"{manifest.public.pages}, which the manifest names, cannot be asked"
            wrong.append(Finding(NAME, "warn", told, "see the Hub's lines; other places, and peers, give pages too"))
    for name in names:
        try:
            made.append(place_of(name, limits=PATIENT))
        except ConfigError as error:
            wrong.append(Finding(NAME, "fail", said(error), "correct it: --pages, --data.mirrors"))
    if table.header.dataset is not None:
        made.append(hub_dataset(table.header.dataset, limits=PATIENT))
    return made, wrong


def read_from(place: Place, table: PageTable, *, heldout: bool) -> Finding:
    """The first page of one place; of a folder also as many more as can be read in a moment. Blocking."""
    pages, began = TablePages(table, [place]), time.monotonic()
    told = f"page 0 from {place.name}"
    try:
        pages.fetch(0)
        first_s, size = time.monotonic() - began, table.entry(0).length
        if isinstance(place, Directory):
            _whole(place, table, began + LOOK_S)
        count = 1 if not isinstance(place, Directory) else 1 + _more(pages, time.monotonic() + LOOK_S)
        if heldout:
            pages.heldout()
    except (DataUnavailable, ConfigError) as error:
        fix = _damaged(table) if isinstance(place, Directory) else "look at that place, or name another: --data.mirrors"
        return Finding(NAME, "fail", f"{place.name}: {said(error)}", fix)
    more = "" if count == 1 else f"; {count} of {table.num_pages} pages read"
    also = " and the held-out set" if heldout else ""
    speed = f"{sized(size)} in {first_s:.2f} s"
    if not isinstance(place, Directory):
        speed += f" ({sized(size / max(first_s, 1e-3))}/s)"
    return Finding(NAME, "ok", f"{told}: {speed}{more}{also}, digests right")


def _whole(place: Directory, table: PageTable, until: float) -> None:
    """Files of a folder by their sha256, where that is known, until a moment is over. Raises DataUnavailable."""
    for file in table.header.files:
        if time.monotonic() > until:
            return
        known = file.sha256 is not None and file.num_bytes <= MOST_HASHED and (Path(place.name) / file.name).exists()
        if known and not place.vouches(file, table.header.dataset):
            raise DataUnavailable(f"{file.name} is not the file of {file.num_bytes:,} bytes with its sha256")


def _more(pages: TablePages, until: float) -> int:
    """Others of them, spread over the whole, until a moment is over; how many. Raises DataUnavailable."""
    step = max(1, pages.num_pages * 61803 // 100000) | 1
    count = 0
    for number in range(1, pages.num_pages):
        if time.monotonic() > until:
            break
        pages.fetch(number * step % pages.num_pages)
        count += 1
    return count


def _damaged(table: PageTable) -> str:
    beside = "its files" if table.header.dataset is None else "that folder's files"
    return f"{beside} are damaged or not this run's: move them away (others give the pages), or copy them here again"


def _mend(config: NodeConfig) -> str:
    if config.by_default("pages"):
        return f"{config.pages}: {MOVE_AWAY}"
    return "give the pages of this run with --pages (a folder with pages.bin, or hub:ORG/NAME), or leave --pages out"
