"""This hotkey on the subnet: registered, fit for its role, and what the subnet's owner has switched on."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING

from distributed_training.chain.keys import hotkey_address
from distributed_training.commands import command, python
from distributed_training.doctor.base import Finding
from distributed_training.errors import ConfigError
from distributed_training.operator.standing import costs, standings, told, word
from distributed_training.preflight import how_to_register, not_listed
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Neuron, Role, Roster
from distributed_training.recipes.subnet_fit import check_subnet
from distributed_training.settings.config import NodeConfig

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts
    from distributed_training.doctor.subject import Subject

PERMIT = "validator permit"
STATUS, RUNS = (command(python(), "-m", f"distributed_training.{name}") for name in ("status", "runs"))


async def check_registered(subject: Subject) -> list[Finding]:
    """Whether there is a uid, and what it may do in any run."""
    key, subnet, config = await subject.public_key.get(), await subject.subnet.get(), subject.config
    me, facts = subnet.roster.by_public_key(key), subnet.facts
    if me is None:
        found = f"hotkey {config.wallet.hotkey!r} ({hotkey_address(key)}) has no uid on subnet {config.netuid}"
        price = "" if facts.price_tao is None else f"; a place costs {costs(facts)}"
        return [Finding("registered", "fail", f"{found}{price}", how_to_register(config))]
    found = [Finding("registered", "ok", f"uid {me.uid} since block {me.registered_block}")]
    if (said := me.commitment) is not None and said.role is not subject.role:
        told_ = f"on chain uid {me.uid} speaks as {said.role.name.lower()} of run {said.run.hex()}"
        fix = (
            f"stop that node before this one starts as {subject.role.name.lower()}, or give one of them another hotkey"
        )
        found.append(Finding("role", "warn", told_, fix))
    if subject.role is Role.VALIDATOR:
        return [*found, permit(me, subnet.roster, config)]
    mine = standings(facts, subnet.roster)[me.uid]
    safe = word(mine)
    fix = f"earn more than others before the immunity ends; {STATUS} follows it"
    line = Finding(
        "place", "ok" if safe == "safe" else "warn", told(me.uid, mine, facts), "" if safe == "safe" else fix
    )
    return [*found, line]


def stake_command(config: NodeConfig, hotkey: str) -> str:
    chain = config.subtensor.chain_endpoint or config.subtensor.network
    place = (("--network", chain), ("--netuid", config.netuid), ("-w", config.wallet.name), ("--hotkey", hotkey))
    return command("btcli", "stake", "add", *place, ("--amount-tao", "TAO"))


def start_command(config: NodeConfig) -> str:
    chain = config.subtensor.chain_endpoint or config.subtensor.network
    place = (("--network", chain), ("--netuid", config.netuid), ("-w", config.wallet.name))
    return command("btcli", "sudo", "start", *place)


def permit(me: Neuron, roster: Roster, config: NodeConfig) -> Finding:
    others = [n.stake for n in roster.neurons if n.may_validate and n.uid != me.uid]
    if me.may_validate:
        whole = fsum(others) + me.stake
        return Finding(PERMIT, "ok", f"yes, with stake {me.stake:,.1f}, {_share(me.stake, whole)} of what may validate")
    least = f"; {len(others)} hotkeys have one, the least with stake {min(others):,.1f}" if others else ""
    fix = f"stake more: {stake_command(config, me.hotkey)}; the permit comes with the end of an epoch"
    if config.local_chain is not None:
        fix = "on a local chain those have one that it was made with: --wallet.hotkey validator-0"
    return Finding(PERMIT, "fail", f"none: uid {me.uid} has stake {me.stake:,.1f}{least}", fix)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def run_voice(me: Neuron | None, manifest: RunManifest, roster: Roster) -> Finding:
    """Whether rounds of the run can count at all, with the stake of its validators."""
    least, who = manifest.average.min_voter_share, voters(manifest, roster)
    permits = fsum(n.stake for n in roster.neurons if n.may_validate)
    if who:
        share = _share(fsum(n.stake for n in who), permits)
        return Finding("run's validators", "ok", f"{len(who)}, with {share} of the stake that may validate")
    told_ = f"none with {least:.0%} of the stake that may validate has spoken of this run of late"
    mine = 0.0 if me is None or not me.may_validate else me.stake
    if mine > 0 and mine >= least * permits:
        return Finding("run's validators", "ok", f"{told_}; this hotkey's {_share(mine, permits)} is enough by itself")
    fix = f"start the run's validators, or ask its owner; {RUNS} shows which runs are alive"
    return Finding("run's validators", "warn", told_, fix)


def owner_key(key: bytes, manifest: RunManifest, roster: Roster) -> Finding:
    named = manifest.public.run_key
    if named == key.hex():
        return Finding("run key", "ok", "this hotkey speaks for the run")
    who = next((n for n in roster.neurons if n.public_key.hex() == named), None)
    by = f"uid {who.uid}" if who is not None else f"a hotkey that is not registered ({named[:16]}...)"
    told_ = f"the manifest names {by} as the run's key: what this hotkey announces nobody believes"
    return Finding(
        "run key", "fail", told_, "start the owner with that hotkey (--wallet.hotkey), or make a run of its own"
    )


def access(me: Neuron, manifest: RunManifest) -> Finding:
    """Of a miner: is it among those that the run lists?"""
    if (why := not_listed(me, manifest)) is not None:
        told_, _, fix = why.partition(": ")
        return Finding("may mine", "fail", told_, fix)
    listed = len(manifest.access.hotkeys) + len(manifest.access.coldkeys)
    return Finding("may mine", "ok", f"the run lists {listed} keys, this one is among them" if listed else "everybody")


def subnet_findings(role: Role, config: NodeConfig, facts: SubnetFacts) -> list[Finding]:
    found: list[Finding] = []
    if facts.pays.startswith("it pays NOBODY"):
        fix = f"only the subnet's owner can mend it: {start_command(config)} begins it, registration is a setting of it"
        found.append(Finding("subnet pays", "warn", facts.pays, fix))
    else:
        found.append(Finding("subnet pays", "ok", facts.pays))
    if role is Role.OWNER:
        epochs = facts.reveal_epochs or 0
        sealed = {None: "not told by this chain", False: "off"}.get(
            facts.commit_reveal, f"on, shown {epochs} epochs later"
        )
        opened = {None: "not told", True: "open", False: "closed"}[facts.registration_open]
        told_ = f"registration {opened}, commit-reveal {sealed}, owner's hotkey {facts.owner_hotkey}"
        found.append(Finding("subnet settings", "ok", told_))
    return found


def fits(manifest: RunManifest, facts: SubnetFacts) -> Finding:
    try:
        check_subnet(manifest, facts)
    except ConfigError as error:
        fix = "the subnet's owner sets it there (btcli sudo set), or the run is made anew with other timing"
        return Finding("run fits subnet", "warn", str(error), fix)
    return Finding("run fits subnet", "ok", f"{manifest.max_uids} uids, rounds of {manifest.timing.length} blocks")
