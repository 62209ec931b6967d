"""What the chain says of a run and of those in it, to a person, within a time: what matters most is asked first."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from distributed_training.addresses import FILE
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.subnet import subnet_facts
from distributed_training.errors import ChainFault, DistributedTrainingError, LocalFault, named, said
from distributed_training.files import write_whole
from distributed_training.finding.choice import seen_runs
from distributed_training.finding.find import Finder
from distributed_training.metrics.events import Verdict
from distributed_training.network.base import Transport
from distributed_training.operator.asking import asked, local_copy
from distributed_training.operator.safety import rounds_seen, verdict
from distributed_training.operator.standing import standings
from distributed_training.operator.status import Asked
from distributed_training.paths import is_missing, typed
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Roster
from distributed_training.settings.arguments import CACHE
from distributed_training.settings.config import RUN_PLACE, NodeConfig
from distributed_training.stillness import clocks

CLOSING_S, GIVING_UP_S = 1.5, 2.0  # of the time, for parting from peers; after it, from a chain
STANDS_S = 60.0  # a local chain without a block


@dataclass(slots=True)
class Answer:
    """As far as it has come."""

    asked: Asked | None = None
    trouble: str = ""
    wrong: DistributedTrainingError | None = None


def ask(config: NodeConfig, manifest: RunManifest | None, wait_s: float) -> tuple[Asked | None, str]:
    """What chain and peers said within `wait_s`, and why not all of it came. Raises ConfigError."""
    answer = Answer()
    # In a thread that nobody waits for: the SDK takes seconds to give up a connection on which nothing comes.
    work = Thread(target=lambda: asyncio.run(_within(config, manifest, answer, wait_s)), name="chain", daemon=True)
    work.start()
    work.join(wait_s + GIVING_UP_S)
    if answer.wrong is not None:
        raise answer.wrong
    return answer.asked, answer.trouble or (_late(config, answer, wait_s) if work.is_alive() else "")


def _late(config: NodeConfig, answer: Answer, wait_s: float) -> str:
    where = config.local_chain or config.subtensor.chain_endpoint or config.subtensor.network
    late = f"no answer from {where}" if answer.asked is None else "not all of what was asked came"
    return f"{late} in {wait_s:g} s (--wait S gives it longer)"


async def _within(config: NodeConfig, manifest: RunManifest | None, answer: Answer, wait_s: float) -> None:
    until = asyncio.get_running_loop().time() + wait_s
    with TemporaryDirectory(prefix="status-") as scratch:
        try:
            async with asyncio.timeout_at(until):
                await _ask(config, manifest, answer, Path(scratch), until)
        except TimeoutError:
            answer.trouble = _late(config, answer, wait_s)
        except (LocalFault, sqlite3.Error, OSError) as error:
            answer.trouble = said(error)
        except DistributedTrainingError as error:
            answer.wrong = error
        except Exception as error:  # the edge: a runtime of tomorrow may say it in other types
            answer.trouble = named(error)


async def _ask(config: NodeConfig, manifest: RunManifest | None, answer: Answer, scratch: Path, until: float) -> None:

    chain = config.subtensor
    endpoint, stands_s = chain.chain_endpoint, 0.0
    if config.local_chain is not None:  # a copy: whoever looks at a local chain closes blocks of it
        endpoint = f"{FILE}{scratch / 'chain.sqlite'}"
        if is_missing(config.local_chain):
            raise ChainFault(f"no local chain is at {config.local_chain}")
        found = await asyncio.to_thread(local_copy, config.local_chain, scratch / "chain.sqlite")
        if found is None:
            raise ChainFault(f"the clock of {config.local_chain} does not run yet: its nodes are starting")
        stands_s = found
    async with asked(chain.network, endpoint, config.netuid, fallback=chain.fallback) as client:
        await _read(config, manifest, client, answer, scratch, until)
    if answer.asked is not None and stands_s > STANDS_S:
        still = f"no process has used {config.local_chain} for {stands_s / 60:.0f} min: it stands still"
        seen = answer.asked.verdict
        told = replace(seen, word="the chain", reasons=(still, *seen.reasons), head_age_s=stands_s)
        answer.asked = replace(answer.asked, verdict=told)


async def _read(
    config: NodeConfig,
    manifest: RunManifest | None,
    client: BittensorChain,
    answer: Answer,
    scratch: Path,
    until: float,
) -> None:
    """What matters most first: the rest may come too late."""

    facts = await client.ask(lambda asked: subnet_facts(asked, config.netuid))
    head, roster = await client.head(), await client.roster(facts.block)
    runs = seen_runs(roster, facts.owner_hotkey)
    age_s = None if facts.timestamp_s is None else clocks()[0] - facts.timestamp_s
    unread = Verdict(facts.block, "not known", ("its rounds were not read",), age_s, facts.spec_version)
    answer.asked = Asked(facts, roster, unread, standings(facts, roster), next(iter(runs), None))
    if manifest is None:
        manifest, answer.trouble = await _found(config, roster, facts.owner_hotkey, scratch, until)
        if manifest is None:
            return
    run = next((run for run in runs if run.tag == manifest.tag), None)
    answer.asked = replace(answer.asked, manifest=manifest, run=run)
    rounds = await rounds_seen(client, manifest, head.finalized)
    judged = verdict(manifest, facts, head, roster, rounds, clocks()[0])
    answer.asked = replace(answer.asked, rounds=rounds, verdict=judged)
    answer.asked = replace(answer.asked, weights=await client.weights(facts.block))


async def _found(
    config: NodeConfig, roster: Roster, subnet_owner: str, scratch: Path, until: float
) -> tuple[RunManifest | None, str]:
    """The manifest of the run that a newcomer would follow, as a newcomer finds it; None, and why not."""

    kept = typed(CACHE) / "status" / str(config.netuid) / RUN_PLACE
    config = config.model_copy(update={"run_dir": kept, "manifest": kept / "manifest.json"})
    opened = AsyncExitStack()

    async def open_transport() -> Transport:
        from distributed_training.network.libp2p import Libp2pTransport  # late: it loads hivemind

        stranger = Libp2pTransport(scratch / "identity.key", port=None, hints=False)
        opened.push_async_callback(stranger.stop)
        await stranger.start()
        return stranger

    finder = Finder(config, roster, subnet_owner, bytes(32), open_transport, lambda manifest: None, scratch)
    try:
        async with asyncio.timeout_at(until - CLOSING_S):
            _, manifest = await finder.choose()
    except TimeoutError:
        late = "nobody gave it in time (--wait S gives them longer, with --manifest FILE nobody is asked)"
        return None, f"without its manifest the run cannot be judged: {late}"
    except DistributedTrainingError as error:
        return None, f"without its manifest the run cannot be judged: {said(error)}"
    finally:
        await opened.aclose()
    with suppress(OSError):
        write_whole(config.in_run(manifest.tag).manifest, manifest.canonical())
    return manifest, ""
