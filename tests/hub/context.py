"""What every route needs: the store, the settings, who asks and what they may do, and signed addresses."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import quote, urlencode, urlsplit

from hub.blobs import write_atomically
from hub.store import Kind, Repo, Store
from hub.wire import HubError, Request


@dataclass(frozen=True)
class User:
    """Who a token speaks for. Writes to repositories under its own name and under `orgs`; "*" is every name."""

    name: str
    role: Literal["write", "read"] = "write"
    orgs: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        return self.role == "write" and self.belongs_to(repo_id)

    def belongs_to(self, repo_id: str) -> bool:
        return bool({repo_id.split("/")[0], "*"} & {self.name, *self.orgs})


DEFAULT_TOKENS: Mapping[str, User] = {"hf_test": User("tester", "write", ("*",))}


@dataclass(frozen=True)
class Settings:
    """`cdn_host` is the name under which signed addresses reach this server; a name other than the one that clients
    use for the Hub shows whether they keep their token to themselves. "" is the same name."""

    tokens: Mapping[str, User] = field(default_factory=lambda: DEFAULT_TOKENS)
    lfs_over_bytes: int = 10 << 20
    part_bytes: int = 64 << 20  # a larger upload comes in parts of this size
    page_size: int = 1000
    url_lifetime_s: float = 3600.0
    cdn_host: str = "localhost"


@dataclass
class Context:
    store: Store
    settings: Settings

    def __post_init__(self) -> None:
        path = self.store.root / "signing_key"
        if not path.exists():
            write_atomically(path, secrets.token_bytes(32))
        self._key = path.read_bytes()

    def user(self, request: Request) -> User | None:
        """None if no token came. Raises HubError 401 for one that is not known."""
        header = request.headers.get("Authorization")
        if header is None:
            return None
        user = self.settings.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def signed_in(self, request: Request) -> User:
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return user

    def readable(self, request: Request) -> Repo:
        """The repository that the request names. A private one is as good as missing for strangers."""
        user = self.user(request)
        repo = self.store.get(cast(Kind, request.groups.get("kind", "models")), request.groups["id"])
        if repo is None or (repo.private and not (user and user.belongs_to(repo.id))):
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, request: Request) -> tuple[Repo, User]:
        repo, user = self.readable(request), self.signed_in(request)
        self.must_write(user, repo.id)
        return repo, user

    def must_write(self, user: User, repo_id: str) -> None:
        if not user.may_write(repo_id):
            raise HubError(403, f"You don't have the rights to write to {repo_id} with this token")

    def commit_sha(self, repo: Repo, request: Request) -> str:
        sha = repo.resolve(request.groups.get("rev", "main"))
        if sha is None:
            raise HubError(404, f"Invalid rev id: {request.groups.get('rev')}", "RevisionNotFound")
        return sha

    def sign(self, request: Request, path: str, **facts: str) -> str:
        """A full address for `path` that works without a token until `url_lifetime_s` from now."""
        expires = f"{time.time() + self.settings.url_lifetime_s:.3f}"
        facts = {**facts, "expires": expires, "signature": self._signature(path, {**facts, "expires": expires})}
        base = request.base_url
        if self.settings.cdn_host:
            base = f"http://{self.settings.cdn_host}:{urlsplit(base).port}"
        return f"{base}{quote(path)}?{urlencode(facts)}"

    def check_signature(self, request: Request, path: str, *names: str) -> dict[str, str]:
        """The signed facts. Raises HubError 403 as a store of objects does."""
        facts = {name: request.query(name) for name in (*names, "expires")}
        if not hmac.compare_digest(self._signature(path, facts), request.query("signature")):
            raise HubError(403, "SignatureDoesNotMatch")
        if time.time() > float(facts["expires"]):
            raise HubError(403, "Request has expired")
        return facts

    def _signature(self, path: str, facts: Mapping[str, str]) -> str:
        message = repr((path, sorted(facts.items()))).encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()
