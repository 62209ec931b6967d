"""A data set on the Hub at one commit: its card, its files, and byte ranges of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, httpx, parse_ratelimit_headers

from distributed_training.data.pages import Dataset
from distributed_training.data.places.hub import hub_dataset
from distributed_training.data.places.ranges import Limits
from distributed_training.errors import ConfigError, DataUnavailable, said

CARD = "README.md"
MAX_CARD_BYTES = 4 << 20
TRIES = 5
TIMEOUT_S = 60.0  # of silence
# Nobody trains on this: a build rather waits for two windows of the Hub's rate limit than ends.
_LIMITS = Limits(tries=10, total_s=1_500.0, attempt_s=120.0, in_flight=64, requests_a_window=2_500)
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """`name` from the root of the repository; `sha256` (hex) of what is stored as a large file."""

    name: str
    num_bytes: int
    sha256: str | None


class HubDataset:
    """Reads one data set repository at one commit, with the token and the endpoint of huggingface_hub. Thread-safe.

    Errors of the person who asked are ConfigErrors in one line; what the Hub does not give is DataUnavailable.
    """

    def __init__(self, repo: str, revision: str = "main", endpoint: str | None = None) -> None:
        """`revision`: a branch, a tag or a commit; `self.revision` is the commit of 40 hex digits."""
        self.repo, self._asked = repo, revision
        self._api = HfApi(endpoint=endpoint)
        sha = self._patient(lambda: self._api.dataset_info(repo, revision=revision, timeout=TIMEOUT_S).sha)
        if sha is None or not re.fullmatch("[0-9a-f]{40}", sha):
            raise DataUnavailable(f"the Hub names no commit for {repo} at {revision}")
        self.revision = sha
        self._place = hub_dataset(Dataset(repo=repo, revision=sha), endpoint=endpoint, limits=_LIMITS)

    def card(self) -> str:
        """The text of README.md; empty if there is none."""
        found = self._patient(
            lambda: self._api.get_paths_info(self.repo, CARD, revision=self.revision, repo_type="dataset")
        )
        size = next((item.size for item in found if isinstance(item, RepoFile)), 0)
        if size > MAX_CARD_BYTES:
            raise ConfigError(f"--dataset {self.repo}: its card has {size} bytes, expected at most {MAX_CARD_BYTES}")
        return self.read(CARD, 0, size).decode(errors="replace") if size else ""

    def files(self, folders: Iterable[str]) -> list[HubFile]:
        """All files below the folders ("" is everything), by name."""
        found: dict[str, HubFile] = {}
        for folder in sorted(set(folders)):
            for item in self._patient(partial(self._tree, folder)):
                sha256 = item.lfs.sha256 if item.lfs is not None else None
                found[item.path] = HubFile(item.path, item.size, sha256)
        return [found[name] for name in sorted(found)]

    def read(self, name: str, start: int, length: int) -> bytes:
        """Exactly the bytes [start, start + length) of a file."""
        return self._place.read(name, start, length)

    def _tree(self, folder: str) -> list[RepoFile]:
        try:
            tree = self._api.list_repo_tree(
                self.repo, folder or None, recursive=True, revision=self.revision, repo_type="dataset"
            )
            return [item for item in tree if isinstance(item, RepoFile)]
        except EntryNotFoundError:
            return []

    def _patient(self, call: Callable[[], T]) -> T:
        """What the call returns; rate limits and short troubles are waited out."""
        for attempt in range(TRIES):
            try:
                return call()
            except (OSError, HFValidationError, httpx.HTTPError) as error:
                wait_s = _wait_s(error, attempt)
                if wait_s is None or attempt + 1 == TRIES:
                    self._explain(error)
                time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _explain(self, error: Exception) -> NoReturn:
        """The error of huggingface_hub in one line that says what to do."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, GatedRepoError):
            raise ConfigError(f"--dataset {self.repo}: access must be asked for on its page on the Hub") from None
        if isinstance(error, RevisionNotFoundError):
            raise ConfigError(f"--revision {self._asked}: not in {self.repo}; {self._names()}") from None
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
            raise ConfigError(f"--dataset {self.repo}: {self._stranger()}") from None
        if isinstance(error, HFValidationError):
            raise ConfigError(f"--dataset {self.repo}: expected ORG/NAME of a data set on the Hub") from None
        if isinstance(error, OfflineModeIsEnabled):
            raise ConfigError("HF_HUB_OFFLINE is set: unset it to read from the Hub") from None
        said = f"status {status}" if isinstance(error, HfHubHTTPError) and status else _line(error)
        raise DataUnavailable(f"the Hub at {self._api.endpoint} does not answer for {self.repo}: {said}") from error

    def _stranger(self) -> str:
        token = self._api.token or build_hf_headers().get("authorization")
        try:
            if self._api.repo_exists(self.repo, repo_type="model"):
                return "this is a model, expected a data set"
        except (OSError, ValueError, httpx.HTTPError):
            pass
        hint = "the token may not read it" if token else "no token is set (HF_TOKEN, or `hf auth login`)"
        return f"no such data set on the Hub, or it is private and {hint}"

    def _names(self) -> str:
        try:
            refs: Any = self._api.list_repo_refs(self.repo, repo_type="dataset")
        except (OSError, httpx.HTTPError):
            return "expected a branch, a tag or a commit"
        return "expected a commit or one of " + ", ".join([ref.name for ref in [*refs.branches, *refs.tags]][:20])


def _wait_s(error: Exception, attempt: int) -> float | None:
    """Seconds until it is worth trying again; None: it is not."""
    response = getattr(error, "response", None)
    if response is None:
        short = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.ConnectError)
        return 2.0**attempt if short else None
    if response.status_code not in _BUSY:
        return None
    limit = parse_ratelimit_headers(response.headers)
    return limit.reset_in_seconds + 1.0 if limit is not None and limit.remaining == 0 else 2.0**attempt


def _line(error: Exception) -> str:
    return said(error)[:200]
