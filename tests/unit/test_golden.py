from __future__ import annotations

import pytest
from frozen import three_steps, vectors
from golden import GOLDEN

from distributed_training.training.outer import state_root

NOW = vectors()


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_frozen(name: str) -> None:
    assert NOW[name].hex() == GOLDEN[name]


def test_every_encoding_has_its_vector() -> None:
    assert NOW.keys() == GOLDEN.keys()
    assert len(set(GOLDEN.values())) == len(GOLDEN)


def test_three_outer_steps_give_the_same_root_again() -> None:
    assert state_root(three_steps(), 256).hex() == GOLDEN["state root after three outer steps"]
