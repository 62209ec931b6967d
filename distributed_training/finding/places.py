"""Places beside peers where a run's files may lie: repositories of the Hub, and folders of web servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers

from distributed_training.checkpoints.download import small_file
from distributed_training.finding.content import Absent, Wanted
from distributed_training.hub import HubMissing, Repo, hub_errors, prepare_client
from distributed_training.settings.places import PREFIX, parse_repo

_PIECE_BYTES = 1 << 20


class WebSource:
    """`content.Source`: a file of a place, whole; `max_bytes` bounds what is read of it."""

    def __init__(self, name: str, repo: Repo, url_of: Callable[[str], str], headers: Mapping[str, str]) -> None:
        """repo: how errors call the place."""
        self.name, self._repo, self._url_of, self._headers = name, repo, url_of, headers

    async def pieces(self, wanted: Wanted, offset: int) -> AsyncGenerator[bytes]:
        try:
            data = await asyncio.to_thread(self._read, wanted)
        except HubMissing as error:
            raise Absent(str(error)) from None
        for start in range(offset, len(data), _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]

    def _read(self, wanted: Wanted) -> bytes:
        prepare_client()
        with hub_errors(self._repo, f"cannot read {wanted.name} of {self.name}"):
            return small_file(self._url_of(wanted.name), self._headers, wanted.max_bytes)


def sources_at(place: str) -> list[WebSource]:
    """`hub:ORG/NAME[@REVISION]`, as a model and as a data set, or the URL of a folder. "": nowhere."""
    if not place:
        return []
    if not place.startswith(PREFIX):
        base = place.rstrip("/")
        return [WebSource(place, Repo(place), lambda file: f"{base}/{file}", {})]
    named = parse_repo(place)
    repos = Repo(named.repo_id, "model"), Repo(named.repo_id, "dataset")
    urls = [partial(hf_hub_url, repo.id, repo_type=repo.kind, revision=named.revision) for repo in repos]
    return [WebSource(f"{place} ({r.kind})", r, url, build_hf_headers()) for r, url in zip(repos, urls, strict=True)]
