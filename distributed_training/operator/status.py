"""Is all well; and if not, is it the chain, the run or you? Pure: from what a node's folder and the chain say.

In this order: what is wrong with the chain explains what is wrong with the run, and that what is wrong with a node.
Only where the run lacks nothing but the stake of one's own validator it is the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING

from distributed_training.doctor.base import Finding
from distributed_training.metrics.events import Standing, Verdict
from distributed_training.ongoing import duration
from distributed_training.operator.node_seen import NodeSeen
from distributed_training.operator.safety import Rounds
from distributed_training.operator.standing import word as safe_word
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.voters import validates
from distributed_training.protocol.types import Neuron, Roster

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts  # alone: it loads bittensor
    from distributed_training.finding.choice import SeenRun

ALL_WELL, YOU, THE_RUN, THE_CHAIN, NOT_KNOWN = "all well", "you", "the run", "the chain", "not known"
OUT_ROUNDS = 3  # applied ones, one after the other, without this miner's work
BEHIND_ROUNDS = 2  # that the chain has decided and the node has not settled
STUCK_ROUNDS, LEAST_STUCK_S = 1.5, 30.0  # of a round's time in one phase, and so much more
SILENT_S = 1800.0  # before its first phase: a state that is fetched tells of itself all the time
LATE_TIMES = 3  # the time between two weight sets of a validator
HARMLESS = ("chain", "runtime", "metrics", "evaluation", "checkpoint")  # faults that by themselves cost no pay
LOG = "its log says why"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the chain said, as far as it came. manifest None: it could not be had."""

    facts: SubnetFacts
    roster: Roster
    verdict: Verdict
    places: Mapping[int, Standing]
    run: SeenRun | None = None
    manifest: RunManifest | None = None
    rounds: Rounds = ()
    weights: Mapping[int, Mapping[int, float]] | None = None  # validator's uid -> uid -> share

    def me(self, node: NodeSeen) -> Neuron | None:
        mine = (
            n for n in self.roster.neurons if (n.uid if node.hotkey is None else n.hotkey) in (node.uid, node.hotkey)
        )
        return next(mine, None)

    def weight(self, uid: int) -> float | None:
        """Mean share of the weights on chain, by the validators' stake. None: not read."""
        if self.weights is None:
            return None
        stakes = {n.uid: n.stake for n in self.roster.neurons}
        rows = [(stakes.get(by, 0.0), row.get(uid, 0.0)) for by, row in self.weights.items() if row]
        whole = fsum(stake for stake, _ in rows)
        return fsum(stake * share for stake, share in rows) / whole if whole else 0.0


@dataclass(frozen=True, slots=True)
class Mend:
    """Commands for this node."""

    register: str
    doctor: str


def findings(node: NodeSeen, asked: Asked | None, mend: Mend, now_s: float) -> list[Finding]:
    """About one node, without what could not be asked. What is `fail` makes it "you"."""
    mends = "name the node's own folder, as its user; move a damaged file away while the node is stopped"
    found = [Finding("folder", "fail", node.problem, mends)] if node.problem else []
    found.append(running(node, now_s))
    if node.alive:
        found.append(moving(node, asked, now_s))
    me = None if asked is None else asked.me(node)
    if asked is not None and node.uid is not None:
        found += _registered(node, asked, me, mend)
    if node.role == "miner":
        found += _work(node, asked, mend)
    if node.role == "validator" and asked is not None and me is not None:
        found += _weights(node, asked, me, now_s)
    return [*found, *_fault(node, now_s)]


def running(node: NodeSeen, now_s: float) -> Finding:
    if node.process is None:
        return Finding("process", "fail", "no node has run here", "start it")
    if node.alive:
        since = f"{node.process.since:%Y-%m-%d %H:%M}"
        version = f", version {node.version}" if node.version else ""
        return Finding("process", "ok", f"runs as process {node.process.pid} since {since}{version}")
    ago = "" if node.seen_s is None else f" {duration(now_s - node.seen_s)} ago"
    how = f"it ended by itself{ago} ({node.stopped})" if node.stopped else f"it was stopped or killed{ago}"
    return Finding("process", "fail", f"not running: {how}", f"start it again; {LOG}")


def moving(node: NodeSeen, asked: Asked | None, now_s: float) -> Finding:
    """Does it go from phase to phase, and with the run?"""
    if node.phase is None or node.phase_since_s is None:
        since_s = now_s if node.process is None else node.process.since.timestamp()
        quiet_s = now_s - max(since_s, node.seen_s or 0.0)
        share = "" if node.fetched is None else f", {node.fetched:.0%} of the run's state are here"
        text = f"starting for {duration(now_s - since_s)}{share}"
        if quiet_s <= SILENT_S:
            return Finding("phase", "ok", text)
        return Finding("phase", "fail", f"{text}, silent for {duration(quiet_s)}", f"restart it; {LOG}")
    lasts_s, round_s = now_s - node.phase_since_s, 3600.0
    if asked is not None and asked.manifest is not None:
        round_s = asked.manifest.timing.length * asked.facts.block_s
    text = f"round {node.round}, {node.phase} for {duration(lasts_s)}"
    if lasts_s > STUCK_ROUNDS * round_s + LEAST_STUCK_S:
        return Finding("phase", "fail", f"stuck: {text}; a round takes {duration(round_s)}", f"restart it; {LOG}")
    decided = asked.rounds[-1].index if asked is not None and asked.rounds else -1
    settled = node.rounds[-1]["round"] if node.rounds else decided
    if decided - settled >= BEHIND_ROUNDS:
        text += f"; it has settled round {settled}, the run round {decided}"
        return Finding("phase", "fail", f"behind: {text}", f"{LOG}; restart it if it does not catch up")
    return Finding("phase", "ok", text)


def _registered(node: NodeSeen, asked: Asked, me: Neuron | None, mend: Mend) -> Iterator[Finding]:
    if me is None:
        text = f"hotkey {node.hotkey or f'of uid {node.uid}'} is not registered on subnet {asked.facts.netuid}"
        yield Finding("registered", "fail", text, f"register it: {mend.register}")
        return
    if node.role == "validator" and not me.may_validate:
        fix = "its hotkey needs more stake than the last one that has a permit; they change with the epoch"
        yield Finding("permit", "fail", f"no permit to validate, with a stake of {me.stake:,.0f} alpha", fix)
    place = asked.places.get(me.uid)
    if place is not None and (safe := safe_word(place)) != "safe" and node.role != "owner":
        text = f"{safe}: number {place.prunable_rank} of those that are replaced when somebody registers"
        fix = "only more pay than that of others keeps a place: be in every round"
        yield Finding("place", "fail" if safe == "danger" else "warn", text, fix)


def _work(node: NodeSeen, asked: Asked | None, mend: Mend) -> Iterator[Finding]:
    """Is a miner's work in the rounds, and do audits bear it out?"""
    applied = [r for r in node.rounds if r["applied"] and r["round"] >= (node.start_round or 0)][-OUT_ROUNDS:]
    out = [str(r["round"]) for r in applied if not r["included"]]
    if out:
        text = f"its work is not in round{'s' * (len(out) > 1)} {', '.join(out)}, which the run applied"
        yield Finding("rounds", "fail" if len(out) == OUT_ROUNDS else "warn", text, f"{LOG}; then {mend.doctor}")
    lasts = 8 if asked is None or asked.manifest is None else asked.manifest.scoring.penalty_rounds
    newest = max([r["round"] for r in (*node.rounds, *node.audits)], default=0)
    failed = next((a for a in node.audits if a["verdict"] == "fail" and a["round"] > newest - lasts), None)
    if failed is not None:
        text = f"{failed['node']} failed its work of round {failed['round']}: {failed['reason']}"
        yield Finding("audit", "fail", text, f"docs/operating.md says what audits compare; {mend.doctor}")


def _weights(node: NodeSeen, asked: Asked, me: Neuron, now_s: float) -> Iterator[Finding]:
    if asked.manifest is None or not me.may_validate:
        return
    facts, timing = asked.facts, asked.manifest.timing
    due = LATE_TIMES * max(facts.tempo, facts.weights_rate_limit or 0, timing.length)
    late = facts.block - max(me.last_update, me.registered_block, timing.first_block + timing.length)
    if late > due:
        up_s = now_s - node.process.since.timestamp() if node.process is not None and node.alive else now_s
        text = f"it has set no weights for {late:,} blocks ({duration(late * facts.block_s)})"
        fix = f"{LOG}, and its last fault what the chain refused"
        yield Finding("weights", "fail" if up_s > due * facts.block_s else "warn", text, fix)


def _fault(node: NodeSeen, now_s: float) -> Iterator[Finding]:
    fault = node.fault
    if fault is not None:
        at = "" if fault.round is None else f" in round {fault.round}"
        text = f"{fault.what}{at}, {duration(now_s - fault.time_s)} ago"
        if fault.ended_s is not None:
            yield Finding("fault", "ok", f"{text}, over {duration(fault.ended_s - fault.time_s)} later: {fault.detail}")
            return
        lasts = "not over yet" if node.alive else "not over when the node ended"
        state = "warn" if fault.what in HARMLESS or not node.alive else "fail"
        yield Finding("fault", state, f"{text}, {lasts}: {fault.detail}", f"docs/operating.md has '{fault.what}'")


def verdict(asked: Asked | None, nodes: Sequence[tuple[NodeSeen, Sequence[Finding]]]) -> str:
    """The word. asked None: the chain could not be asked."""
    if asked is None:
        return THE_CHAIN if nodes else NOT_KNOWN
    wrong, word = any(f.state == "fail" for _, found in nodes for f in found), asked.verdict.word
    if word == THE_CHAIN or (word == THE_RUN and not (wrong and decide(asked, [node for node, _ in nodes]))):
        return word
    if wrong:
        return YOU
    begins = asked.manifest is not None and asked.facts.block < asked.manifest.round(0).map_block
    settles = any(node.alive and node.rounds and node.rounds[-1]["applied"] for node, _ in nodes)
    return ALL_WELL if word == ALL_WELL or begins or settles else NOT_KNOWN


def decide(asked: Asked, nodes: Sequence[NodeSeen]) -> bool:
    """Can no round be applied without the validators among these nodes?"""
    if asked.manifest is None:
        return False
    average, block = asked.manifest.average, asked.roster.block.number
    ours = {me.uid for node in nodes if node.role == "validator" and (me := asked.me(node)) is not None}
    permits = [n for n in asked.roster.neurons if n.may_validate]
    mine = fsum(n.stake for n in permits if n.uid in ours)
    others = fsum(n.stake for n in permits if n.uid not in ours and validates(n, asked.manifest, block))
    needed = max(average.min_voter_share * fsum(n.stake for n in permits), average.min_map_share * (others + mine))
    return mine > 0 and others < needed
