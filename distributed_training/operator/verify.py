"""What can be proven about a published checkpoint, by anybody, line by line.

files      everything has the sha256 and size in training_state.json, and nothing else is there
run        its manifest has the sha256 that training_state.json names; tokeniser, config, shapes are the manifest's
numbers    parameters, outer momentum, applied count and carry have the state root in training_state.json
chain      the subnet's owner, or most of its validators' stake, is in this run; its run key named this
           training_state.json; validators with more than half of the stake committed this state root for this round
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from distributed_training.chain.base import Chain
from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.checkpoints.checking import read_bounded
from distributed_training.checkpoints.description import Description
from distributed_training.errors import ChainFault, ConfigError, WireError
from distributed_training.finding.choice import seen_runs, standing
from distributed_training.operator.verdicts import Finding, Verdict
from distributed_training.protocol.manifest import RunManifest, parse_manifest
from distributed_training.protocol.rules.membership import majority_root
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Commitment, Neuron, Role, Roster
from distributed_training.protocol.wire import decode_carry
from distributed_training.roles.joining.published import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MAX_OTHER_BYTES,
    check_config,
    expected_layout,
)
from distributed_training.training.outer import RunState, state_root


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint whose files are proven, with the run it says it is of."""

    described: Description
    folder: Path
    manifest: RunManifest


def verify_files(store: CheckpointStore, ref: CheckpointRef, given: RunManifest | None) -> tuple[list[Finding], Opened]:
    """Files and run. given: the manifest that the asker trusts; None: the checkpoint's own.

    Raises WireError at the first thing that is wrong, LocalFault when it cannot be read.
    """
    described = store.describe(ref)
    manifest = given or _own_manifest(store, ref, described)
    layout = expected_layout(described, ref.location, manifest)  # which says how large the files may be
    folder = store.fetch(ref, described.files)
    size = sum(facts.num_bytes for facts in described.files.values())
    text = f"all {len(described.files)} files ({size / 1e6:.1f} MB) are as training_state.json says, there is no other"
    found = [Finding(Verdict.PROVEN, text)]
    for name, data in layout.index_files.items():
        if read_bounded(folder / name, len(data)) != data:
            raise WireError(f"{name}: it puts parameters into other files than the run's")
    check_config(folder / CONFIG_FILE, layout)
    _check_no_code(folder, described)
    whose = "yours" if given is not None else "the one that lies beside it"
    text = f"run manifest {manifest.sha256[:16]} ({manifest.name}) is {whose}; config, tokenizer and shapes are its own"
    return [*found, Finding(Verdict.PROVEN, text)], Opened(described, folder, manifest)


def verified_state(opened: Opened) -> RunState:
    """Raises WireError when the numbers have another root, or are of another form."""
    described, manifest = opened.described, opened.manifest
    layout = expected_layout(described, str(opened.folder), manifest)
    state = layout.read(opened.folder, described.applied, decode_carry(described.carry))
    root = state_root(state, manifest.average.chunk_coords).hex()
    if root != described.state_root:
        raise WireError(
            f"the numbers have state root {root[:16]}, training_state.json says {described.state_root[:16]}"
        )
    return state


def verify_numbers(opened: Opened) -> list[Finding]:
    """Raises WireError when the numbers have another root."""
    state, root = verified_state(opened), opened.described.state_root
    parts = f"{len(state.params):,} parameters, as many of outer momentum, {state.applied} applied rounds and the carry"
    found = [Finding(Verdict.PROVEN, f"{parts} have the state root {root}")]
    if opened.described.round == 0:
        if root != opened.manifest.model.initial_root:
            raise WireError("it is of round 0 and is not the initial state that the manifest names")
        found.append(Finding(Verdict.PROVEN, "that is the initial state which the run manifest names"))
    return found


async def verify_on_chain(chain: Chain, ref: CheckpointRef, opened: Opened) -> tuple[Finding, Finding, Finding]:
    """Is it the subnet's run; the run key's word for this checkpoint; the validators'. Raises ChainFault when the chain
    is away."""
    manifest, index = opened.manifest, opened.described.round
    head = (await chain.head()).finalized
    owner, key = (await chain.params()).owner_hotkey, bytes.fromhex(manifest.public.run_key)
    today = await chain.roster(head)
    round_ = manifest.round(index)
    # Today's commitment names the newest checkpoint; that of an older one stood there before the next was published.
    blocks = [b for b in (round_.output_block, round_.map_block, round_.end_block) if b < head]
    said = [_says(today.by_public_key(key))]
    said += [await _key_said(chain, key, block) for block in blocks]
    if any(c is not None and (c.second_round, c.second) == (index, ref.digest) for c in said):
        owners = Finding(Verdict.PROVEN, f"the run key put this training_state.json on chain for round {index}")
    else:
        newest = said[0].second_round if said[0] is not None else None
        text = (
            f"no commitment of the run key that can be read names it (the newest checkpoint on chain: round {newest})"
        )
        owners = Finding(Verdict.OPEN, text)
    return subnets_run(today, owner, manifest), owners, await _majority(chain, opened, head)


def chain_proves(run: Finding, owners: Finding, majority: Finding) -> bool:
    """It is the subnet's run, and one of the two vouches for the state while the other does not deny it."""
    words = {owners.verdict, majority.verdict}
    return run.verdict is Verdict.PROVEN and Verdict.PROVEN in words and Verdict.FAILED not in words


NO_CHAIN = Finding(
    Verdict.OPEN, "that this is the run's state: no chain was asked (--run-dir for a local run, --netuid and --chain)"
)


def _own_manifest(store: CheckpointStore, ref: CheckpointRef, described: Description) -> RunManifest:
    """The one beside the numbers: whose it is, only the chain can say."""
    facts = described.files.get(MANIFEST_FILE)
    if facts is None or facts.num_bytes > MAX_OTHER_BYTES:
        raise WireError(f"{MANIFEST_FILE} is missing, or larger than any run's")
    folder = store.fetch(ref, [MANIFEST_FILE])
    try:
        return parse_manifest(read_bounded(folder / MANIFEST_FILE, MAX_OTHER_BYTES), source=MANIFEST_FILE)
    except ConfigError as error:
        raise WireError(str(error)) from None


def subnets_run(today: Roster, owner: str, manifest: RunManifest) -> Finding:
    """By the subnet owner's word or, since owners change without their will, by where its validators are."""
    said = _says(today.by_hotkey(owner))
    if said is not None and said.first == manifest.digest:
        return Finding(Verdict.PROVEN, f"the owner of subnet {manifest.netuid} put this run manifest on chain")
    first = next(iter(seen_runs(today, owner)), None)
    if first is not None and first.stake > 0 and first.tag == manifest.tag and standing(manifest, today) is None:
        return Finding(Verdict.PROVEN, f"most validator stake of subnet {manifest.netuid} is in this run")
    if said is None or said.first is None:
        return Finding(Verdict.FAILED, "the owner of the subnet has no run on chain, and no validator is in this one")
    text = f"the owner's run has manifest {said.first.hex()[:16]}, this checkpoint is of {manifest.sha256[:16]}"
    return Finding(Verdict.FAILED, text)


async def _majority(chain: Chain, opened: Opened, head: int) -> Finding:
    manifest, index = opened.manifest, opened.described.round
    round_ = manifest.round(index)
    if round_.map_block > head:
        return Finding(Verdict.OPEN, f"validators have not said the state root of round {index} yet")
    try:
        roster, at_map = await chain.roster(round_.roster_block), await chain.roster(round_.map_block)
    except ChainFault as fault:
        return Finding(
            Verdict.OPEN, f"what validators said in round {index} cannot be read from this chain node: {fault}"
        )
    root = majority_root(round_, voters(manifest, roster), at_map)
    if root is None:
        return Finding(Verdict.OPEN, f"no state root has the majority of the stake in round {index}")
    if root.hex() != opened.described.state_root:
        return Finding(
            Verdict.FAILED, f"validators with the majority of the stake committed another root: {root.hex()}"
        )
    return Finding(
        Verdict.PROVEN, f"validators with the majority of the stake committed this state root in round {index}"
    )


def _says(neuron: Neuron | None) -> Commitment | None:
    said = None if neuron is None else neuron.commitment
    return said if said is not None and said.role is Role.OWNER else None


async def _key_said(chain: Chain, key: bytes, block: int) -> Commitment | None:
    """None also for a block that this chain node does not keep any more."""
    try:
        return _says((await chain.roster(block)).by_public_key(key))
    except ChainFault:
        return None


def _check_no_code(folder: Path, described: Description) -> None:
    """No file that transformers reads may ask for code."""
    for name in described.files:
        if not name.endswith("_config.json"):
            continue
        try:
            asks = "auto_map" in json.loads(read_bounded(folder / name, MAX_OTHER_BYTES))
        except (ValueError, TypeError, RecursionError):
            raise WireError(f"{name}: no JSON object") from None
        if asks:
            raise WireError(f"{name}: it asks for code from its repository (auto_map)")
