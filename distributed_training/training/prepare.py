"""What an inner loop is tried with before round 0, so that no round is lost to it: sequences at a time, torch.compile.

Legend: d parameters; L blocks; T tokens a sequence; H hidden size.
"""

from __future__ import annotations

import logging
import math
import traceback

import numpy as np

from distributed_training.errors import said
from distributed_training.training.device import no_room, out_of_memory
from distributed_training.training.flat import blocks, load_flat, num_parameters, to_flat
from distributed_training.training.inner import InnerLoop

log = logging.getLogger(__name__)

_GPU_SHARE, _CPU_SHARE = 0.8, 0.5  # of the free memory: on a GPU steps are tried; a CPU's holds vectors and nodes too
_BESIDE_BYTES = 10  # for each parameter: two moments, and a sketch's coefficient
_OF_A_BLOCK = 40  # float32 numbers for each token and H that one block holds while it is computed again: an estimate


def prepare(loop: InnerLoop, length: int, free_bytes: int | None) -> str:
    """Choose `loop.micro_batch`, and see that the loop can be compiled; what a step is, in words.

    `length`: T. So many sequences go at a time as `free_bytes` of the device suffice for (None: as the loop has it), by
    what one of them keeps for its backward pass; on a GPU steps are tried, with half as many while memory runs out.
    What cannot be compiled is not, with a warning. Raises OutOfMemory where one sequence at a time is too much.
    """
    if free_bytes is not None:
        room = free_bytes * (_CPU_SHARE if loop.device.type == "cpu" else _GPU_SHARE)
        room -= _BESIDE_BYTES * num_parameters(loop.model) + loop.losses.head_bytes(loop.micro_batch * length)
        loop.micro_batch = fitting(int(room), sequence_bytes(loop, length), loop.micro_batch)
        if loop.device.type == "cuda":
            _shrink_to_fit(loop, length)
    if loop.compiled:
        _try_compiled(loop, length)
    return _in_words(loop)


def fitting(room_bytes: int, sequence_bytes: int, sequences: int) -> int:
    """How many of the sequences to take at a time, at least 1: in as few parts of about the same size as have room."""
    most = min(sequences, max(1, room_bytes // max(1, sequence_bytes)))
    return math.ceil(sequences / math.ceil(sequences / most))


def sequence_bytes(loop: InnerLoop, length: int) -> int:
    """What one sequence keeps for its backward pass, but for the logits."""
    if not loop.recompute:
        return loop.losses.kept_bytes(length)
    width = loop.losses.table.shape[1]
    return 4 * length * width * (len(blocks(loop.model)[1]) + _OF_A_BLOCK)


def _shrink_to_fit(loop: InnerLoop, length: int) -> None:
    while True:
        try:
            return _two_steps(loop, length)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that did not fit
            last = error
        if not loop.shrink():
            raise no_room(str(loop.device), last)


def _try_compiled(loop: InnerLoop, length: int) -> None:
    try:
        _two_steps(loop, length)
    except Exception as error:  # what a compiler and its tools raise has no common root
        if out_of_memory(error):
            raise
        loop.compiled = False
        log.warning("--compile: torch.compile does not work here, steps go without it: %s", said(error)[:200])


def _two_steps(loop: InnerLoop, length: int) -> None:
    """Of made-up tokens, all that a round's steps do; the parameters stay."""
    sequences = loop.micro_batch if loop.team.size == 1 else loop.team.size * loop.batch_size
    start, vocabulary = to_flat(loop.model), loop.losses.table.shape[0]
    tokens = np.arange(sequences * length, dtype=np.int64).reshape(sequences, length) % vocabulary
    try:
        loop.run(
            start,
            iter([tokens, tokens]),
            applied_rounds=0,
            sketch_seed=b"",
            max_steps=2,
            should_stop=lambda: False,
        )
    finally:
        load_flat(loop.model, start)


def _in_words(loop: InnerLoop) -> str:
    whole, size = loop.batch_size, loop.micro_batch
    words = [{"bf16": "bfloat16", "fp32": "float32"}[loop.precision]]
    if loop.device.type == "cuda" and loop.precision == "fp32":
        words[0] += " (this GPU has no bfloat16, or it was asked for)"
    words.append(f"{size} of {whole} sequences at a time" if size < whole else f"all {whole} sequences at a time")
    words += ["compiled"] * loop.compiled + ["blocks computed twice"] * loop.recompute
    return ", ".join(words)
