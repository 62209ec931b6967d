"""Where a run's pages or checkpoints are: a folder of this machine, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distributed_training.errors import ConfigError
from distributed_training.paths import existing_folder, is_missing, typed

PREFIX = "hub:"
# Names as the Hub allows them; a revision is a branch, a tag or a commit.
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w][\w./-]{0,127}))?")


@dataclass(frozen=True, slots=True)
class HubRepo:
    """`hub:ORG/NAME` or `hub:ORG/NAME@REVISION`."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo_id}" + (f"@{self.revision}" if self.revision else "")


def parse_repo(text: str) -> HubRepo:
    """`ORG/NAME[@REVISION]`, with or without `hub:`. Raises ValueError that says what was expected."""
    found = _REPOSITORY.fullmatch(text.removeprefix(PREFIX))
    if found is None or ".." in text:
        raise ValueError("expected a repository like hub:ORG/NAME or hub:ORG/NAME@REVISION")
    return HubRepo(found[1], found[2])


def folder_of(place: Path) -> Path:
    """A folder that is there. Raises ConfigError, and says how the Hub would have been named: a name of a repository
    alone is taken for a path."""
    try:
        return existing_folder(place)
    except ConfigError as error:
        hint = f"; a repository of the Hub is written {PREFIX}ORG/NAME" if is_missing(place) else ""
        raise ConfigError(f"{error}{hint}") from None


def parse_place(text: str) -> HubRepo | Path:
    """A repository if it begins with `hub:`, else a path, made absolute. Raises ValueError."""
    return parse_repo(text) if text.startswith(PREFIX) else typed(text)
