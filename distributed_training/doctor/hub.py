"""The Hugging Face Hub, as far as this node needs it: the token, what it may do, how often it may ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.utils import build_hf_headers, get_session, httpx, parse_ratelimit_headers

from distributed_training.doctor.base import Finding, Unmet, in_thread
from distributed_training.errors import ConfigError, DistributedTrainingError, LocalFault, said
from distributed_training.hub import HubDenied, HubMissing, Repo, hub_errors, prepare_client
from distributed_training.protocol.types import Role
from distributed_training.settings.config import NodeConfig
from distributed_training.settings.places import HubRepo
from distributed_training.stillness import clocks

if TYPE_CHECKING:
    from distributed_training.doctor.subject import Subject

ASK_S = httpx.Timeout(5.0, connect=4.0)
WEB_S = 3.0
SETTINGS = "https://huggingface.co/settings/tokens"
LOW = 100  # requests left of a window
WRITES = frozenset({"repo.write", "repo.content.write"})


def written_repo(role: Role, config: NodeConfig) -> str | None:
    """ORG/NAME that this node publishes to."""
    place = {Role.OWNER: config.checkpoints, Role.MINER: config.hub.repo}.get(role)
    return place.repo_id if isinstance(place, HubRepo) else None


def read_repos(config: NodeConfig) -> list[Repo]:
    places = ((config.pages, "dataset"), (config.checkpoints, "model"))
    return [Repo(place.repo_id, "dataset" if kind == "dataset" else "model") for place, kind in places
            if isinstance(place, HubRepo)]  # fmt: skip


async def check_hub(subject: Subject) -> list[Finding]:
    """By what the manifest says of the run's places too, where that is all there is."""
    config, public = subject.config, ""
    write, token = written_repo(subject.role, config), await in_thread(get_token)
    if token is None and write is None and not read_repos(config):  # else the Hub is asked at once
        try:
            config, manifest = await subject.found.get()
            public, write = f"{manifest.public.pages} {manifest.public.checkpoints}", written_repo(subject.role, config)
        except Unmet:
            pass
    reads = bool(read_repos(config)) or "hub:" in public
    if write is None and not reads and token is None:
        return [Finding("Hub token", "skipped", "nothing of this node is on the Hugging Face Hub, and no token is set")]
    if write is not None and token is None:
        told = f"none is set, and this node publishes to {write}"
        return [Finding("Hub token", "fail", told, _make(write))]
    return await in_thread(lambda: ask_hub(token, write, read_repos(config)))


def ask_hub(token: str | None, write: str | None, reads: list[Repo]) -> list[Finding]:
    """Blocking. write: ORG/NAME that has to be written to."""
    try:
        prepare_client()
        if token is None:
            return [_limit({}, "no token is set, which is enough to read what is public"), *_readable(reads)]
        with hub_errors(Repo("whoami"), "cannot ask whose token this is"):
            path = f"{HfApi().endpoint}/api/whoami-v2"
            answer = get_session().get(path, headers=build_hf_headers(token=token), timeout=ASK_S)
            if answer.status_code not in (200, 401, 403, 429):
                raise LocalFault(f"the Hub answers {answer.status_code}")
    except ConfigError as error:
        return [Finding("Hub token", "fail", said(error), "unset HF_ENDPOINT, HF_HUB_OFFLINE or the proxy, or mend it")]
    except LocalFault as error:
        told = f"the Hub at {constants.ENDPOINT} cannot be asked: {said(error)}"
        fix = f"see whether this machine reaches {constants.ENDPOINT} (firewall, proxy: HTTPS_PROXY)"
        return [Finding("Hub token", "fail" if write else "warn", told, f"{fix}; nodes go on without it and try again")]
    return _answered(answer, write, reads)


def _answered(answer: httpx.Response, write: str | None, reads: list[Repo]) -> list[Finding]:
    if answer.status_code in (401, 403):
        told = f"the Hub at {constants.ENDPOINT} does not know the token that is set"
        fix = _make(write) if write else f"unset HF_TOKEN (or hf auth logout), or make a new one at {SETTINGS}"
        return [Finding("Hub token", "fail", told, fix)]
    if answer.status_code == 429:
        info = parse_ratelimit_headers(answer.headers)
        wait = "" if info is None else f" for another {info.reset_in_seconds} s"
        fix = "wait, and run fewer processes with this token or from this address; the token could not be looked at"
        return [Finding("Hub rate limit", "warn", f"reached{wait}", fix)]
    try:
        me: Any = answer.json()
        name, held = str(me["name"]), me.get("auth", {}).get("accessToken", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return [Finding("Hub token", "warn", "the Hub's answer about it makes no sense", "look at HF_ENDPOINT")]
    findings = [_scope(name, me, held, write), _limit(answer.headers, f"asked as {name}"), *_readable(reads)]
    return [*findings, *([_may_be_made(write)] if write and findings[0].state == "ok" else [])]


def _scope(name: str, me: Mapping[str, Any], token: Mapping[str, Any], write: str | None) -> Finding:
    role = token.get("role")
    if write is None:
        return Finding("Hub token", "ok", f"of {name}, role {role}; this node only reads")
    if role == "read":
        return Finding(
            "Hub token", "fail", f"of {name}, it may only read; this node publishes to {write}", _make(write)
        )
    if role == "fineGrained" and not may_write(token.get("fineGrained", {}), write):
        told = f"of {name}, fine-grained, without write access to {write}"
        fix = f"edit the token at {SETTINGS}: write access to contents of {write}"
        return Finding("Hub token", "fail", told, fix)
    owner, orgs = write.split("/")[0], me.get("orgs") or []
    mine = next((org for org in orgs if org.get("name") == owner), None)
    if owner != name and (mine is None or mine.get("roleInOrg") == "read"):
        told = f"of {name}, who may not write in {owner}; this node publishes to {write}"
        return Finding("Hub token", "fail", told, f"name a repository of {name}'s, or be given write access to {owner}")
    return Finding("Hub token", "ok", f"of {name}, role {role}, it may write to {write}")


def may_write(scopes: Any, repo: str) -> bool:
    """By what whoami says of a fine-grained token: permissions by user, organisation or single repository."""
    try:
        return any(
            WRITES & set(scope["permissions"]) and scope["entity"]["name"] in (repo, repo.split("/")[0])
            for scope in scopes["scoped"]
        )
    except (KeyError, TypeError):
        return True  # it says so in another way: writing will show


def _may_be_made(write: str) -> Finding:
    """A repository that is there, and of runs, or a name that is free."""
    repo = Repo(write)
    try:
        info = _info(repo)
    except HubMissing:
        return Finding("Hub repository", "ok", f"{write} is not there yet: the node makes it")
    except DistributedTrainingError as error:
        return Finding("Hub repository", "warn", said(error), "try again; the node does so by itself")
    names = {s.rfilename for s in info.siblings or ()} - {".gitattributes"}
    if names and "training_state.json" not in names:
        told = f"{write} holds {len(names)} files and no checkpoint of a run: the node refuses to replace them"
        return Finding("Hub repository", "fail", told, "name another repository, one that is new or of a run")
    return Finding("Hub repository", "ok", f"{write} is there, with {'a checkpoint' if names else 'nothing'} in it")


def _readable(reads: list[Repo]) -> list[Finding]:
    found: list[Finding] = []
    for repo in reads:
        try:
            _info(repo)
            found.append(Finding("Hub repository", "ok", f"{repo} can be read"))
        except (HubMissing, HubDenied) as error:
            found.append(Finding("Hub repository", "fail", said(error), "check the name and the token's access to it"))
        except DistributedTrainingError as error:
            found.append(Finding("Hub repository", "warn", said(error), "try again; the node does so by itself"))
    return found


def _info(repo: Repo) -> Any:
    with hub_errors(repo, f"cannot find {repo.id}"):
        return HfApi().repo_info(repo.id, repo_type=repo.kind, timeout=5.0)


def _limit(headers: Mapping[str, str], who: str) -> Finding:
    info = parse_ratelimit_headers(headers)
    if info is None:
        return Finding("Hub rate limit", "ok", f"{who}; this Hub does not tell how many requests are left")
    told = f"{who}; {info.remaining} of {info.limit or 'its'} requests are left for {info.reset_in_seconds} s"
    if info.remaining < LOW:
        return Finding("Hub rate limit", "warn", told, "a token of your own has more (HF_TOKEN); run fewer processes")
    return Finding("Hub rate limit", "ok", told)


def _make(repo: str | None) -> str:
    what = "write access" if repo is None else f"write access to {repo}"
    return f"make a token with {what} at {SETTINGS} and set HF_TOKEN to it: export HF_TOKEN=hf_..."


async def web_clock_s() -> float | None:
    """How far this machine's clock is ahead of the Hub's, whose answers are dated; None: nobody was reached."""
    try:
        async with asyncio.timeout(WEB_S):
            return await in_thread(_ask_time)
    except (TimeoutError, ConfigError, LocalFault):
        return None


def _ask_time() -> float | None:
    with hub_errors(Repo("clock"), "cannot ask the time"):
        answer = httpx.head(constants.ENDPOINT, timeout=WEB_S, follow_redirects=False)
        dated = answer.headers.get("date")
        return None if dated is None else clocks()[0] - parsedate_to_datetime(dated).timestamp()
