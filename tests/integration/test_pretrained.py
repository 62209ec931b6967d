"""A run that begins with numbers that are there, and a past: everybody starts from them, bit for bit."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from subnet import MODEL, OVERRIDES, Node, Subnet, make_subnet, running, start_node
from transformers import AutoModelForCausalLM

from distributed_training.data.loader import heldout_sequences
from distributed_training.data.local import LocalPages
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Carry
from distributed_training.recipes.build import First, make_manifest, try_model
from distributed_training.recipes.start import pretrained as pretrained_numbers
from distributed_training.recipes.start import write_start
from distributed_training.settings.flags import merge
from distributed_training.training.flat import to_flat
from distributed_training.training.model import build_model, read_config
from distributed_training.training.outer import RunState

pytestmark = pytest.mark.alone


def save_model(folder: Path) -> torch.nn.Module:
    """Not what any seed gives: larger numbers, as of a model that has learnt."""
    model = build_model(read_config(MODEL).config, 99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)  # type: ignore[operator]
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def with_a_past(start: Path) -> First:
    """The numbers of a folder after seven applied rounds, as of a run that is gone on with."""

    def first(model: torch.nn.Module, draft: RunManifest) -> tuple[RunState, Sequence[str]]:
        state, notes = pretrained_numbers(start)(model, draft)
        return replace(state, momentum=state.params * np.float32(0.5), applied=7, carry=Carry(2.5, ())), notes

    return first


def pretrained(subnet: Subnet, start: Path) -> Subnet:
    """The same subnet with a run that begins there."""
    pages, seed = LocalPages(subnet.root / "pages"), subnet.seed
    fields = merge(OVERRIDES, {"timing": {"first_block": 16}})
    tried = try_model(MODEL, subnet.manifest, seed, start=with_a_past(start))
    manifest = make_manifest("local", MODEL, pages, init_seed=seed, overrides=fields, tried=tried)
    write_start(manifest, with_a_past(start), subnet.root)
    (subnet.root / "manifest.json").write_bytes(manifest.canonical())
    return replace(subnet, manifest=manifest)


def heldout_loss(model: torch.nn.Module, node: Node) -> float:
    """As plain transformers measures it."""
    data = node.parts.manifest.data
    sequences = heldout_sequences(
        node.engine.source, node.engine.tokenizer, data.sequence_length, data.heldout_sequences
    )
    tokens = torch.from_numpy(sequences)
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=tokens).loss)


async def test_a_saved_model_is_where_everybody_starts(tmp_path: Path) -> None:
    saved = save_model(tmp_path / "saved")
    subnet = pretrained(make_subnet(tmp_path / "run", miners=1, validators=1), tmp_path / "saved")
    aside = (subnet.root / "checkpoints").rename(tmp_path / "aside")
    async with running(subnet, without=subnet.names):
        early = asyncio.create_task(start_node(subnet, "validator-0"))
        await asyncio.sleep(0.5)
        assert not early.done(), "it waits for the owner"
        aside.rename(subnet.root / "checkpoints")
        owner = await start_node(subnet, "owner")
        shutil.rmtree(subnet.root / "checkpoints")  # the owner's run directory had it, the others have the owner
        await asyncio.gather(early, start_node(subnet, "miner-0"))
        first = owner.all("evaluation", round=-1)[0]["heldout_loss"]
        assert first == pytest.approx(heldout_loss(saved, owner), rel=1e-5)
        assert (to_flat(owner.engine.model) == to_flat(saved)).all()
        sources = {name: node.all("ready")[0]["source"] for name, node in subnet.nodes.items()}
        assert (sources["owner"], sources["miner-0"]) == ("round 0", "peers")
        roots = {node.all("ready")[0]["state_root"] for node in subnet.nodes.values()}
        assert roots == {subnet.manifest.model.initial_root}
