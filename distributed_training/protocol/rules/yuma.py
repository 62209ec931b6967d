"""One epoch of the chain's Yuma consensus in float64: classic bonds, default settings.

Formulas follow the public runtime (pallet subtensor, run_epoch), written anew. Legend:
n neurons in uid order; S stake share [n]; A active stake share [n]; W weights [n, n], row = validator, column = neuron
judged; C consensus [n]; I incentive [n]; D dividends [n]; B bonds [n, n] as stored u16. A float64 epoch differs from
the chain's fixed point by about 1e-5; the u16 floor of what is stored is kept, because stored bonds feed back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U16_MAX = 65535

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]
U16Matrix = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class YumaParams:
    """Subnet settings; the defaults are the chain's own."""

    kappa: int = 32767  # u16 share of stake that must support a weight
    bonds_moving_average: int = 900_000  # millionths of the old bonds kept per epoch
    bonds_penalty: int = U16_MAX  # u16 share of clipped weights in the bond weights
    activity_factor: int = 13_889  # thousandths of tempo after which a silent validator counts as inactive
    max_validators: int = 128


@dataclass(frozen=True, slots=True)
class EpochInput:
    """State just before the epoch's block; every sequence has one entry per uid."""

    block: int  # the block the epoch runs in
    last_epoch_block: int
    tempo: int
    owner_uid: int | None
    stake: Vector  # [n] any unit, non-negative
    permits: Mask  # [n] permits in force until this epoch
    last_update: NDArray[np.int64]  # [n] block of each validator's weights
    registered: NDArray[np.int64]  # [n] registration blocks
    weights: U16Matrix  # [n, n] as stored
    bonds: U16Matrix  # [n, n] as stored


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What the epoch stores. Shares are float64; `u16` gives the form the chain keeps."""

    consensus: Vector  # [n]
    validator_trust: Vector  # [n]
    rank: Vector  # [n] stake-weighted clipped weights, sums to at most 1
    incentive: Vector  # [n] sums to 1, or all zero
    dividends: Vector  # [n] sums to 1, or all zero
    emission: Vector  # [n] share of the epoch's emission, sums to 1 unless nobody has stake
    permits: Mask  # [n] permits from now on
    active: Mask  # [n] weights fresh enough to count
    bonds: U16Matrix  # [n, n] to be stored


def normalize(values: Vector) -> Vector:
    """`values` divided by their sum; all zero stays all zero."""
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)


def normalize_rows(values: Matrix) -> Matrix:
    sums = values.sum(axis=1, keepdims=True)
    return np.divide(values, sums, out=np.zeros_like(values), where=sums > 0)


def normalize_columns(values: Matrix) -> Matrix:
    return normalize_rows(values.T).T


def u16(shares: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Shares in [0, 1] as the chain stores them: floor(x * 65535)."""
    return np.floor(np.clip(shares, 0.0, 1.0) * U16_MAX).astype(np.uint16)


def next_permits(stake: Vector, max_validators: int, owner_uid: int | None) -> Mask:
    """The `max_validators` largest non-zero stakes (ties: the higher uid), and the owner always."""
    order = np.argsort(stake, kind="stable")[::-1][:max_validators]
    permits = np.zeros(len(stake), dtype=np.bool_)
    permits[order] = stake[order] > 0
    if owner_uid is not None:
        permits[owner_uid] = True
    return permits


def upscale_weights(values: list[int]) -> list[int]:
    """Weights as stored on submit: scaled so that the largest is 65535, floored; all zero stays as it is."""
    top = max(values, default=0)
    return [value * U16_MAX // top for value in values] if top else list(values)


def consensus(active_stake: Vector, weights: Matrix, kappa: float) -> Vector:
    """Per column the smallest weight w such that the stake giving at most w exceeds 1 - kappa.

    That is the highest level that about kappa of the active stake supports. Stake without a weight counts as zero.
    """
    voters = active_stake > 0
    stake = normalize(active_stake[voters])
    votes = weights[voters]
    result = np.zeros(weights.shape[1])
    for column in range(weights.shape[1]):
        order = np.argsort(votes[:, column], kind="stable")
        below = np.cumsum(stake[order])
        enough = np.flatnonzero(below > 1.0 - kappa)
        if len(enough):
            result[column] = votes[order[enough[0]], column]
    return result


def masked_weights(state: EpochInput, permits: Mask) -> Matrix:
    """Rows that count, normalised to 1: permitted, no self weights but the owner's, none older than the judged uid."""
    weights = state.weights.astype(np.float64)
    weights[~permits] = 0.0
    own = np.eye(len(permits), dtype=np.bool_)
    if state.owner_uid is not None:
        own[state.owner_uid, state.owner_uid] = False
    weights[own] = 0.0
    weights[state.last_update[:, None] <= state.registered[None, :]] = 0.0
    return normalize_rows(weights)


def activity_cutoff(params: YumaParams, tempo: int) -> int:
    """Blocks after which weights no longer count."""
    return max(1, params.activity_factor * tempo // 1000)


def active_mask(state: EpochInput, params: YumaParams) -> Mask:
    return state.last_update + activity_cutoff(params, state.tempo) >= state.block


def ema_bonds(state: EpochInput, active_stake: Vector, bond_weights: Matrix, params: YumaParams) -> Matrix:
    """Column-normalised exponential average of old bonds and this epoch's purchase; young columns start from zero."""
    old = state.bonds.astype(np.float64)
    old[:, state.registered > state.last_epoch_block] = 0.0
    purchase = normalize_columns(active_stake[:, None] * bond_weights)
    alpha = 1.0 - params.bonds_moving_average / 1e6
    return normalize_columns(alpha * purchase + (1.0 - alpha) * normalize_columns(old))


def stored_bonds(bonds: Matrix, permits: Mask) -> U16Matrix:
    """Each column scaled to a maximum of 1 and floored to u16; rows without a permit are deleted."""
    top = bonds.max(axis=0, keepdims=True, initial=0.0)
    scaled = np.divide(bonds, top, out=np.zeros_like(bonds), where=top > 0)
    scaled[~permits] = 0.0
    return u16(scaled)


def emission_shares(incentive: Vector, dividends: Vector, active_stake: Vector, stake: Vector) -> Vector:
    """Half to miners by incentive, half to validators by dividends; by stake when neither exists."""
    combined = normalize(incentive + dividends)
    if combined.any():
        return combined
    return active_stake if active_stake.any() else stake


def run_epoch(state: EpochInput, params: YumaParams) -> EpochResult:
    """One epoch. The permits in force are the old ones (the owner's forced); new ones come from today's stake."""
    stake = normalize(state.stake.astype(np.float64))
    permits = state.permits.copy()
    if state.owner_uid is not None:
        permits[state.owner_uid] = True
    active = active_mask(state, params)
    active_stake = normalize(np.where(active & permits, stake, 0.0))

    weights = masked_weights(state, permits)
    level = consensus(active_stake, weights, params.kappa / U16_MAX)
    clipped = np.minimum(weights, level[None, :])
    rank = active_stake @ clipped
    incentive = normalize(rank)

    penalty = params.bonds_penalty / U16_MAX
    bond_weights = (1.0 - penalty) * weights + penalty * clipped
    bonds = ema_bonds(state, active_stake, bond_weights, params)
    dividends = normalize(bonds @ incentive)
    new_permits = next_permits(stake, params.max_validators, state.owner_uid)
    return EpochResult(
        consensus=level,
        validator_trust=clipped.sum(axis=1),
        rank=rank,
        incentive=incentive,
        dividends=dividends,
        emission=emission_shares(incentive, dividends, active_stake, stake),
        permits=new_permits,
        active=active,
        bonds=stored_bonds(bonds, new_permits),
    )
