"""What a run asks of a machine, from its manifest: shown before anything large is downloaded, and when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_training.averaging.disk import gib, required_bytes
from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import output_bytes, uplink_bytes
from distributed_training.protocol.manifest import RunManifest


@dataclass(frozen=True, slots=True)
class Needs:
    """Of a miner that reduces a mean slice (its own grows with what it earns, among equals to twice that); who has no
    open port sends and receives half of it, a validator receives half."""

    parameters: int
    round_s: float
    training_s: float  # of a round
    round_bytes: int  # sent in a round, and as much received: its chunks to the reducers, its slice to everybody
    scatter_bits_per_s: float  # out while chunks travel, and in for who reduces
    gather_bits_per_s: float  # in while slices travel, and out for who reduces
    state_bytes: int  # fetched once by who joins
    disk_bytes: int  # at most
    step_flop: float  # of one inner step: 6 for each parameter and token

    @property
    def bits_per_s(self) -> float:
        """Each way while chunks or slices travel, so that they are there in time."""
        return max(self.scatter_bits_per_s, self.gather_bits_per_s)


def needs(manifest: RunManifest, num_coords: int, block_s: float) -> Needs:
    """`block_s`: seconds a block takes on the run's chain."""
    t, layout = manifest.timing, layout_of(manifest, num_coords)
    up, down = uplink_bytes(manifest, layout), output_bytes(manifest, layout)
    scatter, gather = t.output - t.reduce_margin - t.commit, t.map - t.output
    return Needs(
        parameters=num_coords,
        round_s=t.length * block_s,
        training_s=(t.length if t.overlap else t.commit - t.commit_margin) * block_s,
        round_bytes=up + down,
        scatter_bits_per_s=8 * up / scatter / block_s,
        gather_bits_per_s=8 * down / gather / block_s,
        state_bytes=8 * num_coords,
        disk_bytes=required_bytes(manifest, num_coords),
        step_flop=6.0 * num_coords * manifest.tokens_per_step,
    )


def caps_too_low(
    needed: Needs, up_mbit: float | None, down_mbit: float | None, *, sends: bool, reduces: bool
) -> str | None:
    """What to say of caps on a node's line with which it cannot be in time; None: nothing. sends: a miner; reduces: one
    that others can reach. Who does neither sends only what can wait."""
    up = needed.bits_per_s if reduces else needed.scatter_bits_per_s if sends else 0.0
    down = needed.bits_per_s if reduces else needed.gather_bits_per_s
    caps = (("up", "sends", up_mbit, up), ("down", "receives", down_mbit, down))
    low = [
        f"--network.{way}_mbit {cap:g} is less than the {bits / 1e6:.3g} Mbit/s at which this node {verb} what is due"
        for way, verb, cap, bits in caps
        if cap is not None and cap * 1e6 < bits
    ]
    return "; ".join(low) + ": what comes too late does not count and is not paid" if low else None


def needs_lines(manifest: RunManifest, needed: Needs, flop_per_s: float | None = None) -> tuple[str, str, str]:
    """Model; round and network; disk and work. flop_per_s: of this device's matrix products, None: not known."""
    each, step = manifest.tokens_per_step, needed.step_flop
    work = f"a step of {each:,} tokens is about {_scaled(step)}FLOP (6 for each parameter and token)"
    if flop_per_s is not None:
        steps = min(manifest.inner.max_steps, int(needed.training_s * flop_per_s / step))
        work += (
            f", so at most {steps:,} steps, {steps * each:,} tokens a round on this device, whose matrix products "
            f"reach {_scaled(flop_per_s)}FLOP a second"
        )
    model, tokens = manifest.model.config["model_type"], manifest.data.sequence_length
    parameters = _scaled(needed.parameters).replace("G", "B").rstrip()
    return (
        f"run {manifest.name} ({manifest.sha256[:16]}): {model}, {parameters} parameters, sequences of {tokens:,} "
        "tokens",
        f"a round takes {_time(needed.round_s)}; a miner sends {_scaled(needed.round_bytes)}B in it and receives as "
        f"much, at {_scaled(needed.bits_per_s)}bit/s; who joins fetches {_scaled(needed.state_bytes)}B of state",
        f"up to {gib(needed.disk_bytes)} GiB of disk; {work}",
    )


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.3g} seconds"


def _scaled(value: float) -> str:
    """With the letter of a thousand, a million and so on, for a unit to follow."""
    known = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, letter = next(((size, letter) for size, letter in known if value >= size), (1.0, ""))
    return f"{value / size:.3g} {letter}"
