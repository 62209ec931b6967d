"""The page manifest of a data set on the Hub whose files are parquet: nothing is copied, a page is a row group there.

From the footers alone, so its pages are believed for the commit; or with every page read once, and a digest for each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed_training.data.build.digests import Digested, DigestLog, read_digests
from distributed_training.data.build.footers import Footer, FooterReader
from distributed_training.data.build.hub import HubDataset, HubFile
from distributed_training.data.build.progress import bar
from distributed_training.data.page_file import PAGES_FILE, PageTable, building, open_page_table, write_page_table
from distributed_training.data.pages import Dataset, FileEntry, Heldout, PageColumns, PageEntry, PageHeader, Recipe
from distributed_training.errors import ConfigError
from distributed_training.files import write_whole

DIGESTS = "digests.log"
PARTIAL = ".partial"  # what was read, for the next try; may be deleted


@dataclass(frozen=True, slots=True)
class Choices:
    column: str
    limit: int | None  # pages; None: all
    heldout_pages: int
    digests: bool
    threads: int


@dataclass(frozen=True, slots=True)
class Built:
    """`text_bytes` of all pages, estimated where no page was read; `fetched` bytes in this run."""

    table: PageTable
    text_bytes: int
    fetched: int
    left_out: str | None  # what is not among the pages, in one line


def build_hub_pages(out: Path, dataset: HubDataset, files: Sequence[HubFile], choices: Choices) -> Built:
    """Write `out`/pages.bin. The same commit and choices give the same bytes, whoever was faster and however often it
    was stopped. Raises ConfigError or DataUnavailable."""
    with building(out):
        return _build(out, dataset, files, choices)


def _build(out: Path, dataset: HubDataset, files: Sequence[HubFile], choices: Choices) -> Built:
    try:
        _claim(out, dataset, files)
        reader, footers = _read_footers(out / PARTIAL, dataset, files, choices)
        entries = [footer.entry for footer in footers]
        groups = _usable(footers)
        heldout, pages = _split(dataset.repo, groups, choices)
        chosen = len(heldout) + len(pages)
        with DigestLog(out / PARTIAL / DIGESTS) as log:
            heldout, held = _digested("held-out pages", dataset, entries, heldout, log, choices.threads)
            read = None
            if choices.digests:
                pages, read = _digested("pages", dataset, entries, pages, log, choices.threads)
        undecodable = chosen - len(heldout) - len(pages)
        table = _write(out, dataset, entries, choices, (heldout, held), (pages, read))
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror or error}") from None
    sizes = {(file, group.offset): group.text_bytes for file, f in enumerate(footers) for group in f.groups}
    text_bytes = sum(sizes[page.file, page.offset] for page in pages)
    fetched = reader.fetched
    return Built(table, text_bytes, fetched, _left_out(footers, undecodable))


def _claim(out: Path, dataset: HubDataset, files: Sequence[HubFile]) -> None:
    """The directory belongs to one data set at one commit. Raises ConfigError if it is another's, and OSError."""
    names = json.dumps([(file.name, file.num_bytes, file.sha256) for file in files])
    plan = {
        "dataset": dataset.repo,
        "revision": dataset.revision,
        "files": hashlib.sha256(names.encode()).hexdigest(),
    }
    path = out / PARTIAL / "plan.json"
    found = _begun(path) if any(path.parent.glob("footer-*")) else None
    if found is None and (out / PAGES_FILE).exists():
        header = open_page_table(out / PAGES_FILE).header
        if header.dataset != Dataset(repo=dataset.repo, revision=dataset.revision):
            raise ConfigError(f"--out {out} holds the pages of another data set; use another directory")
    if found is not None and found != plan:
        there = f"{found.get('dataset')} at {found.get('revision')}"
        raise ConfigError(
            f"--out {out} was begun for other files ({there}); use another directory, or the same --revision and --name"
        )
    if found is None:
        (out / PARTIAL / DIGESTS).unlink(missing_ok=True)  # it counts files by their number in the plan
        write_whole(path, json.dumps(plan).encode())


def _begun(plan: Path) -> dict[str, str] | None:
    """What an earlier try was for; None if that cannot be read: then nothing it kept is believed but what fits."""
    try:
        return json.loads(plan.read_bytes())
    except (OSError, ValueError):
        return None


def _read_footers(
    folder: Path, dataset: HubDataset, files: Sequence[HubFile], choices: Choices
) -> tuple[FooterReader, list[Footer]]:
    """All footers, or as many as the first `limit` pages need."""
    needed = None if choices.limit is None else choices.limit + choices.heldout_pages
    footers: list[Footer] = []
    usable = 0
    with bar("footers", len(files)) as tick:
        reader = FooterReader(dataset, choices.column, folder, tick)
        for footer in reader.read(files, choices.threads if needed is None else 1):
            footers.append(footer)
            usable += sum(group.usable for group in footer.groups)
            if needed is not None and usable >= needed:
                break
    return reader, footers


def _usable(footers: Sequence[Footer]) -> list[PageEntry]:
    """What can be a page, in the order of the data set."""
    return [
        PageEntry(file, number, group.offset, group.length, group.rows, 0)
        for file, footer in enumerate(footers)
        for number, group in enumerate(footer.groups)
        if group.usable
    ]


def _split(repo: str, groups: list[PageEntry], choices: Choices) -> tuple[list[PageEntry], list[PageEntry]]:
    """The held-out row groups, spread evenly, and the others."""
    wanted = choices.heldout_pages
    if choices.limit is not None:
        groups = groups[: choices.limit + wanted]
    if len(groups) <= wanted:
        raise ConfigError(
            f"--dataset {repo} has {len(groups)} row groups, expected more than {wanted}: --heldout-pages"
        )
    taken = {(2 * number + 1) * len(groups) // (2 * wanted) for number in range(wanted)}
    heldout = [group for number, group in enumerate(groups) if number in taken]
    return heldout, [group for number, group in enumerate(groups) if number not in taken]


def _digested(
    title: str,
    dataset: HubDataset,
    files: Sequence[FileEntry],
    pages: Sequence[PageEntry],
    log: DigestLog,
    threads: int,
) -> tuple[list[PageEntry], list[Digested]]:
    """The pages that can be decoded, and what is in them. Raises ConfigError when there is none."""
    with bar(title, len(pages)) as tick:
        found = list(read_digests(dataset, files, pages, log, threads, tick))
    good = [(entry, digested) for entry, digested in zip(pages, found, strict=True) if digested is not None]
    if not good:
        raise ConfigError(f"--dataset {dataset.repo}: none of {len(pages)} {title} can be decoded; try --rewrite")
    return [entry for entry, _ in good], [digested for _, digested in good]


def _refuse_to_replace(out: Path, header: PageHeader, num_pages: int) -> None:
    """Raises ConfigError if `out` holds other pages: a run may name them. The same ones may get digests."""
    if (out / PAGES_FILE).exists():
        there = open_page_table(out / PAGES_FILE)
        same = [piece.entry[:5] for piece in there.header.heldout] == [piece.entry[:5] for piece in header.heldout]
        if there.num_pages != num_pages or not same:
            raise ConfigError(
                f"--out {out} holds {there.num_pages:,} other pages of this data set (sha256 {there.sha256[:16]}), "
                "which a run may name; use another directory, or delete it"
            )


def _write(
    out: Path,
    dataset: HubDataset,
    files: Sequence[FileEntry],
    choices: Choices,
    heldout: tuple[Sequence[PageEntry], Sequence[Digested]],
    pages: tuple[Sequence[PageEntry], Sequence[Digested] | None],
) -> PageTable:
    pieces = [
        Heldout(**entry._replace(text_bytes=found.text_bytes)._asdict(), digest=found.digest.hex())
        for entry, found in zip(*heldout, strict=True)
    ]
    header = PageHeader(
        version=2,
        recipe=Recipe(text="row groups", page_bytes=None, heldout_bytes=None, num_pages=choices.limit),
        dataset=Dataset(repo=dataset.repo, revision=dataset.revision),
        files=tuple(files),
        heldout=tuple(pieces),
    )
    entries, read = pages
    _refuse_to_replace(out, header, len(entries))
    if read is None:
        return write_page_table(out / PAGES_FILE, header, PageColumns.of((entry, None) for entry in entries))
    full = (
        (entry._replace(text_bytes=found.text_bytes), found.digest) for entry, found in zip(entries, read, strict=True)
    )
    return write_page_table(out / PAGES_FILE, header, PageColumns.of(full))


def _left_out(footers: Sequence[Footer], undecodable: int) -> str | None:
    groups = [group for footer in footers for group in footer.groups]
    empty = sum(group.rows == 0 or group.length == 0 for group in groups)
    nulls = sum(group.nulls > 0 for group in groups)
    large = sum(not group.usable for group in groups) - empty - nulls
    counts = [(empty, "empty"), (nulls, "with rows that have no text"), (large, "too large for a page")]
    counts.append((undecodable, "that cannot be decoded one by one"))
    told = [f"{count} {what}" for count, what in counts if count > 0]
    return f"row groups left out: {', '.join(told)}" if told else None
