"""Checkpoints in a model repository of the Hugging Face Hub: one commit and one tag `{run}.{round}` each.

The repository belongs to runs: a commit replaces all its files, so one with other things is refused. One process writes
to it. The Hub decides nothing: a reader takes the state only if training_state.json has the digest it asked for, and
each file the sha256 in there.

Retention. `prune` keeps the newest `keep` tags of the run and those of the rounds it is given, which are the ones that
the chain names; it deletes the run's other tags, then the LFS objects that no branch or tag refers to.
History is not rewritten, so no commit sha changes: commits without a tag stay listed, without their large files.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.hf_api import GitRefs, ModelInfo
from huggingface_hub.utils import build_hf_headers, paginate

from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.checkpoints.checking import check_listing, check_sizes, described, read_bounded
from distributed_training.checkpoints.description import (
    MAX_STATE_BYTES,
    STATE_FILE,
    Description,
    parse_description,
    tag_name,
)
from distributed_training.checkpoints.download import Pace, claim, download, make_room, small_file
from distributed_training.checkpoints.repository import GIT, all_stored, create, drop_unused, look, names, require_ours
from distributed_training.errors import ConfigError, LocalFault, WireError
from distributed_training.hub import (
    HubConflict,
    HubFault,
    HubMissing,
    Repo,
    ask,
    hub_errors,
    prepare_client,
    require_repo,
    require_token,
)

log = logging.getLogger(__name__)

MIN_KEEP = 2  # somebody may be reading the last but one
_RACES = 5
_LOOKED_AT = 50  # the newest commits: one page of the Hub's answer


class HubCheckpoints:
    """See CheckpointStore. `location` is the address of the commit."""

    def __init__(
        self,
        repo_id: str,
        run: str,
        cache: Path,
        *,
        keep: int = 5,
        pace: Pace | None = None,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        """run: see description.run_name. cache: a folder for what is fetched; one checkpoint is kept there. pace: see
        download. Token and endpoint default to huggingface_hub's own (HF_TOKEN, HF_ENDPOINT). Raises ConfigError."""
        if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo_id, re.ASCII):
            raise ConfigError(f"checkpoints: hub:{repo_id} names no repository; expected hub:ORG/NAME")
        if keep < MIN_KEEP:
            raise ConfigError(f"hub.keep {keep}: at least {MIN_KEEP}, or a checkpoint goes while somebody reads it")
        prepare_client()
        self._repo, self._run, self._cache, self._keep = Repo(repo_id), run, cache, keep
        self._pace = pace or Pace()
        self._api = HfApi(endpoint=endpoint, token=token, library_name="distributed-training")

    def check(self, *, write: bool) -> None:
        if write:
            require_token(self._api, self._repo)
        try:
            require_repo(self._api, self._repo)
        except HubMissing:
            if not write:
                raise
            create(self._api, self._repo)
        if write:
            self._require_ours(self._info("main"))

    # --- writing --------------------------------------------------------------------------------------------------

    def publish(self, round_index: int, folder: Path) -> CheckpointRef:
        state = read_bounded(folder / STATE_FILE, MAX_STATE_BYTES)
        mine = parse_description(state)
        for _ in range(_RACES):
            with self._asking(f"cannot publish the checkpoint of round {round_index}"):
                try:
                    sha = self._tagged(round_index) or self._committed(round_index, mine)
                    sha = sha or self._commit(round_index, folder, mine, hashlib.sha256(state).hexdigest())
                    return self._tag(round_index, sha, mine)
                except HubConflict as error:  # look again what is there
                    log.debug("%s", error)
                except HubMissing as error:  # the Hub was down when `check` would have made it
                    log.debug("%s", error)
                    create(self._api, self._repo)
        raise HubFault(f"cannot publish the checkpoint of round {round_index}: others keep changing {self._repo}")

    def _committed(self, round_index: int, mine: Description) -> str | None:
        """Our commit of this state among the newest, if it was made: its answer, or its tag, may have been lost."""
        url = f"{self._api.endpoint}/api/models/{self._repo.id}/commits/main"
        for commit in islice(paginate(url, params={}, headers=self._headers()), _LOOKED_AT):
            found = commit["title"] == self._title(round_index) and mine.state_root in commit["message"]
            if found and all_stored(self._api, self._repo, commit["id"]):  # `prune` may have emptied it
                return str(commit["id"])
        return None

    def _commit(self, round_index: int, folder: Path, mine: Description, digest: str) -> str:
        """All files in one commit on the head that we have seen. Raises HubConflict when it is the head no more."""
        check_sizes(folder, mine)
        head = self._info("main")
        self._require_ours(head)
        ours = [*mine.files, STATE_FILE]
        stale = names(head) - {*ours, GIT}
        operations = [CommitOperationAdd(name, folder / name) for name in ours]
        deletions = [CommitOperationDelete(name) for name in sorted(stale)]
        message = f"state root {mine.state_root}\n{STATE_FILE} sha256 {digest}"
        try:
            with hub_errors(self._repo, f"cannot commit round {round_index}"):
                made = self._api.create_commit(
                    self._repo.id,
                    [*operations, *deletions],
                    commit_message=self._title(round_index),
                    commit_description=message,
                    parent_commit=head.sha,
                )
        except HubConflict:
            raise
        except HubFault:  # perhaps only the answer was lost
            there = self._committed(round_index, mine)
            if there is None:
                raise
            return there
        return made.oid

    def _tag(self, round_index: int, sha: str, mine: Description) -> CheckpointRef:
        """Tag our commit; a tag that is there stays where it is. Raises LocalFault when it is on another state."""
        there = self._tagged(round_index)
        if there is None:
            with hub_errors(self._repo, f"cannot tag round {round_index}"):
                self._api.create_tag(self._repo.id, tag=self._name(round_index), revision=sha)
            there = sha
        ref = self._ref(round_index, there)
        if not self.describe(ref).same_state(mine):
            raise LocalFault(
                f"the tag {self._name(round_index)} of {self._repo} is on another state of this round and is never "
                "moved: publish to another repository, or delete the tag if you know that it is wrong"
            )
        return ref

    def prune(self, named: Collection[int]) -> None:
        with self._asking("cannot delete old checkpoints"):
            refs = self._refs()
            tags = {tag.name: tag.target_commit for tag in refs.tags}
            own = {index: tag for tag in tags if (index := self._round(tag)) is not None}
            kept = {*sorted(own)[-self._keep :], *named}
            old = [tag for index, tag in sorted(own.items()) if index not in kept]
            for tag in old:
                self._api.delete_tag(self._repo.id, tag=tag)
            if old:
                branches = {branch.target_commit for branch in refs.branches}
                drop_unused(self._api, self._repo, branches | {tags[tag] for tag in tags if tag not in old})

    # --- reading --------------------------------------------------------------------------------------------------

    def find(self, round_index: int, digest: bytes | None) -> CheckpointRef | None:
        with self._asking(f"cannot look for the checkpoint of round {round_index}"):
            sha = self._tagged(round_index)
            ref = None if sha is None else self._ref(round_index, sha)
        if ref is not None and digest not in (None, ref.digest):
            log.warning("%s is not the checkpoint of round %d that was named", ref.location, round_index)
            return None
        return ref

    def rounds(self) -> list[int]:
        with self._asking("cannot look for checkpoints"):
            return sorted(index for tag in self._refs().tags if (index := self._round(tag.name)) is not None)

    def newest(self) -> CheckpointRef | None:
        return self.find(rounds[-1], None) if (rounds := self.rounds()) else None

    def at(self, revision: str) -> CheckpointRef:
        """The checkpoint at any branch, tag or commit; whatever is there. Raises ConfigError when nothing is."""
        sha = self._info(revision).sha
        try:
            state = self._state(str(sha))
        except HubMissing:
            raise ConfigError(f"{self._repo} holds no checkpoint at {revision}: it has no {STATE_FILE}") from None
        digest = hashlib.sha256(state).digest()
        return CheckpointRef(parse_description(state).round, self._location(str(sha)), digest)

    def describe(self, ref: CheckpointRef) -> Description:
        kept = self._folder(ref) / STATE_FILE
        if kept.is_file():
            data = read_bounded(kept, MAX_STATE_BYTES)
            if hashlib.sha256(data).digest() == ref.digest:
                return described(data, ref)
        with self._asking(f"cannot read {STATE_FILE}"):
            return described(self._state(_sha(ref)), ref)

    def fetch(self, ref: CheckpointRef, names: Collection[str]) -> Path:
        """Into the cache; what was there of this checkpoint, even half a file, is gone on with."""
        description = self.describe(ref)
        with self._asking(f"cannot fetch the checkpoint of round {ref.round}"):
            self._check_listing(ref, description)
        claim(self._cache)
        with self._asking(f"cannot fetch the checkpoint of round {ref.round}"):
            folder = self._folder(ref)
            make_room(folder, sum(description.files[name].num_bytes for name in names))
            (folder / STATE_FILE).write_bytes(description.encode())
            for name in names:
                url, facts = self._url(_sha(ref), name), description.files[name]
                download(url, self._headers(), folder / name, facts, self._pace)
        return folder

    def _check_listing(self, ref: CheckpointRef, description: Description) -> None:
        """Before a byte of them is fetched: which files the commit has, and how large they are."""
        siblings = {s.rfilename: s for s in self._info(_sha(ref)).siblings or () if s.rfilename != GIT}
        check_listing(ref.location, siblings, description)
        for name, facts in description.files.items():
            if siblings[name].size != facts.num_bytes:
                raise WireError(f"checkpoint {ref.location}: {name} does not have the size of {STATE_FILE}")

    # --- the Hub --------------------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """What a person has to put right is found by `check`; later it is trouble like any other."""
        try:
            with hub_errors(self._repo, what):
                yield
        except ConfigError as error:
            raise HubFault(str(error)) from error

    def _info(self, revision: str) -> ModelInfo:
        return look(self._api, self._repo, revision)

    def _require_ours(self, head: ModelInfo) -> None:
        state = self._state(str(head.sha)) if STATE_FILE in names(head) else None
        require_ours(self._repo, head, state)

    def _refs(self) -> GitRefs:
        """Every tag and branch of the repository, and the commit it is on."""
        return ask(self._repo, "cannot list the tags", partial(self._api.list_repo_refs, self._repo.id))

    def _tagged(self, round_index: int) -> str | None:
        """The commit that our tag of this round is on."""
        try:
            return self._info(self._name(round_index)).sha
        except HubMissing:
            require_repo(self._api, self._repo)
            return None

    def _ref(self, round_index: int, sha: str) -> CheckpointRef:
        digest = hashlib.sha256(self._state(sha)).digest()
        return CheckpointRef(round_index, self._location(sha), digest)

    def _location(self, sha: str) -> str:
        return f"{self._api.endpoint}/{self._repo.id}/tree/{sha}"

    def _state(self, sha: str) -> bytes:
        call = partial(small_file, self._url(sha, STATE_FILE), self._headers(), MAX_STATE_BYTES, self._pace)
        return ask(self._repo, f"cannot read {STATE_FILE}", call)

    def _url(self, sha: str, name: str) -> str:
        return hf_hub_url(self._repo.id, name, revision=sha, endpoint=self._api.endpoint)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self._api.token, library_name="distributed-training")

    def _folder(self, ref: CheckpointRef) -> Path:
        return self._cache / ref.digest.hex()[:32]

    def _title(self, round_index: int) -> str:
        return f"{self._run} round {round_index}"

    def _name(self, round_index: int) -> str:
        return tag_name(self._run, round_index)

    def _round(self, tag: str) -> int | None:
        run, _, index = tag.rpartition(".")
        return int(index) if run == self._run and re.fullmatch(r"0|[1-9][0-9]{0,9}", index) else None


def _sha(ref: CheckpointRef) -> str:
    return ref.location.rsplit("/", 1)[1]
