"""What huggingface_hub raises, as errors of ours: one line each, with the fix.

Only the adapters that talk to the Hub use this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, httpx
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory  # theirs sets headers and hooks; it is not exported

from distributed_training.addresses import check_hub
from distributed_training.errors import ConfigError, DistributedTrainingError, LocalFault, named

T = TypeVar("T")
Kind = Literal["model", "dataset"]
_KINDS: tuple[Kind, ...] = ("model", "dataset")
# The client's own session waits for ever. The Hub may take a while to answer a commit of many files.
TIMEOUT = httpx.Timeout(120.0, connect=20.0)
_NEW_TOKEN = "make a token with the role 'write' at https://huggingface.co/settings/tokens and set HF_TOKEN to it"


class HubFault(LocalFault):
    """The Hub cannot be reached or does not do what was asked; the same may work later."""


class HubConflict(HubFault):
    """Somebody was faster: the branch has moved (412), or the name is taken (409)."""


class HubMissing(ConfigError):
    """There is no such repository, revision or file, or our token may not see it."""


class HubDenied(ConfigError):
    """No token, or one that may not do this."""


@dataclass(frozen=True, slots=True)
class Repo:
    id: str  # ORG/NAME
    kind: Kind = "model"

    def __str__(self) -> str:
        return f"{self.kind} repository {self.id}"


@cache
def prepare_client() -> None:
    """Make huggingface_hub's session of this process one that gives up on silence, without bars or lines of its own.

    Raises ConfigError for an address of a Hub or proxy in the environment that is none.
    """
    check_hub(os.environ)

    def session() -> httpx.Client:
        client = default_client_factory()
        client.timeout = TIMEOUT
        return client

    set_client_factory(session)
    disable_progress_bars()
    hub_logging.set_verbosity_error()


@contextmanager
def hub_errors(repo: Repo, what: str) -> Iterator[None]:
    """Around calls of huggingface_hub or its HTTP session. `what` we were doing: "cannot list the tags".

    Raises HubMissing, HubDenied or another ConfigError for what a person has to change, else HubFault or HubConflict.
    """
    try:
        yield
    except DistributedTrainingError:
        raise
    # The client's own types are OSErrors and ValueErrors; an answer that makes no sense to it ends as any of these.
    except (OSError, httpx.HTTPError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise translate(error, repo, what) from error


def ask(repo: Repo, what: str, call: Callable[[], T], tries: int = 4) -> T:
    """What `call` gives; it only reads, so after a HubFault it is made again, with pauses of 0.5, 1, 2 s. Raises as
    hub_errors does."""
    for attempt in range(tries - 1):
        try:
            with hub_errors(repo, what):
                return call()
        except HubFault:
            time.sleep(0.5 * 2**attempt)
    with hub_errors(repo, what):
        return call()


def translate(error: BaseException, repo: Repo, what: str) -> ConfigError | LocalFault:
    """The error of ours that `error` is."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading FILE to the Hub"
        return translate(error.__cause__, repo, what)
    if isinstance(error, OfflineModeIsEnabled):
        return ConfigError(f"{what}: HF_HUB_OFFLINE is set, so nothing may ask the Hub; unset it")
    if isinstance(error, HFValidationError):
        return ConfigError(f"{what}: {repo.id!r} cannot be the name of a repository: expected ORG/NAME")
    if isinstance(error, LocalTokenNotFoundError):
        return HubDenied(f"{what}: there is no token for {repo}; {_NEW_TOKEN}")
    if isinstance(error, HfHubHTTPError):
        return _of_answer(error, repo, what)
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return HubFault(f"{what}: {error.strerror}")
    return HubFault(f"{what}: {named(error)[:300]}")


def _of_answer(error: HfHubHTTPError, repo: Repo, what: str) -> ConfigError | LocalFault:
    said = _one_line(error.server_message or "")
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return HubMissing(f"{what}: {repo} has no such revision; name a branch, a tag or a full commit sha that it has")
    if isinstance(error, RemoteEntryNotFoundError):
        return HubMissing(f"{what}: {repo} has no such file at this revision")
    if isinstance(error, RepositoryNotFoundError):  # also for a private one that our token may not see
        return HubMissing(
            f"{what}: the Hub has no {repo}, or this token may not see it; check the name, and for a private or gated "
            "one set HF_TOKEN to a token that may read it"
        )
    if status == 401:
        return HubDenied(f"{what}: the Hub does not know this token; {_NEW_TOKEN}")
    if status == 403:
        return HubDenied(f"{what}: this token may not change {repo} ({said or 'forbidden'}); {_NEW_TOKEN}")
    if status == 409 or status == 412:
        return HubConflict(f"{what}: {repo} has changed meanwhile ({status} {said})".rstrip())
    if status == 429:
        return HubFault(
            f"{what}: the Hub's rate limit is reached; it is tried again later, a token of your own (HF_TOKEN) has more"
        )
    return HubFault(f"{what}: the Hub answers {status} {said}".rstrip())


def require_repo(api: HfApi, repo: Repo) -> None:
    """Raises HubMissing unless the repository is there, ConfigError when it is of another kind."""
    with hub_errors(repo, f"cannot find {repo.id}"):
        try:
            api.repo_info(repo.id, repo_type=repo.kind)
        except RepositoryNotFoundError:
            for other in _KINDS:
                if other != repo.kind and api.repo_exists(repo.id, repo_type=other):
                    raise ConfigError(
                        f"{repo.id} is a {other} repository on the Hub, a {repo.kind} repository was expected; name one"
                    ) from None
            raise


def require_token(api: HfApi, repo: Repo) -> None:
    """Raises HubDenied without a token, or with one that may only read. What a fine-grained one may shows later."""
    with hub_errors(repo, f"cannot write to {repo.id}"):
        me = api.whoami()
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubDenied(f"cannot write to {repo.id}: the token of {me.get('name')} may only read; {_NEW_TOKEN}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
