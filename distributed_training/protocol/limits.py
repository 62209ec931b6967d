"""What the value of each manifest field may be, taken alone. Relations between fields are in `manifest.check`."""

from __future__ import annotations

import json
import re
from functools import reduce
from typing import Any

_DIGESTS = ("model.initial_root", "model.constants_sha256", "data.tokenizer_sha256", "data.pages_sha256")
_HUB = r"hub:[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_KEYS = ("access.hotkeys", "access.coldkeys")
MAX_KEYS = 4096  # as many as a subnet can have uids
_TEXTS = {
    "continues": (r"([0-9a-f]{64})?", "64 hex digits or nothing"),
    "public.run_key": (r"([0-9a-f]{64})?", "64 hex digits or nothing"),
    "public.checkpoints": (rf"({_HUB})?", "hub:ORG/NAME or nothing"),
    "public.pages": (
        rf"({_HUB}(@[\w.-]{{1,100}})?|https://[!-~]{{1,500}})?",
        "hub:ORG/NAME[@REVISION], https://... or nothing",
    ),
}
_POSITIVE = (1e-300, 1e300)
_SHARE = (0, 1)
_DECAY = (0, 0.9999)  # 1 would never forget
_COUNT = (1, 1 << 20)
_BLOCKS = (0, 1 << 20)
_MOST_OPTIONS = 16  # of an optimiser
# Closed ranges. Upper ends are widths of fields in records (wire.py) or what a node can be asked to hold.
_RANGES: dict[str, tuple[float, float]] = {
    "netuid": (1, 0xFFFF),
    "max_uids": (1, 4096),
    "version_key": (0, (1 << 64) - 1),
    "data.eos_id": (0, (1 << 24) - 1),
    "data.sequence_length": (2, 1 << 20),
    "data.batch_size": (1, 0xFFFF),
    "data.heldout_sequences": _COUNT,
    "inner.nominal_steps": _COUNT,
    "inner.max_steps": _COUNT,
    "inner.learning_rate": _POSITIVE,
    "inner.warmup_steps": (0, 1 << 32),
    "inner.decay_steps": (0, 1 << 32),
    "inner.min_lr_ratio": _SHARE,
    "inner.ramp_steps": (1, 1 << 16),  # 1: none
    "inner.weight_decay": _SHARE,
    "inner.clip_norm": _POSITIVE,
    "outer.learning_rate": _POSITIVE,
    "outer.momentum": _DECAY,
    "average.feedback_decay": (1e-6, 1),  # 1: all of it
    "average.chunk_coords": (1, 1 << 24),
    "average.block_coords": (1, 4096),  # with more under one scale, rounding alone can close the norm gate
    "average.token_cap": (1, (1 << 53) - 1),
    "average.initial_tau": _POSITIVE,
    "average.tau_factor": _POSITIVE,
    "average.gate_factor": (1, 2),
    "average.min_counted": (1, 256),
    "average.min_map_share": _SHARE,
    "average.min_voter_share": _SHARE,
    "average.max_reducers": (1, 256),  # a slice map has 256 bits
    "timing.first_block": (0, (1 << 32) - 1),
    "timing.finality": _BLOCKS,
    "timing.reduce_margin": _BLOCKS,
    "timing.transfer": _BLOCKS,
    "timing.length": _COUNT,
    "audit.depth_share": (1e-6, 1),
    "audit.newcomer_factor": (1, 1e6),
    "audit.full_share": _SHARE,
    "audit.sketch_size": (1, 255),
    "audit.probe_chunks": _COUNT,
    "audit.error_ok": _POSITIVE,
    "audit.error_growth_steps": _POSITIVE,
    "audit.error_growth_max": (1, 1e6),
    "audit.norm_ok": _POSITIVE,
    "audit.loss_ok": _POSITIVE,
    "audit.vector_cosine_bad": (-1, 1),
    "scoring.vesting_rounds": (1, 1024),
    "scoring.audit_half_life": _POSITIVE,
    "scoring.integrity_half_life": _POSITIVE,
    "scoring.integrity_floor": _SHARE,
    "scoring.soft_fail_weight": (0, 1e6),
    "scoring.penalty_rounds": (0, 1 << 20),
    "scoring.goodput_required": (0, 1e300),  # 0: bandwidth is not scored
    "scoring.goodput_probes": (1, 1024),
    "scoring.bandwidth_share": _SHARE,
    "scoring.cutoff": _SHARE,
    "scoring.burn_share": _SHARE,
    "keep.work_rounds": (3, _COUNT[1]),  # what audits ask for: roles.chunks.KEPT_ROUNDS
    "keep.output_rounds": _COUNT,
    "keep.snapshot_every": _COUNT,
    "keep.checkpoint_every": _COUNT,
    "keep.max_missing_rounds": _COUNT,
}


def field_problems(manifest: object) -> list[str]:
    """Fields of a RunManifest whose value cannot be, each named by its path; empty when there are none."""

    def value(path: str) -> Any:
        return reduce(getattr, path.split("."), manifest)

    problems = [
        f"{path}: {value(path)} is not in {low}..{high}"
        for path, (low, high) in _RANGES.items()
        if not low <= value(path) <= high
    ]
    problems += [f"{path}: not 64 hex digits" for path in _DIGESTS if not re.fullmatch("[0-9a-f]{64}", value(path))]
    problems += [
        f"{path}: expected {what}, not {value(path)!r}"
        for path, (pattern, what) in _TEXTS.items()
        if not re.fullmatch(pattern, value(path), re.ASCII)
    ]
    problems += [
        f"{path}: expected at most {MAX_KEYS} public keys of 64 hex digits, sorted, each once"
        for path in _KEYS
        if len(value(path)) > MAX_KEYS
        or value(path) != sorted(set(value(path)))
        or not all(re.fullmatch("[0-9a-f]{64}", key) for key in value(path))
    ]
    options = value("inner.options")
    if len(options) > _MOST_OPTIONS or not all(re.fullmatch("[a-z][a-z0-9_]{0,31}", name) for name in options):
        problems.append(f"inner.options: expected at most {_MOST_OPTIONS} names of small letters")
    config = value("model.config")
    if not isinstance(config.get("model_type"), str):
        problems.append("model.config: must name model_type")
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(f"model.config: cannot be written as JSON: {error}")
    return problems
