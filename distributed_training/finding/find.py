"""The story of a newcomer: from the chain's roster to a run directory that has all that a node needs to begin.

What a person gave is used as it is. What lies in the run directory needs nobody. What is missing is found by content:
from the run's own nodes, validators first, then from the places that the owner and the manifest name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed_training.addresses import FILE
from distributed_training.commands import command, python
from distributed_training.data.page_file import PAGES_FILE, most_bytes
from distributed_training.data.tokens import MAX_FILE_BYTES, TOKENIZER_FILE
from distributed_training.errors import ConfigError, NetworkFault, said
from distributed_training.files import write_whole
from distributed_training.finding.choice import SeenRun, candidates, objection, seen_runs, standing
from distributed_training.finding.content import Source, Wanted, fetch
from distributed_training.finding.places import sources_at
from distributed_training.finding.serving import PeerSource
from distributed_training.locks import InUse, Lock
from distributed_training.network.base import Transport
from distributed_training.network.peers import claimed_addresses
from distributed_training.protocol.manifest import RunManifest, load_manifest, parse_manifest
from distributed_training.protocol.types import Roster
from distributed_training.settings.config import NodeConfig
from distributed_training.settings.places import parse_repo

log = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
SOON_S = 20.0  # a manifest is a few kB: who has nothing to say by then is away
MAX_PEERS, MAX_PLACES = 32, 6  # asked for one file


@dataclass(frozen=True, slots=True)
class Finder:
    """`roster`: of the newest block. `open_transport`: a started transport; called once, and only to ask peers."""

    config: NodeConfig
    roster: Roster
    subnet_owner: str
    own_key: bytes
    open_transport: Callable[[], Awaitable[Transport]]
    show: Callable[[RunManifest], None]  # before anything large is fetched
    scratch: Path  # a folder of this process

    async def run(self) -> tuple[NodeConfig, RunManifest]:
        """The configuration in the run's directory, and the manifest. Raises ConfigError, NetworkFault, LocalFault."""
        config = self.config
        if config.run_is_open or (config.by_default("manifest") and not config.manifest.exists()):
            run, manifest = await self.choose()
            config = config.in_run(manifest.tag)
            write_whole(config.manifest, manifest.canonical(), shared=True)
        else:
            manifest = load_manifest(config.manifest)
            self._check_given(manifest)
            run = next((run for run in seen_runs(self.roster, self.subnet_owner) if run.tag == manifest.tag), None)
        if manifest.public.checkpoints and config.by_default("checkpoints"):
            config = config.model_copy(update={"checkpoints": parse_repo(manifest.public.checkpoints)})
        await asyncio.to_thread(self.show, manifest)
        if missing := missing_files(config, manifest):
            await self._fill(config, run, manifest, missing)
        return config, manifest

    def _check_given(self, manifest: RunManifest) -> None:
        """A file by hand wins: nodes may start before their owner has said anything, and a run outlives its owner."""
        if self.config.run is not None and not manifest.sha256.startswith(self.config.run):
            raise ConfigError(f"--run {self.config.run}: {self.config.manifest} is run {manifest.sha256[:16]}...")
        ours = manifest.public.run_key == self.own_key.hex()  # nobody can have announced it before us
        if not ours and (why := standing(manifest, self.roster)) is not None:
            log.warning("run %s is followed because %s was given: %s", manifest.sha256[:16], self.config.manifest, why)

    # --- which run ----------------------------------------------------------------------------------

    async def choose(self) -> tuple[SeenRun, RunManifest]:
        """The first run that can be found and that nothing speaks against; each other one is said in a line. Writes
        only to `scratch`: `TAG.json`, what came as its manifest. Raises ConfigError."""
        runs, by_hand = seen_runs(self.roster, self.subnet_owner), self.config.run
        refused: list[str] = []
        found = candidates(runs, by_hand)
        if by_hand is not None and len(found) > 1:
            raise ConfigError(f"--run {by_hand}: {len(found)} runs begin so on netuid {self.config.netuid}")
        for run in found:
            manifest, why = await self._manifest(run)
            if manifest is not None and by_hand is None:
                why = objection(run, manifest, self.roster)
            if manifest is not None and why is None:
                return run, manifest
            refused.append(f"run {_name(run)}: {why}")
            log.warning("not followed: %s", refused[-1])
            if manifest is None and run.stake > 0:
                break  # where the validators are is not to be guessed
        raise ConfigError(self._nothing(runs, refused))

    def _nothing(self, runs: Sequence[SeenRun], refused: Sequence[str]) -> str:
        where, wanted = f"netuid {self.config.netuid}", self.config.run
        look = f"{runs_command(self.config)} shows what there is"
        if refused:
            return f"no run of {where} can be followed: {'; '.join(refused)}; {look}, --run DIGEST chooses one"
        if wanted is not None:
            return f"--run {wanted}: nothing on {where} begins so; {look}"
        others = [run for run in runs if run.announced]
        if others:
            return f"no validator of {where} is in a run and its owner announces none; {look}, --run DIGEST chooses one"
        return f"nothing is announced on {where}: the owner has not committed a run; {look}"

    async def _manifest(self, run: SeenRun) -> tuple[RunManifest | None, str | None]:
        """By what the chain says of it: from our own disk, or from others. Else why not."""
        digests = {announced.digest for announced in run.announced}
        wanted = Wanted(MANIFEST_FILE, digests.pop() if len(digests) == 1 else run.tag, MAX_MANIFEST_BYTES)
        kept = self.config.in_run(run.tag).manifest
        try:
            if kept.exists():
                try:
                    return self._parsed(kept, wanted), None
                except ConfigError as error:
                    log.warning("%s is of no use and is asked for again: %s", kept, said(error))
            path = self.scratch / f"{run.tag.hex()}.json"
            giver = await fetch(wanted, path, await self.sources(run, None), say=log.warning, patience_s=SOON_S)
            manifest = self._parsed(path, wanted)
            log.info("run %s: its manifest is from %s", manifest.sha256[:16], giver)
            return manifest, None
        except (ConfigError, NetworkFault) as error:
            return None, said(error)

    def _parsed(self, path: Path, wanted: Wanted) -> RunManifest:
        manifest = parse_manifest(path.read_bytes(), source=MANIFEST_FILE)
        if not manifest.digest.startswith(wanted.prefix):
            raise ConfigError(f"{path} is run {manifest.sha256[:16]}, or not in its one canonical form")
        if manifest.netuid != self.config.netuid:
            raise ConfigError(f"its manifest is for netuid {manifest.netuid}")
        return manifest

    # --- its files ----------------------------------------------------------------------------------

    async def _fill(
        self, config: NodeConfig, run: SeenRun | None, manifest: RunManifest, missing: Sequence[tuple[Wanted, Path]]
    ) -> None:
        lock = await _alone(config.run_dir)  # nodes of one machine may share the directory
        try:
            for wanted, path in missing:
                if not path.exists():
                    log.info("%s is not in %s yet: asking for it", wanted.name, path.parent)
                    try:
                        giver = await fetch(wanted, path, await self.sources(run, manifest))
                    except NetworkFault as fault:
                        raise ConfigError(f"run {manifest.sha256[:16]} lacks {said(fault)}; put it in {path}") from None
                    log.info("%s is here, from %s", wanted.name, giver)
        finally:
            lock.release()

    async def sources(self, run: SeenRun | None, manifest: RunManifest | None) -> list[Source]:
        """Nodes of the run, then validators of others, who may know of it; then the places that are named."""
        tag = None if run is None else run.tag
        others = [(n, n.commitment) for n in self.roster.neurons if n.may_validate and n.commitment is not None]
        found, addresses = list[Source](), claimed_addresses(self.roster.neurons)
        for neuron, commitment in [*(run.members if run else ()), *(m for m in others if m[1].run != tag)]:
            if neuron.reachable_at is not None and neuron.public_key != self.own_key and len(found) < MAX_PEERS:
                transport = await self.open_transport()
                transport.learn(commitment.peer_key, *addresses[commitment.peer_key])
                found.append(PeerSource(transport, commitment.peer_key, f"uid {neuron.uid}"))
        places = [] if manifest is None else [manifest.public.pages, manifest.public.checkpoints]
        places += [] if run is None else [announced.place for announced in run.announced]
        for place in list(dict.fromkeys(places))[:MAX_PLACES]:
            found += sources_at(place)
        return found


async def _alone(folder: Path) -> Lock:
    told = False
    while True:
        try:
            return Lock(folder, "waiting until it has fetched the run's files", name=".finding")
        except InUse as other:
            if not told:
                log.info("%s", other)
            told = True
        await asyncio.sleep(1.0)


def missing_files(config: NodeConfig, manifest: RunManifest) -> list[tuple[Wanted, Path]]:
    """Files that the run needs in its directory and that nobody gave by hand."""
    data, found = manifest.data, list[tuple[Wanted, Path]]()
    if data.tokenizer == "file":
        wanted = Wanted(TOKENIZER_FILE, bytes.fromhex(data.tokenizer_sha256), MAX_FILE_BYTES)
        found.append((wanted, config.run_dir / TOKENIZER_FILE))
    if config.by_default("pages"):
        wanted = Wanted(PAGES_FILE, bytes.fromhex(data.pages_sha256), most_bytes(data.num_pages))
        found.append((wanted, config.run_dir / "pages" / PAGES_FILE))
    return [(wanted, path) for wanted, path in found if not path.exists()]


def runs_command(config: NodeConfig) -> str:
    """What lists the runs of this chain."""
    chain, local = config.subtensor, config.local_chain
    endpoint = chain.chain_endpoint if local is None else f"{FILE}{local}"
    network = None if chain.network == "finney" or endpoint is not None else chain.network
    flags = (("--netuid", config.netuid), ("--subtensor.network", network), ("--subtensor.chain_endpoint", endpoint))
    return command(python(), "-m", "distributed_training.runs", *flags)


def _name(run: SeenRun) -> str:
    """With who is in it."""
    parts = [f"{run.validators} validators"] if run.validators else []
    parts += ["announced by " + ", ".join(f"uid {a.neuron.uid}" for a in run.announced)] if run.announced else []
    return run.tag.hex() + (f" ({'; '.join(parts)})" if parts else "")
