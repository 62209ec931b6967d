"""Pages that lie elsewhere: on the Hugging Face Hub, on mirrors, or in directories with the same files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download

from distributed_training.data.page_file import PAGES_FILE, PageTable, open_page_table
from distributed_training.data.pages import Dataset
from distributed_training.data.places.base import Directory, Place
from distributed_training.data.places.cache import ChunkCache
from distributed_training.data.places.hub import hub_dataset
from distributed_training.data.places.ranges import Denied, HttpPlace, Limits, http_base
from distributed_training.data.reading import TablePages
from distributed_training.errors import ConfigError, DataUnavailable
from distributed_training.hub import Repo, hub_errors

HUB = "hub:"
CHECK_S = 15.0  # for a place to answer at the start of a node
log = logging.getLogger(__name__)


def open_pages(
    where: str,
    mirrors: Sequence[str] = (),
    *,
    cache_dir: Path | None = None,
    cache_bytes: int,
    peers_give: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> TablePages:
    """The pages that a person names: a directory with `pages.bin`, that file, or `hub:ORG/NAME@COMMIT`, where it lies
    beside the pages.

    Files are looked for in the directory if it holds any of them, on the mirrors (see `open_remote`), and on the Hub.
    What comes over a network is kept in `cache_dir`, if there is one, up to `cache_bytes`. `peers_give`: there need be
    no place, because pages with a digest are asked of peers. Raises ConfigError; HubFault when the manifest itself is
    on a Hub that does not answer.
    """
    if where.startswith(HUB):
        dataset = parse_dataset(where)
        kept = None if cache_dir is None else cache_dir / "manifests"
        table = hub_page_table(dataset, endpoint=endpoint, token=token, cache_dir=kept)
        own = [where] if table.header.dataset is None else []  # else the table alone was uploaded there
        places = [*mirrors, *own]
    else:
        path = Path(where)
        table = open_page_table(path / PAGES_FILE if path.is_dir() else path)
        beside = path.is_dir() and any((path / file.name).exists() for file in table.header.files)
        places = [where, *mirrors] if beside else list(mirrors)
        if beside and not mirrors and table.header.dataset is None:
            return TablePages(table, [Directory(path)])
    cache = None if cache_dir is None else ChunkCache(cache_dir, table.sha256, cache_bytes)
    if not places and table.header.dataset is None and peers_give and not table.missing_digests:
        return TablePages(table, (), cache)
    return open_remote(table, places, cache=cache, endpoint=endpoint, token=token)


def open_remote(
    table: PageTable,
    places: Sequence[str] = (),
    *,
    cache: ChunkCache | None = None,
    last_resort: Callable[[int], Iterable[bytes]] | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    limits: Limits | None = None,
) -> TablePages:
    """Pages of `table` from `places`, in order, and then from the data set that the table names.

    A place is `hub:ORG/NAME@COMMIT`, an http(s) URL, or a directory. Raises ConfigError for one that cannot be, when
    there is none, or when each refuses and the cache is empty. One that does not answer is said, and may answer later.
    """
    made = [place_of(place, endpoint=endpoint, token=token, limits=limits) for place in places]
    if table.header.dataset is not None:
        made.append(hub_dataset(table.header.dataset, endpoint=endpoint, token=token, limits=limits))
    if not made:
        raise ConfigError("the page manifest names no data set: say where its files are, a URL, a directory or hub:...")
    first = table.header.files[table.entry(0).file].name
    _check(made, first, can_do_without=cache is not None and not cache.empty())
    return TablePages(table, made, cache, last_resort)


def _check(places: Sequence[Place], file_name: str, *, can_do_without: bool) -> None:
    """Is the file there, and for us? Raises ConfigError when every place says no; else what each said is a warning."""
    refused: list[tuple[str, str]] = []
    for place in places:
        try:
            if isinstance(place, HttpPlace):
                place.read(file_name, 0, 4, CHECK_S)
            else:
                place.read(file_name, 0, 4)
        except DataUnavailable as error:
            if isinstance(error, Denied) or not isinstance(place, HttpPlace):
                refused.append((place.name, str(error)))
            else:
                log.warning("a place of pages does not answer yet: %s: %s", place.name, error)
    if len(refused) == len(places) and not can_do_without:
        raise ConfigError("no place has the pages: " + "; ".join(said for _, said in refused))
    for name, said in refused:
        log.warning("a place of pages has nothing for us: %s: %s", name, said)


def place_of(
    place: str, *, endpoint: str | None = None, token: str | None = None, limits: Limits | None = None
) -> Place:
    """See `open_remote`. Raises ConfigError."""
    if place.startswith(HUB):
        return hub_dataset(parse_dataset(place), endpoint=endpoint, token=token, limits=limits)
    if place.startswith(("http://", "https://")):
        return http_base(place, limits)
    if not Path(place).is_dir():
        raise ConfigError(f"place of pages {place!r}: expected hub:ORG/NAME@COMMIT, a URL, or a directory that exists")
    return Directory(Path(place))


def parse_dataset(text: str) -> Dataset:
    """`hub:ORG/NAME@COMMIT`, with or without `hub:`. Raises ConfigError."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", text.removeprefix(HUB), re.ASCII)
    if match is None:
        raise ConfigError(f"data set {text!r}: expected {HUB}ORG/NAME@COMMIT with a commit of 40 hex digits")
    return Dataset(repo=match[1], revision=match[2])


def hub_page_table(
    dataset: Dataset, *, endpoint: str | None = None, token: str | None = None, cache_dir: Path | None = None
) -> PageTable:
    """The page manifest that lies beside the pages in a data set, kept in `cache_dir` or huggingface_hub's own cache.

    Its sha256 is the caller's to compare with the run manifest's. Raises ConfigError, HubFault.
    """
    with hub_errors(
        Repo(dataset.repo, "dataset"),
        f"cannot read {PAGES_FILE} of data set {dataset.repo} at {dataset.revision[:12]}",
    ):
        path = hf_hub_download(
            dataset.repo,
            PAGES_FILE,
            repo_type="dataset",
            revision=dataset.revision,
            endpoint=endpoint,
            token=token,
            cache_dir=cache_dir,
        )
    return open_page_table(Path(path))
