"""What a run was and showed, in sentences: from its numbers, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed_training.localnet.attacks import EVIDENCE, AttackFile
from distributed_training.localnet.judge import adversary_checks
from distributed_training.localnet.judge.checks import PROPORTION_TOLERANCE
from distributed_training.localnet.judge.facts import nobody_judged
from distributed_training.localnet.judge.loss_checks import NEAR, too_short
from distributed_training.localnet.names import called, many, nodes_of

Summary = Mapping[str, Any]
UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def size(summary: Summary) -> str:
    """`gpt2, 859 k parameters`; what an older summary lacks is left out."""
    model = summary.get("model")
    if model is None:
        return f"run {summary['manifest_sha256'][:12]}"
    factor, unit = next(((f, u) for f, u in UNITS if model["num_params"] >= f), (1.0, ""))
    return f"{model['type']}, {model['num_params'] / factor:.3g} {unit} parameters".replace("  ", " ")


def work_done(summary: Summary) -> str:
    """`4 miners, 7 rounds, 286,720 tokens, 6.3 minutes`."""
    applied = [r for r in summary["rounds"] if r["applied"]]
    lost = len(summary["rounds"]) - len(applied)
    tokens = sum(r["tokens"] or 0 for r in applied)
    said = [many(len(nodes_of(summary, "miner")), "miner"), many(len(applied), "round")]
    said[1] += f" ({lost} more discarded)" if lost else ""
    said += [f"{tokens:,} tokens"] if tokens else []
    said += [f"{summary['minutes']:.1f} minutes"] if summary.get("minutes") is not None else []
    return ", ".join(said)


def story_lines(summary: Summary) -> list[str]:
    """A sentence or two each: what was trained and how well, whether all agree, who was paid, what was survived."""
    lines = [learned(summary), agreed(summary), paid(summary), survived(summary)]
    failed = [name for name, ok in summary["checks"].items() if ok is False]
    if failed:
        lines.append(
            f"This run does not show all that it should: {many(len(failed), 'check')} failed ({', '.join(failed)})."
        )
    return [line for line in lines if line]


def learned(summary: Summary) -> str:
    first, final, union = (summary[f"{which}_heldout_loss"] for which in ("initial", "final", "union"))
    said = f"Together: {work_done(summary)} ({size(summary)})."
    if first is None or final is None:
        return f"{said} Its loss on held-out text was not measured."
    way = "fell" if final < first else "did not fall: it went"
    said += f" The loss on text that nobody trained on {way} from {first:.2f} to {final:.2f} nats per token"
    solo = [loss for loss in summary["solo_heldout_loss"].values() if loss is not None]
    beside = [f"{sum(solo) / len(solo):.2f} for a miner alone with its own work (mean)"] if solo else []
    beside += [] if union is None else [f"{union:.2f} for one worker that does all of the work itself"]
    said += f"; {' and '.join(beside)}." if beside else "."
    if union is not None and final <= union * (1 + NEAR):
        said += f" So together they learned as much as one worker with all of their tokens ({near(final, union)})."
    if solo and final >= sum(solo) / len(solo):
        said += f" So together was no better than alone: {too_short(summary) or 'averaging did not pay here'}."
    return said


def near(final: float, union: float) -> str:
    """How far the one is from the other, in words."""
    apart = 100 * (final / union - 1)
    return f"{-apart:.1f} % better" if apart < 0 else f"to within {100 * NEAR:.0f} %"


def agreed(summary: Summary) -> str:
    held, nodes = summary["checks"], many(len(summary["nodes"]) + len(summary["joined"]), "node")
    if not held.get("same_state_root"):
        return f"The nodes did not all hold the same model: {summary['details'].get('same_state_root', 'not checked')}."
    again = ", and a process that talks to nobody computed the same again" if held.get("offline_check") else ""
    return f"All {nodes} held the same model after every round, bit for bit{again}; there is no server between them."


def paid(summary: Summary) -> str:
    if nobody_judged(summary):
        return "Nobody is paid yet: what a miner did in a round is audited and paid during the next one (--rounds 2)."
    held, final = summary["checks"], summary["final"]["incentive"]
    cheats = adversary_checks.judged(summary)
    if cheats:
        return " ".join(unmasked(summary, uid, attack, final.get(str(uid), 0.0)) for uid, attack in cheats.items())
    if not held.get("incentive_proportional"):
        return f"Pay did not follow the work: {summary['details'].get('incentive_proportional', 'not checked')}."
    within = f"to within {100 * PROPORTION_TOLERANCE:.0f} %"
    return f"Validators checked the work, and the chain paid each miner its share of it, {within}."


def unmasked(summary: Summary, uid: int, attack: AttackFile, share: float) -> str:
    """What became of one that cheated."""
    caught = next((audit for audit in summary["failed_audits"] if audit["uid"] == uid), None)
    if caught is not None:
        found = f"was found out in round {caught['round']} ({caught['reason']})"
    elif attack.evidence not in ("audit", "none") and adversary_checks.evidence(summary, uid, attack)[0]:
        found = f"shows in {EVIDENCE[attack.evidence]}"
    else:
        found = "was not found out"
    return f"{called(summary, [uid])} cheated, {found} and got {100 * share:.1f} % of the pay at the end."


def survived(summary: Summary) -> str:
    kills = summary["faults"]
    if not kills:
        return ""
    back = sum(kill["rejoined_round"] is not None for kill in kills)
    return (
        f"{many(len(kills), 'node')} {'was' if len(kills) == 1 else 'were'} killed on purpose; {back} took part again."
    )
