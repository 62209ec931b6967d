"""Events of a recorded demo run (three rounds, miners of speed 1, 1, 2, 4): followed, merged, drawn."""

from __future__ import annotations

import json
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from localnet_recording import SPECS, recorded, recorded_manifest, recorded_view
from rich.console import Console

from distributed_training.localnet.events import RunEvents, RunView
from distributed_training.localnet.layout import NodeSpec, RunPaths, node_specs
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.run.create import Run
from distributed_training.localnet.show.display import Display
from distributed_training.localnet.show.table import Clock, event_line, header, render
from distributed_training.metrics.following import MAX_LINE_BYTES, Follower
from distributed_training.protocol.manifest import RunManifest

NAMES = {spec.uid: spec.name for spec in SPECS}


@pytest.fixture(scope="module")
def manifest() -> RunManifest:
    return recorded_manifest()


def drawn(view: RunView, manifest: RunManifest, block: int | None, width: int = 130) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(render(view, manifest, Clock(block, 95.0, 3), width))
    return console.export_text()


def test_the_table_shows_every_node_phase_loss_root_score_weight_and_incentive(manifest: RunManifest) -> None:
    view = recorded_view()
    view.incentive = {3: 0.125, 4: 0.125, 5: 0.25, 6: 0.5}
    text = drawn(view, manifest, 90)
    assert "round 1 of 0 to 2" in text and "commit" in text and "block 90" in text
    for spec in SPECS:
        assert spec.name in text
    line = next(line for line in text.splitlines() if "miner-3" in line)
    assert all(part in line for part in ("6", "50.0%", "729cc140", "1.000", "pass"))
    assert "5.377 → 3.228 → 3.074 → 3.01" in text
    assert "4 of 4 audits passed" in text and "checkpoints, newest" in text


@pytest.mark.parametrize("width", [80, 100, 130, 200])
def test_the_table_fits_and_keeps_names_and_pay_whole(manifest: RunManifest, width: int) -> None:
    text = drawn(recorded_view(), manifest, 90, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "miner-3" in text and "50.0%" in text and "c6ace006" not in text


def test_a_miner_at_zero_says_why(manifest: RunManifest) -> None:
    view = recorded_view()
    card = {"S": 0.1, "G": 0.0, "B": 1.0, "I": 1.0, "weight": 0.0, "reason": "audit failed at step 3", "note": "x"}
    cards = {str(n.uid): dict(card, reason="" if n.uid != 6 else card["reason"]) for n in view.of_role("miner")}
    view.apply("validator-0", {"event": "scores", "round": 9, "cards": cards})
    view.apply("validator-0", {"event": "weights", "round": 9, "block": 1, "weights": {"3": 1.0, "6": 0.0}})
    line = next(line for line in drawn(view, manifest, 90, 150).splitlines() if "miner-3" in line)
    assert "audit failed at step 3" in line


def test_the_header_follows_the_run(manifest: RunManifest) -> None:
    view = RunView(SPECS)
    assert header(view, manifest, Clock(None, 3.0, 3)).plain.startswith("loading: 0 of 7 nodes ready")
    assert "round 0 begins in 5" in header(view, manifest, Clock(manifest.timing.first_block - 5, 1.0, 3)).plain
    assert "average" in header(view, manifest, Clock(12 + 54 + 30, 1.0, 3)).plain
    assert "round 2 was the last" in header(view, manifest, Clock(12 + 3 * 54, 1.0, 3)).plain


def test_plain_lines_tell_the_same_story() -> None:
    lines = [line for name, event in recorded() if (line := event_line(name, event, NAMES)) is not None]
    text = "\n".join(lines)
    assert "miner-3      round 0: 20 steps, 40960 tokens, loss 5.330 to 3.452 in 10.5 s" in text
    assert (
        "owner        round 0: applied, work of miner-0, miner-1, miner-2, miner-3, 4 of 4 slices, state c6ac" in text
    )
    assert "validator-0  round 0: audit of miner-0: pass, depth 3, ok" in text
    assert (
        "validator-0  round 0: weights in block 70: miner-0 12.5%, miner-1 12.5%, miner-2 25.0%, miner-3 50.0%" in text
    )
    assert len(lines) < len(recorded())  # single steps are left to the table


@pytest.mark.parametrize(
    "event",
    [
        {"event": "round", "round": 1},
        {"event": "scores", "round": 1, "cards": 5},
        {"event": "weights", "round": None, "weights": {"x": "y"}},
        {"event": "evaluation", "round": None, "heldout_loss": "low"},
        {"event": "nonsense", "round": 1},
    ],
)
def test_a_strange_event_changes_no_number_and_stops_nothing(manifest: RunManifest, event: dict[str, Any]) -> None:
    view = recorded_view()
    before = view.heldout(), view.scores_of(1), {n.name: n.state_root for n in view.nodes.values()}
    view.apply("validator-0", event)
    view.apply("a stranger", event)
    assert before == (view.heldout(), view.scores_of(1), {n.name: n.state_root for n in view.nodes.values()})
    event_line("validator-0", event, NAMES)
    drawn(view, manifest, 90)


def test_a_follower_reads_whole_lines_once_and_skips_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_text('{"event":"a","round":0}\n{"event":"b","rou')
    assert [e["event"] for e in follower.read()] == ["a"]
    with path.open("a") as file:
        file.write(
            'nd":1}\nnot json\n[1]\n{"event":"c","round":"x"}\n{"event":"d","x":"' + "y" * MAX_LINE_BYTES + '"}\n'
        )
        file.write('{"event":"e"}\n')
    assert [e["event"] for e in follower.read()] == ["b", "e"]
    assert follower.bad_lines == 4
    assert follower.read() == []


def write_node_events(paths: RunPaths, specs: tuple[NodeSpec, ...]) -> None:
    for spec in specs:
        folder = paths.node(spec.name)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(event) for name, event in recorded() if name == spec.name]
        (folder / "events.jsonl").write_text("\n".join(lines) + "\n")


def test_the_run_file_holds_every_event_with_its_node_and_survives_a_resume(tmp_path: Path) -> None:
    specs = node_specs(parse_options(["--speeds", "1,1,2,4", "--run-dir", str(tmp_path)]))
    paths = RunPaths(tmp_path)
    write_node_events(paths, specs)
    for _ in range(2):
        events = RunEvents(paths, specs)
        events.drain()
        events.note({"event": "ended", "round": None, "name": "miner-0", "code": 0})
        events.close()
    lines = [json.loads(line) for line in paths.events.read_text().splitlines()]
    assert len([line for line in lines if line["node"] == "demo"]) == 2
    told = [line for line in lines if line["node"] != "demo"]
    assert len(told) == len(recorded())
    assert [line["time"] for line in told] == sorted(line["time"] for line in told)
    assert events.view.heldout() == recorded_view().heldout()


def test_a_display_writes_in_any_encoding(manifest: RunManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(raw, encoding="ascii", errors="strict"))
    display = Display(plain=True)
    display.say("/tmp/my r\u00fcn is complete; \udce9")
    display.console.print(render(recorded_view(), manifest, Clock(90, 95.0, 3), 80))
    sys.stdout.flush()
    assert rb"/tmp/my r\xfcn is complete; \udce9" in raw.getvalue() and b"miner-3" in raw.getvalue()


def test_how_long_it_takes_is_told_of_a_run_that_begins_only(manifest: RunManifest) -> None:
    options = parse_options(["--speeds", "1,1,2,4", "--run-dir", "run"])
    for resumed in (False, True):
        console = Console(file=StringIO(), record=True, width=200)
        run = Run(RunPaths(options.run_dir), manifest, SPECS, 1, options.params(), resumed=resumed)
        Display(plain=True, console=console).start(run, recorded_view(), 6)
        assert ("a block takes" in console.export_text()) is not resumed
