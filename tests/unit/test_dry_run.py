from __future__ import annotations

from distributed_training.operator.dry_run import table


def test_a_dry_run_shows_the_row_as_the_chain_would_store_it() -> None:
    miner = {"S": 0.5, "G": 0.9, "I": 1.0, "B": 0.25, "reason": "", "note": "round 4: pass, 9 steps"}
    failed = miner | {"reason": "audit failed: gradient at step 0"}
    text = table(1, 4, {2: miner, 3: failed}, {0: 21845, 2: 65535})
    assert text.splitlines() == [
        "validator uid 1 would set these weights after round 4 (dry run, nothing is written):",
        "  uid  weight    u16       S      G      I      B  why",
        "    0  0.2500  21845                               burn share",
        "    2  0.7500  65535  0.5000  0.900  1.000  0.250  round 4: pass, 9 steps",
        "    3  0.0000      0  0.5000  0.900  1.000  0.250  audit failed: gradient at step 0",
    ]
