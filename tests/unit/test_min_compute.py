"""min_compute.yml: what it says follows from the code does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from distributed_training.averaging.needs import needs
from distributed_training.devices import CUDA_BUILDS
from distributed_training.recipes.build import draft_manifest, goodput, model_size
from distributed_training.recipes.reading import read_preset
from distributed_training.recipes.timing import slowest_goodput
from distributed_training.settings.sections import DataSection

ROOT = Path(__file__).parents[2]
MONTH_S, ENVIRONMENT_GB = 30 * 86400, 9
SAID: dict[str, Any] = yaml.safe_load((ROOT / "min_compute.yml").read_text())
PRESET = read_preset(SAID["run"]["preset"])
RUN = draft_manifest(SAID["run"]["preset"], PRESET.model, None, {"netuid": 1})
SIZE = model_size(RUN.model.config)
NEEDS = needs(RUN, SIZE, PRESET.block_s)


def test_what_the_run_asks_is_what_the_code_says() -> None:
    rounds = MONTH_S / NEEDS.round_s
    assert SAID["run"] == {
        "preset": "gpt2-124m",
        "parameters": SIZE,
        "round_minutes": round(NEEDS.round_s / 60, 1),
        "megabytes_a_round": round(NEEDS.round_bytes / 1e6),
        "gigabytes_a_month": round(NEEDS.round_bytes * rounds / 1e9),
        "megabits_per_second": round(NEEDS.bits_per_s / 1e6, 1),
        "state_megabytes": round(NEEDS.state_bytes / 1e6),
        "disk_gib": round(NEEDS.disk_bytes / 2**30, 1),
        "teraflop_a_step": round(NEEDS.step_flop / 1e12, 1),
        "commitments_a_month": round(2 * rounds),
    }


def test_the_least_of_each_role_is_enough_for_it() -> None:
    disk_gb = (NEEDS.disk_bytes + DataSection().cache_gib * 2**30) / 1e9 + ENVIRONMENT_GB
    for role in ("miner", "validator"):
        spec = SAID["compute_spec"][role]
        assert disk_gb <= spec["storage"]["min_space"] <= disk_gb + 6
        assert spec["gpu"]["min_compute_capability"] >= CUDA_BUILDS[-1][2]
    formula = goodput(RUN, SIZE, PRESET.expect.reducers, PRESET.block_s)
    wanted = math.ceil(8 * min(formula, slowest_goodput(PRESET.expect)) / 1e6)
    assert wanted == 20 and all(speed >= wanted for speed in SAID["network_spec"]["bandwidth"].values())


def test_the_costs_in_the_documentation_are_the_same_numbers() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    run = SAID["run"]
    for number in (f"{run['gigabytes_a_month']} GB", f"{run['disk_gib']} GiB", f"{run['commitments_a_month']:,}"):
        assert number in text
