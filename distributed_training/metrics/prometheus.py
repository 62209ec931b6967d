"""A node's events as Prometheus metrics, served by prometheus_client at http://HOST:PORT/metrics.

Every name begins with dt_. Labels are few and never a peer's words: uids of the subnet, and words of closed sets. What
was not measured yet is NaN, never 0. docs/metrics.md says how to scrape, plot and alert.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import prometheus_client as prom

from distributed_training import __version__
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role

FLAG = "--metrics.prometheus"
AUDITS = ("pass", "soft", "fail", "none")
FAULTS = (
    "audit", "chain", "checkpoint", "commit", "data", "device", "disk", "evaluation", "feedback", "hotkey", "map",
    "memory", "metrics", "probe", "round", "runtime", "shared", "state", "unreachable", "weights", "worker", "other",
)  # fmt: skip
OUTCOMES = ("counted", "backed_up", "lost")
PEERS = (*(role.name.lower() for role in Role), "stranger")
PHASES = ("train", "commit", "average", "map", "settle", "audit")
VERDICTS = ("all well", "the run", "the chain", "not known")
# Name -> the event.field whose number it takes, if it does; what it says; its label, and that one's words if few.
GAUGES: Mapping[str, tuple[Any, ...]] = {
    "dt_round": ("", "Round that this node is in."),
    "dt_phase": ("", "1: the part of the round that this node is in.", "phase", PHASES),
    "dt_train_step": ("step.step", "Inner step of the round that was done last, from 0."),
    "dt_train_loss": ("step.loss", "Mean training loss of the last inner step, nats per token."),
    "dt_train_tokens_per_second": ("step.tokens_per_s", "Training speed at the last inner step."),
    "dt_heldout_loss": ("evaluation.heldout_loss", "Held-out loss of the newest state, nats per token."),
    "dt_sync_ratio": ("sync.share", "Share of the run's state that a joining node has fetched, 0 to 1."),
    "dt_round_length_blocks": ("", "Blocks of a round."),
    "dt_round_settled_end_block": ("", "Block in which the newest settled round, at first the one before, ended."),
    "dt_round_miners": ("", "Miners whose work counts in the newest settled round."),
    "dt_round_tokens": ("", "Tokens of their work, as far as this node knows it."),
    "dt_round_credit_ratio": ("", "What this uid's work counts for, 0 to 1: inclusion, its worst third forgiven."),
    "dt_round_phase_seconds": ("", "What a part of the newest settled round took.", "phase", None),
    "dt_rounds_since_included": ("", "Applied rounds since this miner's work was in one."),
    "dt_uid_score_ratio": ("", "Terms of a validator's score of each uid, 0 to 1.", "uid", None, "term"),
    "dt_uid_weight_ratio": ("", "Share of the newest weights.", "uid", None),
    "dt_weights_block": ("weights.block", "Block of a validator's newest weights; of its start before the first."),
    "dt_chain_head_block": ("chain.block", "Newest block seen, looked at every 10 blocks."),
    "dt_chain_finalized_block": ("chain.finalized", "Newest final block seen."),
    "dt_chain_head_age_seconds": ("verdict.head_age_s", "Age of the newest block, asked for every 100 blocks."),
    "dt_chain_seen_timestamp_seconds": ("", "When this node last saw a new block."),
    "dt_run_verdict": ("", "1: is it the run or the chain?", "word", VERDICTS),
    "dt_standing_immune_blocks": ("standing.immune_blocks", "Blocks left of this uid's immunity."),
    "dt_standing_rank": ("standing.rank", "Rank of this uid by emission, 1 is the most."),
    "dt_standing_prunable_rank": ("standing.prunable_rank", "1: replaced next, as if this uid's immunity were over."),
    "dt_standing_collateral_alpha": ("standing.collateral", "Alpha that is locked as collateral of this uid."),
    "dt_line_up_bytes_per_second": ("round.up_bytes_per_s", "At which the line sent while busy."),
    "dt_line_down_bytes_per_second": ("round.down_bytes_per_s", "At which the line received while busy."),
    "dt_subnet_uids": ("standing.of", "Uids on the subnet."),
    "dt_subnet_prunable_uids": ("standing.prunable", "Uids that may be replaced now."),
    "dt_subnet_free_places": ("standing.free_places", "Free places; while there are any, no uid is replaced."),
    "dt_subnet_price_tao": ("standing.price_tao", "Price of a registration now, TAO."),
}
COUNTERS: Mapping[str, tuple[Any, ...]] = {
    "dt_events_total": ("", "Events that this node told."),
    "dt_train_steps_total": ("train.steps", "Inner steps done."),
    "dt_train_tokens_total": ("train.tokens", "Tokens trained on."),
    "dt_train_seconds_total": ("train.seconds", "Time of training phases."),
    "dt_train_stall_seconds_total": ("train.stall_s", "Time that training waited for pages."),
    "dt_train_ahead_lost_steps_total": ("ahead.steps_lost", "Steps that were begun ahead of a round, for nothing."),
    "dt_rounds_total": ("", "Settled rounds.", "result", ("applied", "discarded")),
    "dt_slices_total": ("", "Slices of settled rounds.", "outcome", OUTCOMES),
    "dt_peer_sent_bytes_total": ("", "Payload sent in settled rounds, by kind of peer.", "peer", PEERS),
    "dt_peer_received_bytes_total": ("", "Payload received likewise.", "peer", PEERS),
    "dt_audits_total": ("", "A validator's looks at a miner's round.", "verdict", AUDITS),
    "dt_weights_sets_total": ("", "Times that weights were set."),
    "dt_checkpoints_total": ("", "Checkpoints that were published."),
    "dt_faults_total": ("", "This node's own trouble, by kind.", "what", FAULTS),
}
# (event, field) -> the gauge that takes its number, or the counter it is added to.
FIELDS = {tuple(what[0].split(".")): name for name, what in {**GAUGES, **COUNTERS}.items() if what[0]}


def _made(
    kind: Any, name: str, text: str, label: str = "", words: Sequence[str] | None = None, *more: str, to: Any
) -> Any:
    """A family. Its closed set of words is there from the start, so that the first event of one is an increase."""
    made = kind(name, text, (label, *more) if label else (), registry=to)
    children = [made.labels(word) for word in words or ()] if label else [made]
    if kind is prom.Gauge:
        for child in children:
            child.set(math.nan)
    return made


def _serve(address: str, registry: prom.CollectorRegistry) -> Any:
    host, _, port = address.rpartition(":")
    try:
        return prom.start_http_server(int(port), host, registry)[0]
    except OSError as error:
        why = f"cannot listen there ({error.strerror})"
        raise ConfigError(f"{FLAG} {address}: {why}; give a free port of an address that this machine has") from None


class PrometheusSink:
    """See metrics.base.Sink. Raises ConfigError where it cannot listen. folder: the node's, whose disk is watched."""

    def __init__(self, address: str, manifest: RunManifest, *, role: str, uid: int, hotkey: str, folder: Path) -> None:
        self._manifest, self._role, self._uid = manifest, role, uid
        self._head, self._without = -1, 0
        self.registry = prom.CollectorRegistry()
        prom.disable_created_metrics()  # a second series of every counter, which nobody asks for
        prom.ProcessCollector(registry=self.registry)
        kinds = ((prom.Gauge, GAUGES), (prom.Counter, COUNTERS))
        made = ((n, _made(kind, n, *what[1:], to=self.registry)) for kind, them in kinds for n, what in them.items())
        self._metrics = dict(made)
        disk = prom.Gauge("dt_disk_free_bytes", "Free on the disk of the node's folder.", registry=self.registry)
        disk.set_function(lambda: shutil.disk_usage(folder).free)
        self._info = prom.Info("dt_node", "Which node of which run this is.", registry=self.registry)
        self._who = {
            "run": manifest.sha256[:16], "netuid": str(manifest.netuid), "role": role, "uid": str(uid),
            "hotkey": hotkey, "version": __version__,
        }  # fmt: skip
        self._info.info(self._who)
        self._set("dt_round_length_blocks", manifest.timing.length)
        self._server = _serve(address, self.registry)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write(self, event: Mapping[str, Any]) -> None:
        """Events of other kinds, and fields, are passed by: there is nothing to be said of them here."""
        self._add("dt_events_total", 1)
        name = event["event"]
        for field, value in event.items():
            metric = FIELDS.get((name, field))
            if metric is not None:
                (self._add if metric in COUNTERS else self._set)(metric, value)
        handle = getattr(self, f"_on_{name}", None)
        if handle is not None:
            handle(event)

    def _set(self, name: str, value: float | None, *labels: object) -> None:
        metric = self._metrics[name]
        (metric.labels(*labels) if labels else metric).set(math.nan if value is None else value)

    def _add(self, name: str, value: float | None, *labels: object) -> None:
        metric = self._metrics[name]
        (metric.labels(*labels) if labels else metric).inc(max(0, value or 0))

    def _is(self, name: str, word: str) -> None:
        """One word of a closed set."""
        for known in GAUGES[name][3]:
            self._set(name, known == word, known)

    def _on_ready(self, event: Mapping[str, Any]) -> None:
        self._set("dt_round_settled_end_block", self._manifest.round(event["start_round"]).start_block)
        if self._role == "validator":
            self._set("dt_weights_block", event["block"])

    def _on_phase(self, event: Mapping[str, Any]) -> None:
        if event["phase"] != "audit":  # goes on in the next round
            self._set("dt_round", event["round"])
        self._is("dt_phase", event["phase"])

    def _on_round(self, event: Mapping[str, Any]) -> None:
        applied, credit = event["applied"], event["credit"]
        self._add("dt_rounds_total", 1, "applied" if applied else "discarded")
        self._set("dt_round_settled_end_block", self._manifest.round(event["round"]).end_block)
        self._set("dt_round_miners", len(event["included"]))
        self._set("dt_round_tokens", sum(event["tokens"].values()) if event["tokens"] else None)
        for phase, seconds in event["seconds"].items():
            self._set("dt_round_phase_seconds", seconds, phase)
        backed_up, counted = len(event["backed_up"]), len(event["counted"])
        for outcome, number in zip(
            OUTCOMES, (counted - backed_up, backed_up, event["num_slices"] - counted), strict=True
        ):
            self._add("dt_slices_total", number, outcome)
        for peer in PEERS:
            self._add("dt_peer_sent_bytes_total", event["sent_to"].get(peer, 0), peer)
            self._add("dt_peer_received_bytes_total", event["received_from"].get(peer, 0), peer)
        if self._role == "miner" and applied:
            self._set("dt_round_credit_ratio", credit.get(str(self._uid), 0.0))
            self._without = 0 if self._uid in event["included"] else self._without + 1
            self._set("dt_rounds_since_included", self._without)

    def _on_audit(self, event: Mapping[str, Any]) -> None:
        self._add("dt_audits_total", 1, event["verdict"] if event["verdict"] in AUDITS else "none")

    def _on_scores(self, event: Mapping[str, Any]) -> None:
        self._metrics["dt_uid_score_ratio"].clear()  # of uids that are gone nothing is left
        for uid, card in event["cards"].items():
            for term in ("S", "G", "B", "I", "weight"):
                self._set("dt_uid_score_ratio", card[term], uid, term)

    def _on_weights(self, event: Mapping[str, Any]) -> None:
        self._add("dt_weights_sets_total", 1)
        self._metrics["dt_uid_weight_ratio"].clear()
        for uid, share in event["weights"].items():
            self._set("dt_uid_weight_ratio", share, uid)

    def _on_checkpoint(self, event: Mapping[str, Any]) -> None:
        self._add("dt_checkpoints_total", 1)

    def _on_chain(self, event: Mapping[str, Any]) -> None:
        if event["block"] > self._head:
            self._head = event["block"]
            self._set("dt_chain_seen_timestamp_seconds", event["time"])

    def _on_verdict(self, event: Mapping[str, Any]) -> None:
        self._is("dt_run_verdict", event["word"])
        self._info.info({**self._who, "spec_version": str(event["spec_version"])})

    def _on_fault(self, event: Mapping[str, Any]) -> None:
        self._add("dt_faults_total", 1, event["what"] if event["what"] in FAULTS else "other")
