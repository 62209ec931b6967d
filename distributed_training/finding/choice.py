"""Which runs a subnet's commitments speak of, and which of them a newcomer follows. Pure.

A run is known by its manifest's digest. Anybody may announce one; who speaks for it is the hotkey that its manifest
names (`public.run_key`), whoever owns the subnet. Where that hotkey says nothing, the validators that are in the run
do: a subnet's owner changes without its will, and no newcomer may be cut off from a run by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Commitment, Neuron, Role, Roster

SILENT_BLOCKS = 3600  # 12 h on the main network, some 30 rounds: a validator that long without a word has left its run


@dataclass(frozen=True, slots=True)
class Announcement:
    """An owner's commitment that names a manifest."""

    neuron: Neuron
    digest: bytes
    place: str


@dataclass(frozen=True, slots=True)
class SeenRun:
    """What the chain shows of one run. Its digest begins with `tag`, and is known where somebody announces it."""

    tag: bytes
    announced: tuple[Announcement, ...]
    members: tuple[tuple[Neuron, Commitment], ...]  # everybody in it: validators by stake first, then others by stake
    validators: int
    stake: float  # theirs
    by_subnet_owner: bool  # announced by whoever owns the subnet now

    @property
    def miners(self) -> int:
        return sum(commitment.role is Role.MINER for _, commitment in self.members)


def seen_runs(roster: Roster, subnet_owner: str) -> tuple[SeenRun, ...]:
    """Every run on the roster: most validator stake first, then the subnet owner's, then by tag."""
    by_tag: dict[bytes, list[tuple[Neuron, Commitment]]] = {}
    for neuron in roster.neurons:
        if neuron.commitment is not None:
            by_tag.setdefault(neuron.commitment.run, []).append((neuron, neuron.commitment))
    runs = [_seen(tag, members, subnet_owner, roster.block.number) for tag, members in by_tag.items()]
    return tuple(sorted(runs, key=lambda run: (-run.stake, not run.by_subnet_owner, run.tag)))


def _seen(tag: bytes, members: Sequence[tuple[Neuron, Commitment]], subnet_owner: str, now: int) -> SeenRun:
    stakes = [neuron.stake for neuron, commitment in members if _validates(neuron, commitment, now)]
    announced = [Announcement(n, d, c.place) for n, c in members if (d := announced_digest(c)) is not None]
    return SeenRun(
        tag=tag,
        announced=tuple(announced),
        members=tuple(sorted(members, key=lambda m: (not _validates(*m, now), -m[0].stake, m[0].public_key))),
        validators=len(stakes),
        stake=fsum(stakes),
        by_subnet_owner=any(a.neuron.hotkey == subnet_owner for a in announced),
    )


def announced_digest(commitment: Commitment) -> bytes | None:
    """The manifest's digest that an owner's commitment names, if it fits its tag."""
    digest = commitment.first if commitment.role is Role.OWNER else None
    return digest if digest is not None and digest[:8] == commitment.run else None


def _validates(neuron: Neuron, commitment: Commitment, now: int) -> bool:
    spoke = now - (neuron.commitment_block or 0) <= SILENT_BLOCKS
    return neuron.may_validate and neuron.stake > 0 and commitment.role is Role.VALIDATOR and spoke


def candidates(runs: Sequence[SeenRun], prefix: str | None) -> tuple[SeenRun, ...]:
    """Those to look at, in order. By hand (`prefix`, hex): that one, whoever is in it. Otherwise those with validators
    and those that the subnet's owner announces: what any other hotkey announces alone is not joined unasked."""
    if prefix is None:
        return tuple(run for run in runs if run.stake > 0 or run.by_subnet_owner)
    named = [digest for run in runs for digest in _digests(run) if digest.hex().startswith(prefix[: 2 * len(digest)])]
    return tuple(run for run in runs if any(digest in named for digest in _digests(run)))


def _digests(run: SeenRun) -> tuple[bytes, ...]:
    return tuple(a.digest for a in run.announced) or (run.tag,)


def objection(run: SeenRun, manifest: RunManifest, roster: Roster) -> str | None:
    """Why a newcomer does not follow this run of its own accord, None if it does. `manifest`: what was found of it."""
    key = manifest.public.run_key
    if any(a.digest == manifest.digest and a.neuron.public_key.hex() == key for a in run.announced):
        return None
    speaker = next((n for n in roster.neurons if n.public_key.hex() == key), None)
    said = None if speaker is None or speaker.commitment is None else announced_digest(speaker.commitment)
    if said is not None and speaker is not None:
        return f"its run key, uid {speaker.uid}, announces run {said.hex()[:16]} instead"
    if run.stake > 0:
        return None
    by = ", ".join(f"uid {a.neuron.uid}" for a in run.announced)
    if not key:
        return f"its manifest, from {by}, names no run key, and no validator is in it"
    return f"{by} announces it, but its run key {key[:12]}... does not, and no validator is in it"


def standing(manifest: RunManifest, roster: Roster) -> str | None:
    """What the chain says against a manifest that was given by hand; None when it is announced or validated there."""
    run = next((run for run in seen_runs(roster, "") if run.tag == manifest.tag), None)
    if run is None or (run.stake == 0 and all(a.digest != manifest.digest for a in run.announced)):
        return f"no hotkey of subnet {manifest.netuid} announces or validates it yet"
    return objection(run, manifest, roster)
