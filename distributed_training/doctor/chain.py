"""What the chain is asked: does each endpoint answer, is it at the newest block, what does it say of this hotkey."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_training.addresses import FILE
from distributed_training.chain.base import Head
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.doctor.base import Finding, Needed, Unmet
from distributed_training.doctor.hub import web_clock_s
from distributed_training.doctor.standing import RUNS
from distributed_training.errors import ChainFault, ConfigError, LocalFault, said
from distributed_training.operator.safety import FINAL_BLOCKS, LATE_BLOCKS, LEAST_LATE_S
from distributed_training.protocol.types import Roster
from distributed_training.settings.config import NodeConfig
from distributed_training.stillness import clocks

if TYPE_CHECKING:
    from distributed_training.chain.client import BittensorChain
    from distributed_training.chain.subnet import SubnetFacts
    from distributed_training.doctor.subject import Subject

    Sdk = tuple[type[BittensorChain], Callable[[Path], Any]]  # the client, and what opens a local chain

ENDPOINT_S = 8.0  # the first connection brings the runtime's description, a megabyte
AHEAD_S = 5.0  # a block of the future: the clocks of those who make blocks differ by less
MOVES_S = 6.0  # a chain whose newest block is old is watched for so long
READ_S = 8.0
CLOCK = "clock by the chain"
OTHER_NODE = (
    "name a node that answers with --subtensor.chain_endpoint wss://HOST:PORT, and others for when it breaks with "
    "--subtensor.fallback"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one endpoint said. `fault`: why it said nothing; `wrong`: what the person who asks has to put right."""

    endpoint: str
    chain: BittensorChain
    head: Head
    facts: SubnetFacts | None = None
    asked_s: float = 0.0  # this machine's clock when it answered, Unix
    fault: str = ""
    wrong: str = ""

    @property
    def age_s(self) -> float | None:
        """Of its newest block by this machine's clock; None: that block has no time."""
        stamp = None if self.facts is None else self.facts.timestamp_s
        return None if stamp is None else self.asked_s - stamp


@dataclass(frozen=True, slots=True)
class Subnet:
    """The chain by the first endpoint that answers."""

    chain: BittensorChain
    head: Head
    facts: SubnetFacts
    roster: Roster


def endpoints_of(config: NodeConfig) -> tuple[str, ...]:
    chain = config.subtensor
    if config.local_chain is not None:
        return (f"{FILE}{config.local_chain}",)
    return (chain.chain_endpoint or chain.network, *chain.fallback)


async def ask_all(sdk: Needed[Sdk], config: NodeConfig, scratch: Path, stack: AsyncExitStack) -> list[Seen]:
    """Every endpoint, at the same time. Raises ConfigError for a network's name that nobody knows."""
    client, substrate = await sdk.made()
    signer = LocalKey(derive_keypair(0, "reader"))  # reads need no key; the client wants one
    cache = config.chain_cache if config.chain_cache.is_dir() else scratch / "chain"
    cache.mkdir(parents=True, exist_ok=True)
    seen: list[Awaitable[Seen]] = []
    for endpoint in endpoints_of(config):
        local = config.local_chain
        chain = client.over(
            netuid=config.netuid,
            network=endpoint,
            endpoint=None,
            signer=signer,
            cache_dir=cache,
            substrate=None if local is None else substrate(local),
        )
        stack.push_async_callback(chain.close)
        seen.append(_ask(endpoint, chain, config.netuid))
    return await asyncio.gather(*seen)


def load_sdk() -> Sdk:
    """Takes a second or two."""
    from distributed_training.chain.client import BittensorChain
    from distributed_training.chain.local.substrate import local_substrate

    return BittensorChain, local_substrate


async def _ask(endpoint: str, chain: BittensorChain, netuid: int) -> Seen:
    from distributed_training.chain.subnet import subnet_facts

    try:
        async with asyncio.timeout(ENDPOINT_S):
            head = await chain.head()
            facts = await chain.ask(lambda client: subnet_facts(client, netuid), ENDPOINT_S)
            return Seen(endpoint, chain, head, facts, clocks()[0])
    except TimeoutError:
        return Seen(endpoint, chain, Head(0, 0), fault=f"no answer within {ENDPOINT_S:g} s")
    except ConfigError as error:
        return Seen(endpoint, chain, Head(0, 0), wrong=said(error))
    except LocalFault as error:
        return Seen(endpoint, chain, Head(0, 0), fault=said(error).removeprefix(f"{endpoint}: "))


async def subnet_of(asked: Sequence[Seen]) -> Subnet:
    """Raises ChainFault, ConfigError."""
    best = next((seen for seen in asked if seen.facts is not None), None)
    if best is None or best.facts is None:
        wrong = next((seen.wrong for seen in asked if seen.wrong), "")
        raise ConfigError(wrong) if wrong else ChainFault(asked[0].fault)
    async with asyncio.timeout(READ_S):
        return Subnet(best.chain, best.head, best.facts, await best.chain.roster(best.head.number))


# --- checks -----------------------------------------------------------------------------------------


async def check_chain(subject: Subject) -> list[Finding]:
    try:
        asked = await subject.endpoints.made()
    except (ConfigError, LocalFault) as error:
        return [Finding("chain", "fail", said(error), OTHER_NODE)]
    newest = _newest(asked)
    found = [_endpoint(seen, number, newest) for number, seen in enumerate(asked)]
    first = next((seen for seen in asked if seen.facts is not None), None)
    if first is None or first.facts is None:
        return found
    ahead = first.head.number - first.head.finalized
    if ahead > FINAL_BLOCKS:
        told = f"the newest {ahead} blocks are not final, up to {FINAL_BLOCKS} are usual: rounds wait for final blocks"
        wait = "nothing here mends it: wait until the chain's validators do, or ask another node of it (--subtensor.*)"
        found.append(Finding("finality", "fail", told, wait))
    else:
        found.append(Finding("finality", "ok", f"block {first.head.finalized} is final, {ahead} behind the newest"))
    if subject.config.local_chain is not None:
        return found
    if first.facts.untested:
        newer = (
            "take a newer release (git fetch --tags, git log --oneline HEAD..origin/HEAD); weights are what to watch"
        )
        found.append(Finding("runtime", "warn", first.facts.untested, newer))
    else:
        found.append(Finding("runtime", "ok", f"version {first.facts.spec_version}, one that this release knows"))
    return found


def _endpoint(seen: Seen, number: int, newest: Seen) -> Finding:
    name = "chain" if number == 0 else f"chain fallback {number}"
    if seen.wrong:
        fix = f"give the subnet that you mean with --netuid; {RUNS} lists those that have runs"
        return Finding(name, "fail", seen.wrong.partition("; ")[0], fix)
    if seen.facts is None:
        told = f"{seen.endpoint}: {seen.fault}"
        return Finding(name, "fail" if newest.facts is None else "warn", told, OTHER_NODE)
    told = f"{seen.endpoint} answers, at block {seen.head.number}, subnet {seen.facts.netuid} ({seen.facts.name})"
    if seen.head.number + LATE_BLOCKS < newest.head.number:
        told += f"; it lags: {newest.endpoint} is at {newest.head.number}"
        return Finding(name, "warn" if number else "fail", told, f"--subtensor.chain_endpoint {newest.endpoint}")
    return Finding(name, "ok", told)


def _newest(asked: Sequence[Seen]) -> Seen:
    return max(asked, key=lambda seen: (seen.facts is not None, seen.head.number))


async def check_clock(subject: Subject) -> list[Finding]:
    asked = [seen for seen in await subject.endpoints.get() if seen.facts is not None]
    first = next(iter(asked), None)
    if first is None or first.facts is None:
        raise Unmet("no chain answers that could say what time it is")
    age_s, block_s = first.age_s, first.facts.block_s
    if age_s is None:
        return [Finding(CLOCK, "skipped", "the chain's newest block has no time yet")]
    if -AHEAD_S <= age_s <= late_s(block_s):
        told = f"the newest block is {max(0.0, age_s):.1f} s old by this machine's clock, one comes every {block_s:g} s"
        return [Finding(CLOCK, "ok", told)]
    newest = _newest(asked)
    if newest.head.number > first.head.number + LATE_BLOCKS and newest.age_s is not None and newest.age_s < age_s:
        told = (
            f"{first.endpoint} stands at block {first.head.number}, {age_s:.0f} s old; {newest.endpoint} is at "
            f"{newest.head.number}: the first node lags, this machine's clock is right"
        )
        return [Finding(CLOCK, "fail", told, f"ask that one first: --subtensor.chain_endpoint {newest.endpoint}")]
    web_s, moved = await asyncio.gather(web_clock_s(), _moves(first, block_s))
    return [judged(age_s, block_s, web_s, moved)]


def late_s(block_s: float) -> float:
    return max(LEAST_LATE_S, LATE_BLOCKS * block_s)


async def _moves(seen: Seen, block_s: float) -> int:
    """Blocks that come while it is watched."""
    await asyncio.sleep(min(MOVES_S, 2 * block_s))
    try:
        async with asyncio.timeout(1.0):
            return (await seen.chain.head()).number - seen.head.number
    except (LocalFault, TimeoutError):
        return 0


def judged(age_s: float, block_s: float, web_s: float | None, moved: int) -> Finding:
    """Of a newest block that is old, or of the future. web_s: how far this machine's clock is ahead of another one's in
    the Internet, None if nobody was reached; moved: blocks that came while it was watched. Pure."""
    late = late_s(block_s)
    off = "" if web_s is None else f"; by the clock of a web server this machine is {_ahead(web_s)}"
    if age_s < 0:
        told = f"this machine's clock is {-age_s:.0f} s slow: the chain's newest block is of the future{off}"
        return Finding(CLOCK, "fail" if -age_s > late or web_s is not None else "warn", told, set_clock())
    old = f"the newest block is {age_s:.0f} s old by this machine's clock, one is due every {block_s:g} s"
    come = f"{moved} came while it was watched" if moved else "none came while it was watched"
    if web_s is not None and abs(web_s) > late / 2:
        return Finding(CLOCK, "fail", f"{old}{off}: this machine's clock is wrong", set_clock())
    if web_s is not None:
        told = f"{old} and {come}{off}: the clock is right; the chain stands still, or this node of it lags"
        return Finding(CLOCK, "fail", told, f"compare with another node of the chain: {OTHER_NODE}")
    told = f"{old} and {come}: this machine's clock is {age_s:.0f} s fast, or the chain stands still or its node lags"
    other = "if the clock is right, ask another node of the chain (--subtensor.chain_endpoint, --subtensor.fallback)"
    return Finding(CLOCK, "fail", told, f"{set_clock()}; {other}")


def _ahead(seconds: float) -> str:
    return "right" if abs(seconds) < AHEAD_S else f"{abs(seconds):.0f} s {'fast' if seconds > 0 else 'slow'}"


def set_clock(platform: str = sys.platform) -> str:
    """The command that sets this machine's clock, and keeps it."""
    if platform == "darwin":
        return "sudo sntp -sS time.apple.com (and set the time automatically in System Settings)"
    if "microsoft" in os.uname().release.lower():
        return "sudo hwclock -s (WSL; on Windows as administrator: w32tm /resync)"
    return "sudo timedatectl set-ntp true (without systemd: install chrony, then sudo chronyc makestep)"
