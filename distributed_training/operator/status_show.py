"""A status in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from distributed_training.doctor.base import Finding
from distributed_training.metrics.base import plain
from distributed_training.ongoing import duration
from distributed_training.operator.history import Row
from distributed_training.operator.node_seen import NodeSeen
from distributed_training.operator.standing import costs, told
from distributed_training.operator.status import ALL_WELL, THE_CHAIN, THE_RUN, YOU, Asked
from distributed_training.protocol.rules.voters import voters

SHOWN_ROUNDS = 5
LINE = "  {:<9} {}".format
ROW = "  {:<14} {:>4}  {:<9}  {:<5}  {:<28} {:<22} {:>7} {:>7}  {}".format


@dataclass(frozen=True, slots=True)
class Status:
    word: str
    asked: Asked | None
    trouble: str  # why the chain, or part of what was asked, could not be had
    nodes: tuple[tuple[NodeSeen, tuple[Finding, ...]], ...]


def in_words(status: Status) -> Iterator[str]:
    yield status.word if status.word == ALL_WELL else f"{status.word}: {_why(status)}"
    yield ""
    yield from (
        [f"chain\n{LINE('answer', status.trouble)}"] if status.asked is None else _public(status.asked, status.trouble)
    )
    if len(status.nodes) > 1:
        yield "nodes"
        yield ROW("name", "uid", "role", "", "round", f"last {SHOWN_ROUNDS} rounds", "weight", "pay", "").rstrip()
        yield from (_row(status.asked, node, found) for node, found in status.nodes)
        return
    for node, found in status.nodes:
        yield from _node(status.asked, node, found)
        for f in sorted((f for f in found if f.state in ("fail", "warn")), key=lambda f: f.state):
            yield f"{'TO MEND' if f.state == 'fail' else 'to look at'}: {f.found}\n  {f.fix}"


def _why(status: Status) -> str:
    if status.word == YOU:
        return next(f"{node.name}: {f.found}" for node, found in status.nodes for f in found if f.state == "fail")
    reasons = () if status.asked is None else status.asked.verdict.reasons
    first = reasons if status.word in (THE_CHAIN, THE_RUN) else ()
    return next(filter(None, (*first, status.trouble, *reasons)))


def _public(asked: Asked, trouble: str) -> Iterator[str]:
    """What anybody can know."""
    facts, manifest, run, said = asked.facts, asked.manifest, asked.run, asked.verdict
    age = "" if said.head_age_s is None else f", {max(0.0, said.head_age_s):.0f} s old"
    spec = facts.untested or f"its runtime {facts.spec_version} is no newer than what this release was tested with"
    yield f"chain\n{LINE('block', f'{facts.block}{age}; {spec}')}"
    yield LINE("subnet", f"{facts.netuid} ({facts.name}): {facts.pays}; a place costs {costs(facts)}")
    name = manifest.sha256[:16] if manifest else run.tag.hex() if run else "unknown: nobody announces one or is in one"
    yield f"run {name}{f' ({manifest.name})' if manifest else ''}"
    if run is not None:
        last = max((n.commitment_block or 0 for n, _ in run.members), default=0)
        ago = duration((facts.block - last) * facts.block_s)
        who = f"{run.miners} miners, {run.validators} validators with {run.stake:,.0f} alpha"
        yield LINE("members", f"{who}; its last word on chain was {ago} ago")
    if manifest is not None:
        whole, needs = sum(n.stake for n in asked.roster.neurons if n.may_validate), manifest.average
        share = sum(n.stake for n in voters(manifest, asked.roster)) / whole if whole else 0.0
        need = f"{needs.min_voter_share:.0%} needed; {needs.min_map_share:.0%} of it has to send slice maps"
        yield LINE("stake", f"validators of the run hold {share:.0%} of what may validate, {need}")
    yield from (LINE("rounds" if reason else "", reason) for reason in (*said.reasons, trouble) if reason)


def _node(asked: Asked | None, node: NodeSeen, found: Sequence[Finding]) -> Iterator[str]:
    seen = {f.name: f.found for f in found}
    who = [node.role, None if node.uid is None else f"uid {node.uid}", node.hotkey]
    yield f"you: {node.name} ({', '.join(filter(None, who)) or 'it has said nothing yet'})"
    yield from (LINE(name, seen[name]) for name in ("folder", "process", "phase") if name in seen)
    if node.rounds:
        yield LINE("rounds", ", ".join(_settled(r) for r in node.rounds[-SHOWN_ROUNDS:]))
    me = None if asked is None else asked.me(node)
    if asked is not None and me is not None:
        weight = asked.weight(me.uid)
        if node.role == "miner":
            share = "not read" if weight is None else f"{weight:.2%}"
            yield LINE("pay", f"{me.incentive:.2%} of the incentive; its share of the weights on chain: {share}")
        if node.role == "validator":
            ago = duration((asked.facts.block - me.last_update) * asked.facts.block_s)
            yield LINE("pay", f"{me.dividends:.2%} of the dividends; weights set in block {me.last_update}, {ago} ago")
        if (place := asked.places.get(me.uid)) is not None:
            locked = "" if place.collateral is None else f"; collateral: {place.collateral:g} alpha"
            yield LINE("place", told(me.uid, place, asked.facts) + locked)
    if node.audits:
        said = (f"{a['round']} {a['verdict']} by {a['node']}" for a in node.audits[:SHOWN_ROUNDS])
        yield LINE("audits", ", ".join(said))
    yield LINE("fault", seen.get("fault", "none in what is kept of its events"))


def _settled(r: Row) -> str:
    work = "" if r["tokens"] is None else f" ({r['steps']} steps, {r['tokens']:,} tokens)"
    how = "discarded" if not r["applied"] else "applied" if r["included"] is None else "in" if r["included"] else "OUT"
    return f"{r['round']} {how}{work}"


def _row(asked: Asked | None, node: NodeSeen, found: Sequence[Finding]) -> str:
    me = None if asked is None else asked.me(node)
    weight = None if asked is None or me is None or node.role != "miner" else asked.weight(me.uid)
    pay = None if me is None or node.role == "owner" else me.dividends if node.role == "validator" else me.incentive
    last = node.rounds[-SHOWN_ROUNDS:]
    out = sum(r["included"] is False for r in last)
    rounds = f"{sum(r['applied'] for r in last)} applied" + (f", OUT of {out}" if out else "")
    wrong = next((f.found for f in found if f.state == "fail"), "")
    phase = next((f.found for f in found if f.name == "phase" and f.state == "ok"), "")
    share = ("-" if x is None else f"{x:.1%}" for x in (weight, pay))
    is_ = "runs" if node.alive else "ended" if node.stopped else "dead" if node.process else "new"
    uid, role = "-" if node.uid is None else node.uid, node.role or "-"
    return ROW(node.name, uid, role, is_, phase.removeprefix("round "), rounds if last else "-", *share, wrong).rstrip()


def document(status: Status) -> dict[str, Any]:
    """For a program: the verdict and all that it was made of. Null: not known."""
    asked, nodes = status.asked, list[Any]()
    for node, found in status.nodes:
        me = None if asked is None else asked.me(node)
        mine: dict[str, Any] = {"chain": None}
        if asked is not None and me is not None:
            place = asked.places.get(me.uid)
            mine = {"chain": asdict(replace(me, commitment=None)) | {"weight": asked.weight(me.uid)},
                    "standing": None if place is None else asdict(place)}  # fmt: skip
        nodes.append(asdict(node) | {"findings": [asdict(f) for f in found]} | mine)
    doc: dict[str, Any] = {
        "verdict": status.word,
        "trouble": status.trouble,
        "chain": None,
        "run": None,
        "nodes": nodes,
    }
    if asked is not None:
        manifest, run = asked.manifest, asked.run
        doc["chain"] = asdict(replace(asked.facts, collateral=None)) | asdict(asked.verdict)
        doc["chain"]["untested"] = asked.facts.untested
        doc["run"] = {
            "sha256": None if manifest is None else manifest.sha256,
            "tag": None if run is None else run.tag,
            "miners": None if run is None else run.miners,
            "validators": None if run is None else run.validators,
            "min_map_share": None if manifest is None else manifest.average.min_map_share,
            "min_voter_share": None if manifest is None else manifest.average.min_voter_share,
            "rounds": [asdict(r) for r in asked.rounds],
        }
    return plain(doc)
