"""What a run needs on disk, and what goes first when an operator gave less room than it came to take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import CARRY, key
from tiny_training import manifest as make_manifest
from tiny_training import stated

from distributed_training.averaging.codecs.sparse import SPARSE
from distributed_training.averaging.disk import (
    GIB,
    check_disk,
    enforce_budget,
    feedback_bytes,
    gib,
    required_bytes,
    used_bytes,
)
from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import uplink_bytes
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.errors import ConfigError
from distributed_training.protocol.types import NO_ROOT
from distributed_training.training.outer import RunState

NUM_COORDS, NUM_FEW = 124_000_000, 50_000
BIG, OWN = 200_000, 100_000  # bytes of a round's slices, and of our own


def test_a_budget_that_is_too_small_is_refused_with_the_one_that_is_enough(tmp_path: Path) -> None:
    manifest = make_manifest({"model_type": "gpt2"}, section=stated)
    needed = required_bytes(manifest, NUM_COORDS)
    states, slices = 3 * 8 * NUM_COORDS, manifest.keep.output_rounds * NUM_COORDS
    assert states + slices < needed < 2.5 * (states + slices)
    with pytest.raises(ConfigError, match=rf"needs up to {gib(needed)} GiB"):
        check_disk(manifest, NUM_COORDS, 1.0, tmp_path)
    check_disk(manifest, NUM_COORDS, float(gib(needed)), tmp_path)
    check_disk(manifest, NUM_COORDS, None, tmp_path)


def test_feedback_needs_room_for_five_buffers_and_counts_in_the_budget(tmp_path: Path) -> None:
    plain = make_manifest({"model_type": "gpt2"}, section=stated)
    average = plain.average.model_copy(update={"uplink": "sparse"})
    sparse = plain.model_copy(update={"average": average})
    layout = layout_of(sparse, NUM_COORDS)
    assert feedback_bytes(plain, layout) == 0
    assert feedback_bytes(sparse, layout) == 5 * (4 * NUM_COORDS + 32 * layout.num_chunks)
    wires = uplink_bytes(plain, layout) - uplink_bytes(sparse, layout)
    owns, sents = plain.keep.work_rounds + 2, 2 * 4
    less = required_bytes(plain, NUM_COORDS) - (owns + sents) * wires
    assert required_bytes(sparse, NUM_COORDS) == less + feedback_bytes(sparse, layout)
    store, values = RoundStore(tmp_path), np.ones(NUM_FEW, np.float32)
    store.feedback.encode(values, layout_of(sparse, NUM_FEW), SPARSE, NO_ROOT)
    assert used_bytes([tmp_path / "feedback"]) >= 4 * NUM_FEW
    assert enforce_budget(tmp_path, store.states, 9, 1) >= 4 * NUM_FEW


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = make_manifest({"model_type": "gpt2"}, section=stated)
    check_disk(manifest, 1000, None, tmp_path)
    assert not caplog.text
    for_ever = manifest.model_copy(update={"keep": manifest.keep.model_copy(update={"output_rounds": 1 << 30})})
    check_disk(for_ever, 1_000_000, None, tmp_path)
    assert "GiB are free" in caplog.text


def filled(root: Path, budget: int | None) -> RoundStore:
    """Ten rounds, and snapshots of rounds 2 and 8."""
    store = RoundStore(root, budget)
    state = RunState(np.zeros(50_000, np.float32), np.zeros(50_000, np.float32), 2, CARRY)
    for index in range(10):
        store.put_output(index, key(1), StoredOutput(b"record", (bytes(BIG),)))
        store.put_own(index, [bytes(OWN)], b"log")
    store.put_state(2, state)
    store.put_state(8, state)
    return store


def kept(store: RoundStore) -> tuple[list[int], list[int], list[int]]:
    """(rounds with slices, rounds with our own bytes, snapshots)."""
    slices = [i for i in range(10) if store.output(i, key(1)) is not None]
    return slices, [i for i in range(10) if store.own_wire(i) is not None], store.states.rounds()


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (None, (list(range(10)), list(range(10)), [2, 8])),
        (20 * BIG, (list(range(10)), list(range(10)), [2, 8])),
        (17 * BIG, (list(range(10)), [7, 8, 9], [2, 8])),
        (12 * BIG, ([4, 5, 6, 7, 8, 9], [7, 8, 9], [2, 8])),
        (1, ([8, 9], [8, 9], [8])),
    ],
)
def test_what_goes_first(tmp_path: Path, budget: int | None, expected: tuple[list[int], list[int], list[int]]) -> None:
    store = filled(tmp_path, budget)
    store.prune(10, 16, 16)
    assert kept(store) == expected
    folders = (tmp_path / "rounds", tmp_path / "state")
    assert budget in (None, 1) or used_bytes(folders) <= budget


def test_gib_is_rounded_up() -> None:
    assert (gib(GIB), gib(GIB + 1)) == ("1.00", "1.01")
