"""The run: its manifest, found as a node finds it, whether this code speaks its protocol, its files and its pages."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_training import PROTOCOL_VERSION
from distributed_training.data.tokens import TOKENIZER_FILE, load_tokenizer
from distributed_training.doctor.base import Finding, Unmet, in_thread, sized
from distributed_training.doctor.standing import access, fits, owner_key, run_voice, subnet_findings
from distributed_training.errors import ConfigError, DistributedTrainingError, LocalFault, NetworkFault, said
from distributed_training.finding.choice import seen_runs, standing
from distributed_training.finding.content import Wanted, fetch
from distributed_training.finding.find import Finder, missing_files, runs_command
from distributed_training.paths import is_missing
from distributed_training.preflight import run_manifest
from distributed_training.protocol.manifest import RunManifest, other_protocol
from distributed_training.protocol.types import Role
from distributed_training.settings.config import NodeConfig

if TYPE_CHECKING:
    from distributed_training.doctor.chain import Subnet
    from distributed_training.doctor.subject import Subject

FETCH_S = 5.0  # of one file that is not here yet: long enough to see who gives it
MOVE_AWAY = "move it away: a node of the run finds it anew"


@dataclass(frozen=True, slots=True)
class Version:
    """Of a manifest's protocol, where it is not the one that this code speaks."""

    theirs: int

    def finding(self, whose: str) -> Finding:
        told = f"{whose} speaks protocol {self.theirs}, this code {PROTOCOL_VERSION}"
        if self.theirs > PROTOCOL_VERSION:
            return Finding("protocol", "fail", told, "update this checkout: git pull, then bash scripts/setup.sh")
        fix = f"go back to the release that speaks protocol {self.theirs} (git tag lists them), or take a run of today"
        return Finding("protocol", "fail", told, fix)


def other_version(data: bytes) -> Version | None:
    version = other_protocol(data)
    return None if version is None else Version(version)


def is_given(config: NodeConfig) -> bool:
    """Is the manifest a file that is there, or one that a person named?"""
    return not config.run_is_open and not (config.by_default("manifest") and is_missing(config.manifest))


async def find_run(subject: Subject) -> tuple[NodeConfig, RunManifest]:
    """The configuration in the run's folder, and its manifest. Raises ConfigError, Unmet where the chain is needed."""
    if is_given(subject.config):
        return subject.config, run_manifest(subject.config)
    finder = await finder_of(subject, await subject.subnet.get())
    _, manifest = await finder.choose()
    return subject.config.in_run(manifest.tag), manifest


async def finder_of(subject: Subject, subnet: Subnet) -> Finder:
    owner, key = subnet.facts.owner_hotkey, await own_key(subject)
    return Finder(subject.config, subnet.roster, owner, key, subject.transport.made, lambda _: None, subject.scratch)


# --- the manifest -----------------------------------------------------------------------------------


async def check_manifest(subject: Subject) -> list[Finding]:
    try:
        config, manifest = await subject.found.made()
    except TimeoutError:
        told = "nobody gave the run's manifest in time"
        return [Finding("manifest", "fail", told, f"try again, or ask the owner for manifest.json: {_list(subject)}")]
    except (ConfigError, NetworkFault, LocalFault) as error:
        return _no_manifest(subject, said(error))
    whence = str(config.manifest) if is_given(subject.config) else "as the chain names it"
    told = f"{manifest.name} ({manifest.sha256[:16]}), protocol {manifest.protocol_version}, {whence}"
    found = [Finding("manifest", "ok", told), *_folder(config, manifest)]
    try:
        subnet = await subject.subnet.get()
    except Unmet:
        return found
    against = standing(manifest, subnet.roster)
    key = await own_key(subject)
    if against is not None and manifest.public.run_key != key.hex():
        fix = f"see which run is alive: {_list(subject)}; without {config.manifest} a node finds that one by itself"
        found.append(Finding("manifest", "warn", f"the chain does not speak for it: {against}", fix))
    me = subnet.roster.by_public_key(key)
    found += [run_voice(me, manifest, subnet.roster), fits(manifest, subnet.facts)]
    if subject.role is Role.MINER and me is not None:
        found.append(access(me, manifest))
    if subject.role is Role.OWNER:
        found.append(owner_key(key, manifest, subnet.roster))
    return found


async def check_subnet_flags(subject: Subject) -> list[Finding]:
    return subnet_findings(subject.role, subject.config, (await subject.subnet.get()).facts)


def _no_manifest(subject: Subject, why: str) -> list[Finding]:
    given, fix = is_given(subject.config), f"see what there is: {_list(subject)}; --run DIGITS chooses one"
    paths = [subject.config.manifest] if given else sorted(subject.scratch.glob("*.json"))
    for path in paths:
        try:
            version = other_version(path.read_bytes())
        except OSError:
            continue
        if version is not None:
            return [version.finding(str(path) if given else f"the run {path.stem}")]
    if given:
        fix = f"{'move that file away and the run is found on chain' if subject.config.by_default('manifest') else 'give another with --manifest'}; {_list(subject)} lists the runs"  # noqa: E501
    return [Finding("manifest", "fail", why, fix)]


def _list(subject: Subject) -> str:
    return runs_command(subject.config)


def _folder(config: NodeConfig, manifest: RunManifest) -> list[Finding]:
    """A node's folder belongs to the run that it was begun in."""
    try:
        owner = (config.node_dir / "manifest.sha256").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return []
    if owner in ("", manifest.sha256):
        return []
    told = f"{config.node_dir} holds the node of another run ({owner[:16]})"
    return [Finding("node's folder", "fail", told, "give this run a --run-dir of its own, or move that folder away")]


async def own_key(subject: Subject) -> bytes:
    try:
        return await subject.public_key.get()
    except Unmet:
        return b""


# --- its files --------------------------------------------------------------------------------------


async def check_tokenizer(subject: Subject) -> list[Finding]:
    config, manifest = await subject.found.get()
    data, path = manifest.data, config.run_dir / TOKENIZER_FILE
    name = "tokenizer"
    if data.tokenizer == "file" and is_missing(path):
        wanted = next(w for w, p in missing_files(config, manifest) if p == path)
        return [await would_come(subject, config, manifest, wanted, path, name)]
    try:
        found = await in_thread(lambda: load_tokenizer(data.tokenizer, path, data.eos_id))
    except ConfigError as error:
        fix = MOVE_AWAY if data.tokenizer == "file" else "git checkout and bash scripts/setup.sh put it right"
        return [Finding(name, "fail", said(error), fix)]
    if found.sha256 != data.tokenizer_sha256:
        told = f"{path if data.tokenizer == 'file' else data.tokenizer}: sha256 {found.sha256[:16]}..., the manifest "
        fix = MOVE_AWAY if data.tokenizer == "file" else "install the release with which the run was made"
        return [Finding(name, "fail", f"{told}asks for {data.tokenizer_sha256[:16]}...", fix)]
    return [Finding(name, "ok", f"{data.tokenizer}, {found.vocab_size:,} ids, sha256 {found.sha256[:16]}...")]


async def would_come(
    subject: Subject, config: NodeConfig, manifest: RunManifest, wanted: Wanted, path: Path, name: str
) -> Finding:
    """A file that a node's start fetches: who gives it, and how fast? It stays in the doctor's own folder."""
    subnet = await subject.subnet.get()
    run = next((r for r in seen_runs(subnet.roster, subnet.facts.owner_hotkey) if r.tag == manifest.tag), None)
    finder = await finder_of(subject, subnet)
    began, kept = time.monotonic(), subject.scratch / wanted.name
    try:
        async with asyncio.timeout(FETCH_S):
            giver = await fetch(wanted, kept, await finder.sources(run, manifest), say=_say_nothing)
    except TimeoutError:
        come = sum(part.stat().st_size for part in kept.parent.glob(f"{wanted.name}*part"))
        if come:
            told = f"not in {path.parent} yet; it comes at {sized(come / FETCH_S)}/s from who has it"
            return Finding(name, "ok", told)
        why = f"nothing came in {FETCH_S:g} s"
    except DistributedTrainingError as error:
        why = said(error)
    else:
        told = f"not in {path.parent} yet; {giver} gave its {sized(kept.stat().st_size)} in "
        return Finding(name, "ok", f"{told}{time.monotonic() - began:.1f} s, and its sha256 is right")
    fix = f"put the run's {wanted.name} (from its owner, or a running node's folder) in {path}"
    return Finding(name, "fail", f"not in {path.parent}, and nobody gives it: {why}", fix)


def _say_nothing(text: str) -> None:
    """What a fetch says on its way is said by its end here."""
