"""Who takes part in a round and what counts: read from the chain alone (protocol sections 3 and 6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.sections import AverageSection
from distributed_training.protocol.types import Candidate, Commitment, Neuron, Role, Roster, Round, SliceSpec


def encode_slice_map(held: Sequence[bool]) -> bytes:
    """32 bytes: bit j % 8 (lowest first) of byte j // 8 = slice j is held. At most 256 slices."""
    value = sum(1 << j for j, bit in enumerate(held) if bit)
    return value.to_bytes(32, "little")


def decode_slice_map(data: bytes, num_slices: int) -> tuple[bool, ...]:
    """Bits of the round's slices. Bits beyond `num_slices` name nothing and are ignored."""
    value = int.from_bytes(data, "little")
    return tuple(bool(value >> j & 1) for j in range(num_slices))


@dataclass(frozen=True, slots=True)
class Counted:
    """What the chain decides about one round at finalised s+Y."""

    slices: tuple[int, ...]  # indices of counted slices; empty when the round is discarded
    reason: str  # "applied" or why the round is discarded
    holders: dict[int, tuple[bytes, ...]]  # slice -> public keys of validators that set its bit


def said(neuron: Neuron, now: Roster, run: bytes) -> tuple[Commitment, int] | None:
    """What the same registration's commitment as of `now` says, and the block it was written in. None: it says nothing
    about this run."""
    current = now.by_public_key(neuron.public_key)
    if current is None or current.registered_block != neuron.registered_block or current.commitment is None:
        return None
    return (current.commitment, current.commitment_block or 0) if current.commitment.run == run else None


def has_pages(neuron: Neuron, manifest: RunManifest) -> bool:
    """Pages are dealt to the uids that the manifest counts. A chain that allows more may let others register."""
    return neuron.uid < manifest.max_uids


def is_listed(neuron: Neuron, manifest: RunManifest) -> bool:
    """Is this hotkey, or the coldkey that owns it, on the run's list? Everybody is where there is none."""
    access = manifest.access
    if not access.hotkeys and not access.coldkeys:
        return True
    return neuron.public_key.hex() in access.hotkeys or neuron.coldkey.hex() in access.coldkeys


def candidates(round_: Round, roster: Roster, at_commit: Roster, manifest: RunManifest) -> tuple[Candidate, ...]:
    """Miners of the roster (s-B) that have pages, may mine, and whose round-r work hash was written in (s, s+D], sorted
    by public key.

    `at_commit` is the roster as of s+D. Identity, owner, peer key and address are those of the roster: nobody joins a
    round that has begun.
    """
    found: list[Candidate] = []
    for neuron in roster.neurons:
        before, now = said(neuron, roster, round_.run), said(neuron, at_commit, round_.run)
        if before is None or now is None:
            continue
        commitment, block = now
        if commitment.role is not Role.MINER or commitment.first_round != round_.index or commitment.first is None:
            continue
        if not round_.start_block < block <= round_.commit_block:
            continue
        if commitment.peer_key != before[0].peer_key or not (
            has_pages(neuron, manifest) and is_listed(neuron, manifest)
        ):
            continue
        found.append(
            Candidate(
                uid=neuron.uid,
                hotkey=neuron.hotkey,
                public_key=neuron.public_key,
                registered_block=neuron.registered_block,
                peer_key=commitment.peer_key,
                address=neuron.address,
                record_hash=commitment.first,
                reduces=commitment.reduces,
            )
        )
    return tuple(sorted(found, key=lambda c: c.public_key))


def output_hashes(round_: Round, specs: Sequence[SliceSpec], roster: Roster, at_output: Roster) -> dict[int, bytes]:
    """Slice index -> output-record hash on chain as of s+X."""
    found: dict[int, bytes] = {}
    for spec in specs:
        former = roster.by_public_key(spec.reducer)
        now = None if former is None else said(former, at_output, round_.run)
        if now is None or now[0].role is not Role.MINER or now[0].second_round != round_.index:
            continue
        if now[0].second is not None:
            found[spec.index] = now[0].second
    return found


@dataclass(frozen=True, slots=True)
class Claim:
    """What the chain says of one slice's output: who signs the output that counts, and where its hash stands."""

    reducer: bytes  # public key
    record_hash: bytes  # of the output record; by_backup: of the backup's own record, whose `backup` names the output
    by_backup: bool


def backup_of(specs: Sequence[SliceSpec], index: int) -> SliceSpec | None:
    """The slice whose reducer stands in for that of slice `index`: the next one. None for a group of one."""
    return specs[(index + 1) % len(specs)] if len(specs) > 1 else None


def backed_by(specs: Sequence[SliceSpec], index: int) -> SliceSpec | None:
    """The slice for whose reducer that of slice `index` stands in, as it would reduce it; None for a group of one."""
    return replace(specs[index - 1], reducer=specs[index].reducer) if len(specs) > 1 else None


def output_claims(round_: Round, specs: Sequence[SliceSpec], roster: Roster, at_output: Roster) -> dict[int, Claim]:
    """Slice index -> the output that counts as of s+X: the reducer's own, else what its backup's record may name.

    Whether that record does name one is not on the chain; whoever wants the slice reads it there.
    """
    hashes = output_hashes(round_, specs, roster, at_output)
    claims = {j: Claim(specs[j].reducer, found, by_backup=False) for j, found in hashes.items()}
    for spec in specs:
        backup = backup_of(specs, spec.index)
        if spec.index not in hashes and backup is not None and backup.index in hashes:
            claims[spec.index] = Claim(backup.reducer, hashes[backup.index], by_backup=True)
    return dict(sorted(claims.items()))


def slice_maps(
    round_: Round, num_slices: int, voters: Sequence[Neuron], at_map: Roster
) -> dict[bytes, tuple[bool, ...]]:
    """Public key of a voter -> its slice map of the round, as of s+Y."""
    found: dict[bytes, tuple[bool, ...]] = {}
    for neuron in voters:
        now = said(neuron, at_map, round_.run)
        if now is not None and now[0].role is Role.VALIDATOR and now[0].second_round == round_.index and now[0].second:
            found[neuron.public_key] = decode_slice_map(now[0].second, num_slices)
    return found


def counted_slices(
    num_slices: int,
    outputs: Collection[int],
    maps: Mapping[bytes, Sequence[bool]],
    voters: Sequence[Neuron],
    average: AverageSection,
) -> Counted:
    """The counted set of protocol section 3: `outputs` claimed on chain, held by more than half of committing stake."""
    stake = {n.public_key: n.stake for n in voters}
    committed = fsum(stake[key] for key in maps)
    if not voters:
        return Counted((), "the validators of this run hold too little of the permit stake", {})
    if committed <= 0 or committed < average.min_map_share * fsum(stake.values()):
        return Counted((), "too little validator stake committed a slice map", {})
    holders = {j: tuple(key for key in sorted(maps) if maps[key][j]) for j in range(num_slices)}
    chosen = tuple(
        j for j in range(num_slices) if j in outputs and 2 * fsum(stake[key] for key in holders[j]) > committed
    )
    if len(chosen) < average.min_counted:
        return Counted((), f"{len(chosen)} of {num_slices} slices count, {average.min_counted} needed", {})
    return Counted(chosen, "applied", {j: holders[j] for j in chosen})


def majority_root(round_: Round, voters: Sequence[Neuron], now: Roster) -> bytes | None:
    """The state root of the round that more than half of ALL voters' stake announced; else None.

    Half of the stake that happened to commit would not do: in a round in which honest validators are late, a
    stranger with a grain of stake would speak for everybody, and honest nodes would stop.
    """
    support: dict[bytes, list[float]] = {}
    for neuron in voters:
        current = said(neuron, now, round_.run)
        if current is None or current[0].role is not Role.VALIDATOR or current[0].first_round != round_.index:
            continue
        if current[0].first is not None:
            support.setdefault(current[0].first, []).append(neuron.stake)
    total = fsum(n.stake for n in voters)
    return next((root for root, stakes in support.items() if 2 * fsum(stakes) > total), None)
