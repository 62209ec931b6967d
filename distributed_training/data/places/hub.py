"""Data sets on the Hugging Face Hub as a place of pages: one commit, through huggingface_hub's session and token."""

from __future__ import annotations

from functools import partial

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers

from distributed_training.data.pages import Dataset, FileEntry
from distributed_training.data.places.ranges import HttpPlace, Limits

_LIMITS = Limits(requests_a_window=2_500)  # the Hub allows 3,000 from one address that is not logged in
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubPlace(HttpPlace):
    """A data set at a commit; see `hub_dataset`."""

    def __init__(self, dataset: Dataset, endpoint: str | None, token: str | None, limits: Limits) -> None:
        url = partial(hf_hub_url, dataset.repo, repo_type="dataset", revision=dataset.revision, endpoint=endpoint)
        super().__init__(
            f"data set {dataset.repo}",
            lambda file_name: url(filename=file_name),
            headers=lambda: build_hf_headers(token=token),
            explain=partial(_explain, dataset),
            limits=limits,
        )
        self._dataset = dataset

    def vouches(self, file: FileEntry, dataset: Dataset | None) -> bool:
        """The commit is what is believed; of another data set nobody knows what it is."""
        return dataset == self._dataset


def hub_dataset(
    dataset: Dataset, *, endpoint: str | None = None, token: str | None = None, limits: Limits | None = None
) -> HubPlace:
    """Files of a data set at its commit. None: HF_ENDPOINT and the token that huggingface_hub finds."""
    return HubPlace(dataset, endpoint, token, limits or _LIMITS)


def _explain(dataset: Dataset, status: int, code: str, file_name: str) -> str:
    if code == "RevisionNotFound":
        return f"data set {dataset.repo} has no commit {dataset.revision}"
    if code == "EntryNotFound":
        return f"data set {dataset.repo} has no file {file_name} at commit {dataset.revision[:12]}"
    if code == "GatedRepo":
        return f"data set {dataset.repo} is gated: accept its conditions on its page, then {_LOG_IN}"
    if code == "RepoNotFound" or status in (401, 403, 404):
        return f"data set {dataset.repo} does not exist, or is private and the token does not open it: {_LOG_IN}"
    return f"data set {dataset.repo}: {file_name}: HTTP status {status}"
