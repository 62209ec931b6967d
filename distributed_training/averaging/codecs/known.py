"""All codecs, and which of them a run uses: a new one is a file beside this and a line here."""

from __future__ import annotations

from dataclasses import replace

from distributed_training.averaging.codecs.base import Codec
from distributed_training.averaging.codecs.int4 import INT4
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.codecs.sparse import SPARSE
from distributed_training.errors import ConfigError
from distributed_training.protocol.sections import AverageSection

CODECS: tuple[Codec, ...] = (INT8, INT4, SPARSE)


def codec(name: str) -> Codec:
    """Raises ConfigError for a name that is not known here."""
    for each in CODECS:
        if each.name == name:
            return each
    raise ConfigError(f"codec {name}: not known; expected one of {', '.join(c.name for c in CODECS)}")


def uplink_of(average: AverageSection) -> Codec:
    """Of what senders send to reducers; the sparse one with the run's share of feedback."""
    found = codec(average.uplink)
    return replace(SPARSE, feedback=average.feedback_decay) if found is SPARSE else found


def output_of(average: AverageSection) -> Codec:
    """Of what reducers publish."""
    return codec(average.output)
