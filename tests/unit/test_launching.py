"""A run for some, a run that begins with a checkpoint, a run that goes on with another: as a person makes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from samples import failed
from test_create_run_script import main

from distributed_training.chain.keys import derive_keypair
from distributed_training.engine import first_state
from distributed_training.errors import ConfigError
from distributed_training.launching.allowed import allowed
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.protocol.types import Carry
from distributed_training.roles.exporting import exporter_of
from distributed_training.training.model import run_model
from distributed_training.training.outer import RunState, state_root

SCRIPT = Path(__file__).parents[2] / "scripts" / "create_run.py"
TINY = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2}
AT = ["--set", "timing.first_block=5000"]


@dataclass(frozen=True)
class Run:
    folder: Path
    manifest: RunManifest
    state: RunState  # of its newest checkpoint, of round 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As its owner left it: manifest, pages, and a checkpoint of round 40."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model.json").write_text(json.dumps(TINY))
    (folder / "text").mkdir()
    for number in range(60):
        (folder / "text" / f"{number}.txt").write_text("".join(f"{number} and {i}\n" for i in range(400)))
    flags = ["--preset", "local", "--model", str(folder / "model.json"), "--text", str(folder / "text")]
    assert main([*flags, "--set", "data.heldout_sequences=4", "--out", str(folder / "manifest.json")]) == 0
    manifest, draws = load_manifest(folder / "manifest.json"), np.random.default_rng(1)
    model = run_model(manifest.model)
    size = sum(p.numel() for p in model.parameters())
    params, momentum = (draws.normal(size=size).astype(np.float32) for _ in range(2))
    state = RunState(params, momentum, 30, Carry(3.5, (failed(1, 2),)))
    (folder / "new").mkdir()
    root = state_root(state, manifest.average.chunk_coords)
    exporter_of(folder, manifest, model, {}, None).write(folder / "new", 40, state, root)
    (folder / "checkpoints").mkdir()
    (folder / "new").rename(folder / "checkpoints" / "round-000040")
    return Run(folder, manifest, state)


def made(out: Path, *flags: str) -> tuple[RunManifest, RunState]:
    """The run, and round 0 as its owner's node finds it."""
    assert main([*AT, *flags, "--out", str(out / "manifest.json")]) == 0
    manifest = load_manifest(out / "manifest.json")
    state = first_state(run_model(manifest.model), manifest, out)
    assert state_root(state, manifest.average.chunk_coords).hex() == manifest.model.initial_root
    return manifest, state


def test_a_run_goes_on_with_another_under_new_constants(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--continue", str(run.folder), "--set", "inner.clip_norm=0.5", "--set", "inner.nominal_steps=3"]
    manifest, state = made(tmp_path / "run", *flags)
    assert manifest.continues == run.manifest.sha256 and manifest.inner.clip_norm == 0.5
    assert (manifest.timing.length, manifest.scoring) == (run.manifest.timing.length, run.manifest.scoring)
    assert manifest.model.config == run.manifest.model.config and manifest.data == run.manifest.data
    assert (state.params == run.state.params).all() and (state.momentum == run.state.momentum).all()
    clock = run.state.applied * run.manifest.inner.nominal_steps
    assert state.applied == round(clock / 3)
    assert state.carry == Carry(3.5, ()), "the threshold goes on, who was included is of the former miners"
    said = capsys.readouterr().out
    assert f"goes on with round 40 of run {run.manifest.name} ({run.manifest.sha256[:16]})" in said
    assert f"the learning-rate clock begins at step {3 * state.applied:,}" in said
    flags = ["--continue", str(run.folder / "manifest.json"), "--set", "outer.momentum=0.3", "--pages"]
    manifest, state = made(tmp_path / "other", *flags, str(run.folder / "pages"))
    assert (state.params == run.state.params).all() and not state.momentum.any()
    assert state.applied == run.state.applied, "the clock is that of the same nominal steps"
    assert "outer momentum begins at zero, because outer.momentum is another one" in capsys.readouterr().out


def test_a_run_begins_with_the_parameters_of_a_checkpoint_and_nothing_else(run: Run, tmp_path: Path) -> None:
    flags = ["--preset", "local", "--start", str(run.folder), "--pages", str(run.folder / "pages")]
    manifest, state = made(tmp_path / "run", *flags, "--set", "data.heldout_sequences=4")
    assert (state.params == run.state.params).all() and not state.momentum.any() and state.applied == 0
    assert (manifest.continues, manifest.data.tokenizer, manifest.model.config["n_embd"]) == ("", "bytes", 16)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--continue", "nowhere", *AT], "--continue nowhere: .*nowhere: expected ORG/NAME on the Hub, or a folder"),
        (["--continue", "RUN", "--seed", "3"], "--continue needs to know when round 0 starts: --in 2h, or --set"),
        (
            ["--continue", "RUN", *AT, "--start", "RUN"],
            "--continue takes model, .* of the former run: leave out --start",
        ),
        (["--continue", "RUN/pages", *AT], "--continue .*/pages: .*no checkpoint yet"),
        (["--continue", "OTHER", *AT], r"of the run with manifest .*; --start takes the parameters of any checkpoint"),
        (
            ["--steps", "5", "--round-minutes", "0.2", *AT],
            r"--round-minutes 0.2 is too short: a round takes \d+ blocks",
        ),
        (["--tflops", "3", "--step-seconds", "1", *AT], "--tflops and --step-seconds both say how fast"),
        (["--miners", "4/8", *AT], "--miners 4/8: no more can be dialled than there are"),
        (["--link", "50", *AT], "argument --link: expected two numbers of Mbit/s with a slash between, not '50'"),
        (["--allow", "5Nobody", *AT], r"--allow: '5Nobody' is neither an ss58 address nor a file with one"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(run: Run, tmp_path: Path, flags: list[str], why: str) -> None:
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "round-000040").symlink_to(run.folder / "checkpoints" / "round-000040")
    fields = json.loads(run.manifest.canonical()) | {"name": "another"}
    (other / "manifest.json").write_text(json.dumps(fields))
    words = [word.replace("RUN", str(run.folder)).replace("OTHER", str(other)) for word in flags]
    words += [] if "--continue" in flags else ["--preset", "local", "--pages", str(run.folder / "pages")]
    with pytest.raises(ConfigError, match=why) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_who_may_mine_is_an_address_or_a_file_of_them(tmp_path: Path) -> None:
    keys = [derive_keypair(1, name) for name in ("a", "b", "c")]
    first, second, third = (key.ss58_address for key in keys)
    path = tmp_path / "miners.txt"
    path.write_text(
        f"# ours\n{first}\n\ncoldkey:{second}  # all of hers\nhotkey:{first}\n{bytes(keys[2].public_key).hex()}\n"
    )
    hexes = [bytes(key.public_key).hex() for key in keys]
    assert allowed([str(path)]) == {"hotkeys": sorted([hexes[0], hexes[2]]), "coldkeys": [hexes[1]]}
    assert allowed([third, f"coldkey:{third}"]) == {"hotkeys": [hexes[2]], "coldkeys": [hexes[2]]}
    path.write_text(f"{first}\nwarmkey:{second}\n")
    with pytest.raises(ConfigError, match=rf"--allow {path}, line 2: expected an address, hotkey:ADDRESS or coldkey:"):
        allowed([str(path)])
    path.write_text("# nobody yet\n")
    with pytest.raises(ConfigError, match=rf"--allow {path}: lists nobody"):
        allowed([str(path)])
    path.write_bytes(b"\xff\xfe\xfd" * 10)
    with pytest.raises(ConfigError, match=rf"--allow {path}: cannot be read"):
        allowed([str(path)])
